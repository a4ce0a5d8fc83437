"""What trainings took, and what their networks cost: from their records, and from the networks that plans describe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, cast

from nnunetv2_ext.comparison.facts import Costs, Setup
from nnunetv2_ext.comparison.results import Fold, Training
from nnunetv2_ext.comparison.training import TrainingRecord, count_parameters, read_checkpoint
from nnunetv2_ext.errors import UserError

if TYPE_CHECKING:
    from nnunetv2_ext.architectures.cost import Cost
    from nnunetv2_ext.plans.configuration import PlannedConfiguration

__all__ = ["find_costs", "find_setup", "read_plan"]

_SECONDS_PER_HOUR = 3600
# float32 weights, gradients, and what the optimiser keeps per parameter.
_BYTES_PER_PARAMETER = {"SGD": 12, "Adam": 16, "AdamW": 16}


@dataclass(frozen=True)
class _Network:
    """Cost of a network, and the memory of a training step of it."""

    cost: Cost
    step_mib: float


def read_plan(training: Training) -> PlannedConfiguration | None:
    """Read the plan by which a training was made; None where its files are not there.

    Raises:
        UserError: if they cannot be read.
    """
    plans, dataset_json = training.folder / "plans.json", training.folder / "dataset.json"
    if not plans.is_file() or not dataset_json.is_file():
        return None
    from nnunetv2_ext.plans.configuration import read_configuration

    try:
        return read_configuration(_load(plans), _load(dataset_json), training.configuration)
    except Exception as error:
        # nnU-Net's own readers raise whatever they meet in a file from elsewhere.
        raise UserError(
            f"plans.json cannot be read as plans with {training.configuration} ({type(error).__name__}): its "
            "costs are left out."
        ) from error


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def find_setup(
    training: Training, folds: Sequence[Fold], records: Sequence[TrainingRecord], planned: PlannedConfiguration | None
) -> Setup:
    """Collect how a training was set up: what the first fold that knows says, then the trainer's name, then the plan.

    Args:
        training: which one.
        folds: its folds that were read.
        records: records of these runs.
        planned: its plan, if there is one.
    """
    from nnunetv2_ext.trainers.names import parse_name

    parsed = parse_name(training.trainer)
    variant = parsed[1] if parsed else None

    def first(name: str) -> Any:
        return next((value for record in records if (value := getattr(record, name)) is not None), None)

    epochs = first("epochs") or (variant.epochs if variant else None)
    iterations = first("iterations") or (variant.iterations if variant else None)
    batch_size = first("batch_size") or (variant.batch_size if variant else None)
    patch_size = None
    if planned is not None:
        batch_size = batch_size or planned.batch_size
        patch_size = tuple(int(size) for size in planned.configuration_manager.patch_size)
    return Setup(
        trainer=training.name,
        dataset=training.dataset,
        plans=training.plans,
        configuration=training.configuration,
        folds=tuple(fold.number for fold in folds),
        epochs=epochs,
        iterations=iterations,
        batch_size=batch_size,
        patch_size=patch_size,
        mirroring=first("mirroring"),
        pretrained="ImageNet" if parsed and parsed[0].imagenet else None,
        checkpoint=None,
        torch=first("torch"),
        host=first("host"),
    )


def find_costs(
    training: Training,
    setup: Setup,
    folds: Sequence[Fold],
    records: Sequence[TrainingRecord],
    planned: PlannedConfiguration | None,
) -> tuple[Costs, list[str]]:
    """Collect what a training took.

    Returns:
        The costs, and what could not be found out, one sentence each.
    """
    problems: list[str] = []
    network = None
    try:
        network = _estimate(training, setup, planned)
    except Exception as error:
        # A plan from elsewhere may name anything; the rest of the comparison does not depend on it.
        problems.append(f"the network cannot be built from its plans ({error}).")
    parameters = network.cost.parameters if network else _stored_parameters(folds, problems)
    seconds = [value for record in records for value in record.seconds]
    in_all = [record.seconds_in_all for record in records if record.seconds_in_all is not None]
    inference = [record.inference_seconds for record in records if record.inference_seconds is not None]
    cards = sorted({record.card for record in records if record.card})
    on_gpu = cards and cards != ["cpu"]
    return (
        Costs(
            trainer=training.name,
            dataset=training.dataset,
            parameters=parameters,
            multiply_adds=network.cost.multiply_adds if network else None,
            memory_measured_mib=max((r.allocated_mib for r in records if r.allocated_mib is not None), default=None),
            memory_reserved_mib=max((r.reserved_mib for r in records if r.reserved_mib is not None), default=None),
            memory_predicted_mib=network.step_mib if network else None,
            seconds_per_epoch=median(seconds) if seconds else None,
            gpu_hours=sum(in_all) / _SECONDS_PER_HOUR if in_all and on_gpu else None,
            card=" and ".join(cards) or None,
            inference_seconds=median(inference) if inference else None,
        ),
        problems,
    )


def _estimate(training: Training, setup: Setup, planned: PlannedConfiguration | None) -> _Network | None:
    """Build the network of a plan without memory for it; None for trainers of elsewhere, which are never imported."""
    from nnunetv2_ext.catalog import BASELINE
    from nnunetv2_ext.trainers.names import parse_name

    parsed = parse_name(training.trainer)
    if parsed is None or planned is None or setup.batch_size is None:
        return None
    from nnunetv2_ext.architectures.cost import estimate_cost
    from nnunetv2_ext.architectures.network import SegmentationNetwork

    optimizer = "SGD"
    if parsed[0] is BASELINE:
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        def build() -> SegmentationNetwork:
            network: Any = nnUNetTrainer.build_network_architecture(
                planned.plans_manager, planned.configuration_manager, planned.input_channels, planned.num_classes, True
            )
            # What ours say about themselves.
            network.input_channels = planned.input_channels
            network.patch_size = tuple(planned.configuration_manager.patch_size)
            return cast(SegmentationNetwork, network)

    else:
        from nnunetv2_ext.trainers import find_own_trainer

        trainer = find_own_trainer(training.trainer)
        optimizer = trainer.recipe.optimizer

        def build() -> SegmentationNetwork:
            return trainer.build_network(planned.geometry, planned.input_channels, planned.num_classes)

    cost = estimate_cost(build)
    kept = cost.autocast_bytes(setup.batch_size) + _BYTES_PER_PARAMETER[optimizer] * cost.parameters
    return _Network(cost, kept / 2**20)


def _stored_parameters(folds: Sequence[Fold], problems: list[str]) -> int | None:
    """Count the parameters in the first fold's checkpoint."""
    for fold in folds:
        path = fold.folder / "checkpoint_final.pth"
        if path.is_file():
            try:
                return count_parameters(read_checkpoint(path))
            except UserError as error:
                problems.append(str(error))
                return None
    return None
