"""`nnUNetv2_ext list`: the trainers as a table."""

from __future__ import annotations

import argparse

from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.io.tables import format_table
from nnunetv2_ext.trainers.names import GRAMMAR

__all__ = ["HELP", "add_arguments", "run", "trainers_table"]

HELP = "List the trainers."


def trainers_table(*, markdown: bool = False) -> str:
    """List the trainers of the catalog.

    Args:
        markdown: make the full table of docs/trainers.md, in which a new trainer changes one line, instead of one that
            fits a terminal of 100 columns.
    """
    header = ["trainer", "method", "dims", "DS"]
    rows = [
        [
            entry.name,
            entry.method,
            ", ".join(f"{dims}D" for dims in entry.dims),
            "yes" if entry.deep_supervision else "no",
        ]
        for entry in TRAINERS
    ]
    if not markdown:
        return format_table(header, rows)
    header[2:] = ["dimensions", "deep supervision", "paper", "checked against"]
    full = [
        [f"`{name}`", *others, entry.paper, entry.checked_against]
        for (name, *others), entry in zip(rows, TRAINERS, strict=True)
    ]
    return format_table(header, full, markdown=True, padded=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--markdown", action="store_true", help="print the full table in markdown: also papers and what was checked"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the table and the grammar of variants."""
    print(trainers_table(markdown=arguments.markdown))
    if not arguments.markdown:
        print("\nDS: deep supervision. --markdown adds the papers, and what each network was checked against.")
        print(f"Variants: TRAINER{GRAMMAR}")
        print("For example: nnUNetTrainerPECANet_250epochs_lr3en4")
