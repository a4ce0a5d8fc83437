"""The command `nnUNetv2_ext`: collects the subcommands of `commands`, and turns bad input into one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from nnunetv2_ext.commands import COMMANDS

__all__ = ["build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_ext",
        description="Published attention networks for nnU-Net v2: tools beside nnU-Net's own commands.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND")
    for name in COMMANDS:
        command = import_module(f"nnunetv2_ext.commands.{name.replace('-', '_')}")
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends in one sentence on stderr and exit code 1."""
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    if not hasattr(parsed, "run"):
        parser.print_help()
        return
    try:
        parsed.run(parsed)
    except ValueError as error:
        # Networks and geometries refuse sizes with a plain ValueError, tools with its subclass UserError.
        raise SystemExit(f"error: {error}") from error
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise SystemExit(f"error: {error.strerror or error}{where}") from error


if __name__ == "__main__":
    main()
