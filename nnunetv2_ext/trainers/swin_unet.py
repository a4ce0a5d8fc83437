"""Swin-Unet under nnU-Net, without and with RecA; docs/networks/swin_unet.md says what of the recipe is kept.

Kept: the network. Not kept: SGD at 0.05 without warm-up, which presupposes ImageNet weights; 150 epochs on slices of
224 x 224, the authors' augmentation, and 0.4 cross-entropy + 0.6 Dice (nnU-Net's frame, which is the same for both
networks of a comparison).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.architectures.swin_unet import SwinUNet
from nnunetv2_ext.trainers.base import nnUNetTrainerExt
from nnunetv2_ext.trainers.pretrained import ImageNetStartMixin
from nnunetv2_ext.trainers.recipes import TRANSFORMER, Recipe
from nnunetv2_ext.weights.imagenet import ImageNetWeights
from nnunetv2_ext.weights.swin_unet import imagenet_weights

__all__ = [
    "nnUNetTrainerSwinUNet",
    "nnUNetTrainerSwinUNetRecA",
    "nnUNetTrainerSwinUNetRecA_pretrained",
    "nnUNetTrainerSwinUNet_pretrained",
]


class nnUNetTrainerSwinUNet(nnUNetTrainerExt):
    """Swin-Unet with plain self-attention, from random weights."""

    network_class: ClassVar[type[SegmentationNetwork]] = SwinUNet
    network_settings: ClassVar[Mapping[str, Any]] = {"reca": False}
    recipe: ClassVar[Recipe] = TRANSFORMER


class nnUNetTrainerSwinUNetRecA(nnUNetTrainerSwinUNet):
    """Swin-Unet with RecA in the encoder, from random weights."""

    network_settings: ClassVar[Mapping[str, Any]] = {"reca": True}


class nnUNetTrainerSwinUNet_pretrained(ImageNetStartMixin, nnUNetTrainerSwinUNet):
    """Swin-Unet with plain self-attention, from ImageNet weights, as the authors start."""

    imagenet_weights: ClassVar[Callable[[Any], ImageNetWeights]] = staticmethod(imagenet_weights)


class nnUNetTrainerSwinUNetRecA_pretrained(ImageNetStartMixin, nnUNetTrainerSwinUNetRecA):
    """Swin-Unet with RecA, from ImageNet weights, as the authors start."""

    imagenet_weights: ClassVar[Callable[[Any], ImageNetWeights]] = staticmethod(imagenet_weights)
