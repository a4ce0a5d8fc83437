"""Plans of a dataset for the networks that will be trained, written beside nnU-Net's."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nnunetv2
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.planning.memory import GIBIBYTE, StepMemory
from nnunetv2_ext.planning.networks import find_trained_network
from nnunetv2_ext.planning.planner import MemoryPlanner
from nnunetv2_ext.planning.search import Affordable
from nnunetv2_ext.plans.configuration import read_configuration
from nnunetv2_ext.plans.dataset import read_planned_dataset

__all__ = ["PlannedMemory", "Planning", "memory_of_card", "plan_dataset"]

_PREFIX = "nnUNetTrainer"


@dataclass(frozen=True)
class PlannedMemory:
    """One configuration of new plans.

    Attributes:
        configuration: its name.
        patch_size: voxels per axis.
        batch_size: samples per step.
        data_identifier: folder of its preprocessed data.
        memory: per trainer, the predicted memory of a step.
    """

    configuration: str
    patch_size: tuple[int, ...]
    batch_size: int
    data_identifier: str
    memory: dict[str, StepMemory]


@dataclass(frozen=True)
class Planning:
    """What planning gave.

    Attributes:
        path: the plans file.
        target: GB of the GPU.
        configurations: the planned ones.
        unprepared: configurations whose data have to be preprocessed.
        notes: what the user should know, one sentence each.
    """

    path: Path
    target: float
    configurations: list[PlannedMemory]
    unprepared: list[str]
    notes: list[str]


def memory_of_card() -> float | None:
    """Return the GB of the GPU that is there, in units of 2**30 bytes; None if there is none."""
    return torch.cuda.get_device_properties(0).total_memory / GIBIBYTE if torch.cuda.is_available() else None


def plan_dataset(
    dataset: str,
    trainers: Sequence[str],
    *,
    target: float,
    configurations: Sequence[str] = (),
    base_name: str = "nnUNetPlans",
    name: str | None = None,
    overwrite: bool = False,
    known: dict[Any, StepMemory] | None = None,
) -> Planning:
    """Write plans that all of some trainers can afford.

    Args:
        dataset: number or name.
        trainers: names of trainers of this package, of nnU-Net's own, or variants.
        target: GB of the GPU, in units of 2**30 bytes.
        configurations: to plan; all that the trainers serve if empty.
        base_name: plans of nnU-Net whose data are used where they agree; they may be missing.
        name: name of the plans; by default the base's with the trainers and the target.
        overwrite: replace plans of that name.
        known: predictions of earlier calls for the same dataset; those of this one are added.

    Raises:
        UserError: for an unknown trainer, dataset or configuration, existing plans, or a target that no patch meets.
    """
    networks = [find_trained_network(trainer) for trainer in dict.fromkeys(trainers)]
    if not target > 0:
        raise UserError(f"-gpu_memory_target {target:g} is not a size: give the GB of the GPU, as 16.")
    for configuration in configurations:
        dims = 2 if configuration == "2d" else 3
        for network in networks:
            if dims not in network.dims:
                raise UserError(
                    f"{network.name} does not serve {configuration}: it is for "
                    f"{' and '.join(f'{served}D' for served in network.dims)} configurations."
                )
    if not set(networks[0].dims).intersection(*(network.dims for network in networks)):
        raise UserError("No configuration is served by all of these trainers: some are for 2D alone, some for 3D.")
    folder, base = _read_base(dataset, base_name)
    name = name or "_".join([base_name, *(network.name.removeprefix(_PREFIX) or "nnUNet" for network in networks)]) + (
        f"_{target:g}G"
    )
    path = folder / f"{name}.json"
    if path.exists() and (not overwrite or name == base_name):
        raise UserError(
            f"{path} exists: choose another name with --name"
            + (", or write it anew with --overwrite." if name != base_name else ".")
        )
    affordable = Affordable(networks, target, num_classes=0, regions=False, known={} if known is None else known)
    planner = _make_planner(base)(folder.name, affordable, name, base, configurations)
    plans = planner.plan_experiment()
    planned = []
    dataset_json = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    for configuration in plans["configurations"]:
        settings = read_configuration(plans, dataset_json, configuration)
        planned.append(
            PlannedMemory(
                configuration,
                tuple(settings.geometry.patch_size),
                settings.batch_size,
                settings.configuration_manager.data_identifier,
                {
                    network.name: affordable.predict(
                        network, settings.geometry, settings.input_channels, settings.batch_size
                    )
                    for network in networks
                },
            )
        )
    unprepared = [each.configuration for each in planned if not (folder / each.data_identifier).is_dir()]
    return Planning(path, target, planned, unprepared, planner.notes)


def _make_planner(base: dict[str, Any] | None) -> type[MemoryPlanner]:
    """Return the planner: over the one of nnU-Net's that made the base plans, so that its network stays theirs."""
    if base is None:
        return MemoryPlanner
    name = base["experiment_planner_used"]
    found: Any = recursive_find_python_class(
        os.path.join(nnunetv2.__path__[0], "experiment_planning"), name, "nnunetv2.experiment_planning"
    )
    if found is None:
        raise UserError(
            f"The plans {base['plans_name']} were made by {name}, which is no planner of nnU-Net: name plans after -p "
            "that one of nnU-Net's planners made."
        )
    if found is ExperimentPlanner:
        return MemoryPlanner
    return type("MemoryPlanner", (MemoryPlanner, found), {"base_planner": name})


def _read_base(dataset: str, base_name: str) -> tuple[Path, dict[str, Any] | None]:
    """Find a dataset's folder among the preprocessed ones, and the base plans if it has them.

    Raises:
        UserError: if nnU-Net has not looked at the dataset yet, or named plans do not exist.
    """
    preprocessed = os.environ.get("nnUNet_preprocessed")
    prefix = f"Dataset{int(dataset):03d}_" if dataset.isdigit() else dataset
    folders = sorted(
        path
        for path in (Path(preprocessed).glob(f"{prefix}*") if preprocessed else ())
        if dataset.isdigit() or path.name == dataset
    )
    looked_at = [path for path in folders if (path / "dataset_fingerprint.json").is_file()]
    if preprocessed and not looked_at:
        number = dataset if dataset.isdigit() else dataset.removeprefix("Dataset")[:3]
        raise UserError(
            f"nnU-Net has not looked at dataset {dataset} yet (no dataset_fingerprint.json in {preprocessed}): run "
            f"`nnUNetv2_plan_and_preprocess -d {number}` or, to look only, `nnUNetv2_extract_fingerprint -d {number}`."
        )
    if len(looked_at) == 1 and base_name == "nnUNetPlans" and not (looked_at[0] / "nnUNetPlans.json").is_file():
        return looked_at[0], None
    planned = read_planned_dataset(dataset, base_name)
    return planned.folder, planned.plans
