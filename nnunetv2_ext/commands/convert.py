"""`nnUNetv2_ext convert`: a public dataset in nnU-Net's raw format."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_ext.datasets.registry import DATASETS, OPTIONS
from nnunetv2_ext.io.workers import PROCESSES_HELP

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Write a public dataset in nnU-Net's raw format, with the papers' splits."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("dataset", metavar="DATASET", help=", ".join(dataset.name for dataset in DATASETS))
    parser.add_argument("-i", metavar="SOURCE", type=Path, required=True, help="folder of the unpacked download")
    parser.add_argument("-d", metavar="ID", type=int, help="number in nnU-Net (default: the dataset's own)")
    parser.add_argument("-np", metavar="N", type=int, help=PROCESSES_HELP)
    parser.add_argument("--link", action="store_true", help="link to files that need no change, instead of copying")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset of that number")
    for option in OPTIONS:
        parser.add_argument(
            f"--{option.name}",
            choices=option.choices or None,
            metavar="N" if not option.choices else None,
            help=option.help,
        )


def run(arguments: argparse.Namespace) -> None:
    """Convert the dataset, and print what was done."""
    from nnunetv2_ext.datasets.convert import convert, format_report

    report = convert(
        arguments.dataset,
        arguments.i,
        dataset_id=arguments.d,
        processes=arguments.np,
        link=arguments.link,
        overwrite=arguments.overwrite,
        **{option.name: getattr(arguments, option.name) for option in OPTIONS},
    )
    print(format_report(report))
