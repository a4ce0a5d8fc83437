"""What is known of a trained model, whether it lies in checkpoints or in graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nnunetv2_ext.errors import UserError

if TYPE_CHECKING:
    from nnunetv2_ext.plans.configuration import PlannedConfiguration

__all__ = ["TrainedModel"]


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with everything that prediction needs.

    Attributes:
        trainer: name of the class that trained it.
        configuration: which of the plans' configurations it was trained for.
        folds: folds in the order in which their logits are averaged.
        plans_json: content of its plans.json.
        dataset_json: content of its dataset.json.
        mirroring_axes: along which axes its images may be mirrored, 0 the first spatial one; None: along none.
        source: where it was read from.
        weights: one state dict per fold; empty for graphs.
        graphs: one ONNX or OpenVINO file per fold; empty for checkpoints.
    """

    trainer: str
    configuration: str
    folds: tuple[str, ...]
    plans_json: dict[str, Any]
    dataset_json: dict[str, Any]
    mirroring_axes: tuple[int, ...] | None
    source: Path = field(compare=False)
    weights: tuple[Mapping[str, Tensor], ...] = field(default=(), compare=False, repr=False)
    graphs: tuple[Path, ...] = field(default=(), compare=False)

    @property
    def plans(self) -> str:
        """Name of the plans."""
        return self.plans_json["plans_name"]

    @property
    def dataset(self) -> str:
        """Name of the training data."""
        return self.plans_json["dataset_name"]

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the images' channels."""
        return tuple((self.dataset_json.get("channel_names") or self.dataset_json["modality"]).values())

    @property
    def labels(self) -> str:
        """List what the numbers of a segmentation mean, as in `1 liver, 2 kidney`."""
        named = {name: value for name, value in self.dataset_json["labels"].items() if name != "ignore"}
        order = self.dataset_json.get("regions_class_order")
        if order is not None:
            # Regions have the order of `labels`; the background is none of them.
            named = dict(zip((name for name, value in named.items() if value != 0), order, strict=True))
        return ", ".join(f"{value} {name}" for name, value in named.items() if value != 0)

    @property
    def window(self) -> tuple[int, ...]:
        """Voxels per axis of the network's input."""
        return tuple(self.planned.configuration_manager.patch_size)

    @cached_property
    def planned(self) -> PlannedConfiguration:
        """What nnU-Net planned for the configuration.

        Raises:
            UserError: if the plans or the dataset.json are not nnU-Net's.
        """
        from nnunetv2_ext.plans.configuration import read_configuration

        try:
            lacking = [key for key in ("labels", "file_ending") if key not in self.dataset_json]
            if lacking:
                raise KeyError(lacking[0])
            planned = read_configuration(self.plans_json, self.dataset_json, self.configuration)
            if not planned.configuration_manager.patch_size or not self.channels:
                raise ValueError("no patch size or no channels")
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
            raise UserError(
                f"The plans or the dataset.json of {self.source} cannot be used ({error!r}): take the model from where "
                "it was trained again."
            ) from error
        return planned
