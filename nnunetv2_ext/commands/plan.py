"""`nnUNetv2_ext plan`: plans for the network that will be trained, and for the card that is there."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.tables import format_table

if TYPE_CHECKING:
    from nnunetv2_ext.planning.plan import Planning

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Plan patch and batch for the network that will be trained, and for a GPU."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("-d", metavar="DATASET", required=True, help="number or name of the dataset")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("-tr", metavar="TRAINER", help="trainer that will be used")
    who.add_argument("--for", dest="all_of", metavar="TRAINER", nargs="+", help="one plan that all of these can afford")
    parser.add_argument(
        "-c", metavar="CONFIGURATION", nargs="+", default=[], help="configurations (default: all that are served)"
    )
    parser.add_argument(
        "-gpu_memory_target",
        metavar="GB",
        type=float,
        help="memory of the GPU (default: the one that is there)",
    )
    parser.add_argument(
        "-p",
        metavar="PLANS",
        default="nnUNetPlans",
        help="plans whose data are used (default: %(default)s)",
    )
    parser.add_argument("--name", metavar="PLANS", help="name of the new plans (default: PLANS_TRAINER_GBG)")
    parser.add_argument("--overwrite", action="store_true", help="replace plans of that name")


def run(arguments: argparse.Namespace) -> None:
    """Plan, and print what a step will take and how to go on."""
    from nnunetv2_ext.planning.plan import memory_of_card, plan_dataset

    target = arguments.gpu_memory_target
    if target is None:
        target = memory_of_card()
        if target is None:
            raise UserError("There is no GPU here to plan for: give its memory with -gpu_memory_target GB.")
        target = int(target * 10) / 10
    planning = plan_dataset(
        arguments.d,
        arguments.all_of or [arguments.tr],
        target=target,
        configurations=arguments.c,
        base_name=arguments.p,
        name=arguments.name,
        overwrite=arguments.overwrite,
    )
    print(_describe(planning, arguments.d, arguments.tr or arguments.all_of[0]))


def _describe(planning: Planning, dataset: str, trainer: str) -> str:
    from nnunetv2_ext.planning.memory import ERROR, GIBIBYTE

    rows = [
        [
            each.configuration,
            " x ".join(map(str, each.patch_size)),
            each.batch_size,
            name,
            f"{memory.total / GIBIBYTE:.1f}",
            f"{planning.target - memory.total / GIBIBYTE:.1f}",
            each.data_identifier,
        ]
        for each in planning.configurations
        for name, memory in each.memory.items()
    ]
    header = ["configuration", "patch", "batch", "trainer", "GB", "unused", "data"]
    lines = [
        f"Wrote {planning.path}, for {planning.target:g} GB.",
        "",
        format_table(header, rows),
        "",
        f"GB are predicted, of a training step, with an error of {ERROR:.0%} or less.",
        *planning.notes,
    ]
    if planning.unprepared:
        preprocess = ["nnUNetv2_preprocess", "-d", dataset, "-plans_name", planning.path.stem, "-c"]
        lines.append(f"Preprocess with: {shlex.join([*preprocess, *planning.unprepared])}")
    lines.append(
        "Train with: "
        + shlex.join(["nnUNetv2_train", dataset, "CONFIGURATION", "FOLD", "-p", planning.path.stem, "-tr", trainer])
    )
    return "\n".join(lines)
