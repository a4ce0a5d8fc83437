"""Variants of a trainer, made from its name (`names.py` has the grammar)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from nnunetv2_ext.trainers.logs import CurvesMixin
from nnunetv2_ext.trainers.names import Variant
from nnunetv2_ext.trainers.seeding import SeedMixin

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Trainer
else:
    # A mixin: the trainer stands after it in the bases.
    Trainer = object

__all__ = ["make_variant"]

VALIDATION_SHARE = 5


class VariantMixin(Trainer):
    """Change what the name of the class says, and leave the rest to the trainer that stands after it in the bases."""

    variant: ClassVar[Variant]

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        variant = self.variant
        if variant.epochs is not None:
            self.num_epochs = variant.epochs
        if variant.iterations is not None:
            self.num_iterations_per_epoch = variant.iterations
            self.num_val_iterations_per_epoch = max(1, variant.iterations // VALIDATION_SHARE)
        if variant.initial_lr is not None:
            self.initial_lr = variant.initial_lr
        if variant.batch_size is not None:
            # A copy of the plan's configuration that belongs to this trainer: the saved plans keep their batch size.
            self.configuration_manager.configuration["batch_size"] = variant.batch_size
        if variant.no_amp:
            self.grad_scaler = None

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self.variant.no_mirroring:
            mirror_axes = self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, initial_patch_size, mirror_axes

    def train_step(self, batch: dict) -> dict:
        with self._precision():
            return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        with self._precision():
            return super().validation_step(batch)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Make nnU-Net's autocast region compute in float32, for `_noAMP`.

        nnU-Net switches autocast on inside its steps and takes the type from torch's current setting. That setting is
        changed for the time of the step, instead of repeating nnU-Net's steps here.
        """
        if not self.variant.no_amp or self.device.type != "cuda":
            yield
            return
        before = torch.get_autocast_dtype(self.device.type)
        torch.set_autocast_dtype(self.device.type, torch.float32)
        try:
            yield
        finally:
            torch.set_autocast_dtype(self.device.type, before)


def make_variant(base: type, name: str, variant: Variant) -> type:
    """Make the class of a variant; the caller says in which module it lives."""
    attributes: dict[str, Any] = {
        "variant": variant,
        "__qualname__": name,
        "__doc__": f"{base.__name__} with {variant}.",
    }
    # Variants of nnU-Net's own trainer stop, resume, repeat and log as ours do: all can be part of one experiment.
    bases = (VariantMixin, base) if issubclass(base, CurvesMixin) else (VariantMixin, CurvesMixin, SeedMixin, base)
    return type(name, bases, attributes)
