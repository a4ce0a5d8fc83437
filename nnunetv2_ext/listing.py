"""The trainers as a table."""

from __future__ import annotations

from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.tables import format_table

__all__ = ["trainers_table"]


def trainers_table(*, markdown: bool = False) -> str:
    """List the trainers of the catalog, for a terminal or for the README."""
    rows = [
        (
            f"`{entry.name}`" if markdown else entry.name,
            entry.method,
            ", ".join(f"{dims}D" for dims in entry.dims),
            "yes" if entry.deep_supervision else "no",
            entry.paper,
            entry.checked_against,
        )
        for entry in TRAINERS
    ]
    header = ("trainer", "method", "dimensions", "deep supervision", "paper", "checked against")
    return format_table(header, rows, markdown=markdown)
