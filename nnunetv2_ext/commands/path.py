"""`nnUNetv2_ext path`: where nnU-Net finds the trainers if torch does not tell it."""

from __future__ import annotations

import argparse

from nnunetv2_ext._register import DISCOVERY_FOLDER

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Print the folder for the variable nnUNet_extTrainer."


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options."""


def run(_arguments: argparse.Namespace) -> None:
    """Print the folder."""
    print(DISCOVERY_FOLDER)
