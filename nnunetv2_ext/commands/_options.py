"""Options that several commands have."""

from __future__ import annotations

import argparse

__all__ = ["add_plan_options"]


def add_plan_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the options that name a dataset's configuration, its plans and a trainer.

    Args:
        parser: parser of the command.
        required: whether the dataset and the configuration must be given.
    """
    parser.add_argument("-d", metavar="DATASET", required=required, help="number or name of a planned dataset")
    parser.add_argument("-c", metavar="CONFIGURATION", required=required, help="configuration, as 3d_fullres")
    parser.add_argument("-tr", metavar="TRAINER", required=True, help="trainer, or a variant of one")
    parser.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans (default: %(default)s)")
