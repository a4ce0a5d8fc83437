"""`nnUNetv2_ext demo`: a phantom dataset, taken through nnU-Net's commands."""

from __future__ import annotations

import argparse

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Make a phantom dataset and take it through nnU-Net's commands."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "-o", metavar="FOLDER", default="nnunetv2_ext_demo", help="working folder (default: %(default)s)"
    )
    parser.add_argument("-device", choices=("cpu", "cuda", "mps"), help="default: a GPU if there is one")


def run(arguments: argparse.Namespace) -> None:
    """Run the demo."""
    from nnunetv2_ext.demo.run import run_demo

    run_demo(arguments.o, device=arguments.device)
