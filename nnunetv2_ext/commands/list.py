"""`nnUNetv2_ext list`: the trainers as a table."""

from __future__ import annotations

import argparse

from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.io.tables import format_table
from nnunetv2_ext.trainers.names import GRAMMAR

__all__ = ["HELP", "add_arguments", "run", "trainers_table"]

HELP = "Show the trainers."


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--markdown", action="store_true", help="as a markdown table")


def run(arguments: argparse.Namespace) -> None:
    """Print the table and the grammar of variants."""
    print(trainers_table(markdown=arguments.markdown))
    if not arguments.markdown:
        print(f"\nVariants: TRAINER{GRAMMAR}, for example nnUNetTrainerPECANet_250epochs_lr3en4")
