"""DANIE under nnU-Net, with the optimiser and loss of the paper; docs/networks/danie.md says what else is kept.

The paper trains from ImageNet weights, and does not state a schedule, an augmentation or an input size. Not kept: its
epochs and fixed batch sizes (nnU-Net's length and the plan's batches).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from nnunetv2_ext.architectures.danie import DANIE, PRESETS
from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.trainers.base import nnUNetTrainerExt
from nnunetv2_ext.trainers.pretrained import ImageNetStartMixin
from nnunetv2_ext.trainers.recipes import Recipe
from nnunetv2_ext.weights.danie import imagenet_weights
from nnunetv2_ext.weights.imagenet import ImageNetWeights

__all__ = [
    "nnUNetTrainerDANIE_L",
    "nnUNetTrainerDANIE_LDS",
    "nnUNetTrainerDANIE_L_pretrained",
    "nnUNetTrainerDANIE_S",
    "nnUNetTrainerDANIE_SDS",
    "nnUNetTrainerDANIE_S_pretrained",
]

PAPER = Recipe(
    optimizer="AdamW",
    initial_lr=1e-4,
    weight_decay=1e-4,
    dice_weight=0.7,
    cross_entropy_weight=0.3,
    weigh_last_output=True,
)


class nnUNetTrainerDANIE_S(nnUNetTrainerExt):
    """DANIE-S, from random weights; the loss is on the sum of the four predictions, as in the paper."""

    network_class: ClassVar[type[SegmentationNetwork]] = DANIE
    network_settings: ClassVar[Mapping[str, Any]] = PRESETS["S"]
    recipe: ClassVar[Recipe] = PAPER


class nnUNetTrainerDANIE_L(nnUNetTrainerDANIE_S):
    """DANIE-L, the paper's better network, from random weights."""

    network_settings: ClassVar[Mapping[str, Any]] = PRESETS["L"]


class nnUNetTrainerDANIE_SDS(nnUNetTrainerDANIE_S):
    """DANIE-S with a loss on the sum and on each of the four predictions, which the paper does not have.

    All five are of the input's size; their weights are 16, 8, 4, 2 and 1 parts of 31, the sum first, the coarsest last.
    """

    network_settings: ClassVar[Mapping[str, Any]] = {**PRESETS["S"], "auxiliary_heads": True}


class nnUNetTrainerDANIE_LDS(nnUNetTrainerDANIE_SDS):
    """DANIE-L with a loss on the sum and on each of the four predictions."""

    network_settings: ClassVar[Mapping[str, Any]] = {**PRESETS["L"], "auxiliary_heads": True}


class nnUNetTrainerDANIE_S_pretrained(ImageNetStartMixin, nnUNetTrainerDANIE_S):
    """DANIE-S whose self-attention stream starts from ImageNet weights, as in the paper."""

    imagenet_weights: ClassVar[Callable[[Any], ImageNetWeights]] = staticmethod(imagenet_weights)


class nnUNetTrainerDANIE_L_pretrained(ImageNetStartMixin, nnUNetTrainerDANIE_L):
    """DANIE-L whose self-attention stream starts from ImageNet weights, as in the paper."""

    imagenet_weights: ClassVar[Callable[[Any], ImageNetWeights]] = staticmethod(imagenet_weights)
