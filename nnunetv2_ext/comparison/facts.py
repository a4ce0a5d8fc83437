"""What a comparison knows besides its numbers, as data: what was compared, set-ups, costs, findings, what to cite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Costs", "Dataset", "Finding", "Metric", "Missing", "Reference", "Setup"]


@dataclass(frozen=True)
class Metric:
    """A metric by which is compared.

    Attributes:
        name: name as in the files, such as "Dice".
        unit: "mm" or "voxel" of a distance; empty for a number from 0 to 1.
        higher_is_better: the direction.
        definition: the formula and the rule for empty masks, in words.
    """

    name: str
    unit: str
    higher_is_better: bool
    definition: str


@dataclass(frozen=True)
class Dataset:
    """A dataset on which is compared.

    Attributes:
        name: name of its folder, such as "Dataset901_CTBody"; for folders of predictions, the folder of the references.
        labels: name of each label that all trainers have been scored by ("1", or "(1, 2)" for a region).
        cases: those that all trainers have, which are compared, in the order of their names.
    """

    name: str
    labels: Mapping[str, str]
    cases: tuple[str, ...]


@dataclass(frozen=True)
class Setup:
    """How a trainer was trained on a dataset; where its folds differ, the first fold's (a finding says so).

    Attributes:
        trainer: name of the trainer.
        dataset: name of the dataset.
        plans: identifier of the plans; None for folders of predictions, as all that follows where it is not known.
        configuration: such as "3d_fullres".
        folds: those that were found.
        epochs: epochs of a training.
        iterations: per epoch.
        batch_size: samples per step, of all GPUs together.
        patch_size: size of the patch in voxels.
        mirroring: axes along which was mirrored in training, such as "0, 1, 2", or "none".
        pretrained: weights from which the training started, or "none".
        checkpoint: "final" or "best", by which the validation was made.
        torch: version.
        host: name of the machine.
    """

    trainer: str
    dataset: str
    plans: str | None = None
    configuration: str | None = None
    folds: tuple[int, ...] = ()
    epochs: int | None = None
    iterations: int | None = None
    batch_size: int | None = None
    patch_size: tuple[int, ...] | None = None
    mirroring: str | None = None
    pretrained: str | None = None
    checkpoint: str | None = None
    torch: str | None = None
    host: str | None = None


@dataclass(frozen=True)
class Costs:
    """What a trainer takes on a dataset; None is not known.

    Attributes:
        trainer: name of the trainer.
        dataset: name of the dataset.
        parameters: number of the network's parameters.
        multiply_adds: multiply-adds of a forward pass of one sample.
        memory_measured_mib: largest GPU memory of a training step that was allocated, as logged.
        memory_reserved_mib: the same, reserved by torch.
        memory_predicted_mib: what the backward pass keeps under autocast, weights and optimiser included.
        seconds_per_epoch: median over the epochs of all folds.
        gpu_hours: hours of all folds together, from the epochs' own times.
        card: GPUs on which was trained; "cpu" without one.
        inference_seconds: per case, median; where it was logged.
    """

    trainer: str
    dataset: str
    parameters: int | None = None
    multiply_adds: int | None = None
    memory_measured_mib: float | None = None
    memory_reserved_mib: float | None = None
    memory_predicted_mib: float | None = None
    seconds_per_epoch: float | None = None
    gpu_hours: float | None = None
    card: str | None = None
    inference_seconds: float | None = None


@dataclass(frozen=True)
class Finding:
    """What a reader has to know to judge the comparison.

    Attributes:
        kind: one word, such as "epochs", "folds" or "cases".
        sentence: statement in plain text, with its full stop.
    """

    kind: str
    sentence: str


@dataclass(frozen=True)
class Missing:
    """A run that was asked for and is not there, or not whole.

    Attributes:
        trainer: name of the trainer.
        dataset: name of the dataset.
        fold: None for folders of predictions.
        what: what is missing or damaged, in a sentence.
        command: shell line that makes it; empty where there is none.
    """

    trainer: str
    dataset: str
    fold: int | None
    what: str
    command: str


@dataclass(frozen=True)
class Reference:
    """A publication or program behind the numbers.

    Attributes:
        key: what it stands for, such as "Wilcoxon's signed-rank test".
        text: authors, title, where and when.
    """

    key: str
    text: str
