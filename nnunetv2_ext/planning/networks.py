"""Networks of trainers, ours and nnU-Net's own, as planning asks for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunetv2_ext.architectures.geometry import Geometry, default_network
from nnunetv2_ext.architectures.layers.window_attention import WindowLayout
from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.catalog import BASELINE
from nnunetv2_ext.planning.memory import StepMemory, predict_step
from nnunetv2_ext.trainers import find_own_trainer, find_trainer
from nnunetv2_ext.trainers.names import parse_name
from nnunetv2_ext.trainers.recipes import NNUNET, Recipe

__all__ = ["TrainedNetwork", "find_trained_network", "padding_waste"]


@dataclass(frozen=True)
class TrainedNetwork:
    """What planning needs to know of a trainer.

    Attributes:
        name: name of the trainer.
        dims: the dimensions that it serves.
        recipe: how it is trained.
        batch_size: a variant's own one, instead of the plan's.
        mixed_precision: whether it trains under autocast.
        make: builds the network for a geometry, input channels and classes.
    """

    name: str
    dims: tuple[int, ...]
    recipe: Recipe
    batch_size: int | None
    mixed_precision: bool
    make: Callable[[Geometry, int, int], nn.Module]

    def build(self, geometry: Geometry, input_channels: int, num_classes: int) -> nn.Module:
        """Build the network without memory for its weights.

        Raises:
            ValueError: if it refuses the sizes.
        """
        with torch.device("meta"):
            return self.make(geometry, input_channels, num_classes)

    def predict(
        self,
        geometry: Geometry,
        input_channels: int,
        num_classes: int,
        batch_size: int,
        *,
        regions: bool = False,
        compiled: bool = False,
    ) -> StepMemory:
        """Predict the memory of a training step; see `predict_step`."""
        return predict_step(
            lambda: self.make(geometry, input_channels, num_classes),
            input_channels=input_channels,
            num_classes=num_classes,
            patch_size=geometry.patch_size,
            batch_size=self.batch_size or batch_size,
            recipe=self.recipe,
            regions=regions,
            mixed_precision=self.mixed_precision,
            compiled=compiled,
        )


def find_trained_network(trainer_name: str) -> TrainedNetwork:
    """Look up a trainer of this package, nnU-Net's own one, or a variant of either.

    Raises:
        UserError: if there is none; says which name was probably meant.
    """
    parsed = parse_name(trainer_name)
    trainer: Any = find_trainer(trainer_name) if parsed is not None else find_own_trainer(trainer_name)
    variant = getattr(trainer, "variant", None)
    own = parsed is not None and parsed[0] is not BASELINE
    return TrainedNetwork(
        name=trainer_name,
        dims=trainer.network_class.served_dims if own else BASELINE.dims,
        recipe=trainer.recipe if own else NNUNET,
        batch_size=None if variant is None else variant.batch_size,
        mixed_precision=variant is None or not variant.no_amp,
        make=trainer.build_network if own else _build_planned,
    )


def _build_planned(geometry: Geometry, input_channels: int, num_classes: int) -> nn.Module:
    """Build the network that a plan names, or nnU-Net's default one for a geometry without a plan."""
    planned = geometry.network or default_network(geometry)
    return get_network_from_plans(
        planned.class_name,
        dict(planned.arguments),
        planned.imports,
        input_channels,
        num_classes,
        allow_init=False,
        deep_supervision=True,
    )


def padding_waste(network: nn.Module) -> float:
    """Return the share of positions that a network computes on beyond those of its maps: padding of its windows.

    Args:
        network: any; one that does not pad wastes nothing.
    """
    patch = math.prod(network.patch_size) if isinstance(network, SegmentationNetwork) else 1
    padded = math.prod(network.padded_size) if isinstance(network, SegmentationNetwork) else 1
    maps, windows = patch, padded
    layouts = [module for module in network.modules() if isinstance(module, WindowLayout)]
    if layouts:
        maps = sum(math.prod(layout.grid) for layout in layouts)
        windows = sum(math.prod(layout.padded) for layout in layouts)
    return max(windows / maps, padded / patch) - 1
