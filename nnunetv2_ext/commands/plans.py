"""`nnUNetv2_ext plans`, the route without any discovery: a plans file that names a network of this package.

With such plans every stock trainer of nnU-Net, and each of its variants, trains our network. The optimiser cannot
travel this way: it is the stock trainer's.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.files import whole_file
from nnunetv2_ext.plans.dataset import PlannedDataset, read_planned_dataset
from nnunetv2_ext.trainers import find_own_trainer

__all__ = ["HELP", "add_arguments", "network_names", "network_plans", "run", "write_network_plans"]

HELP = "Write a plans file that names a network, for use with nnU-Net's own trainers."

_PREFIX = "nnUNetTrainer"


def network_names() -> list[str]:
    """Name the networks that plans can hold: the trainers' names without nnU-Net's prefix.

    Those that start from ImageNet weights are left out: it is our trainer, not the network, that loads them.
    """
    return [entry.name.removeprefix(_PREFIX) for entry in TRAINERS if not entry.pretrained]


def _scale_strides(output_strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the strides from which nnU-Net's own trainer derives the scales of a network's outputs.

    nnU-Net makes one scale for each entry but the last, and gives the coarsest scale the weight zero. Two entries of
    ones at the end make these two rules meet an output that does not exist: each real one keeps its weight, 1, 1/2, ...
    """
    axes = len(output_strides[0])
    strides = [list(output_strides[0])]
    for before, after in itertools.pairwise(output_strides):
        strides.append([coarse // fine for fine, coarse in zip(before, after, strict=True)])
    return [*strides, [1] * axes, [1] * axes]


def network_plans(planned: PlannedDataset, network_name: str, plans_name: str) -> tuple[dict[str, Any], list[str]]:
    """Return plans that name a network of this package in every configuration that it serves.

    Args:
        planned: dataset with plans that one of nnU-Net's planners made.
        network_name: see `network_names`.
        plans_name: name of the new plans.

    Returns:
        The new plans, and the configurations that they lack because the network does not serve their dimension.
    """
    if network_name not in network_names():
        raise UserError(f"There is no network {network_name!r}; there are {', '.join(network_names())}.")
    import torch

    trainer = find_own_trainer(_PREFIX + network_name)
    result = copy.deepcopy(planned.plans)
    result["plans_name"] = plans_name
    left_out = []
    for name, configuration in result["configurations"].items():
        geometry = planned.configuration(name).geometry
        if geometry.spatial_dims not in trainer.served_dims():
            left_out.append(name)
            continue
        settings = trainer.resolve_settings(geometry)
        network = trainer.network_class
        with torch.device("meta"):
            # Channels and classes do not change the strides of the outputs.
            output_strides = network(1, 2, **settings).output_strides
        configuration["architecture"] = {
            "network_class_name": f"{network.__module__}.{network.__qualname__}.from_plans_file",
            "arch_kwargs": {**settings, "strides": _scale_strides(output_strides)},
            "_kw_requires_import": [],
        }
    for name in left_out:
        del result["configurations"][name]
    return result, left_out


def write_network_plans(
    dataset: str, network_name: str, plans_name: str = "nnUNetPlans", *, overwrite: bool = False
) -> tuple[Path, list[str]]:
    """Write plans that name a network of this package beside the plans they are made from.

    Args:
        dataset: number or name.
        network_name: see `network_names`.
        plans_name: plans of one of nnU-Net's planners; the new ones are called `<plans_name>_<network_name>`.
        overwrite: replace plans of that name.

    Returns:
        The file, and the configurations that were left out because the network does not serve their dimension.

    Raises:
        UserError: for an unknown dataset, plans or network, or an existing file.
    """
    planned = read_planned_dataset(dataset, plans_name)
    new_name = f"{plans_name}_{network_name}"
    plans, left_out = network_plans(planned, network_name, new_name)
    path = planned.folder / f"{new_name}.json"
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: use it, or write it anew with --overwrite.")
    with whole_file(path) as partial:
        partial.write_text(json.dumps(plans, indent=4), encoding="utf-8")
    return path, left_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("-d", metavar="DATASET", required=True, help="number or name of a planned dataset")
    parser.add_argument("network", metavar="NETWORK", help="a trainer's name without nnUNetTrainer, as PECANet")
    parser.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans to start from (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run(arguments: argparse.Namespace) -> None:
    """Write the plans, and print how to train with them."""
    path, left_out = write_network_plans(arguments.d, arguments.network, arguments.p, overwrite=arguments.overwrite)
    print(f"Wrote {path}.")
    if left_out:
        print(f"Left out, because {arguments.network} does not serve their dimension: {', '.join(left_out)}.")
    command = shlex.join(
        ["nnUNetv2_train", arguments.d, "CONFIGURATION", "FOLD", "-p", path.stem, "-tr", "nnUNetTrainer"]
    )
    print(f"Train with: {command}")
