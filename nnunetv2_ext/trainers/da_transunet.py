"""DA-TransUNet under nnU-Net, without and with RecA; docs/networks/da_transunet.md says what of the recipe is kept.

Kept: the network, equal weights of cross-entropy and Dice. Not kept: SGD at 0.01 without warm-up, which presupposes
ImageNet weights; 150 epochs on slices of 224 x 224, and the authors' augmentation (nnU-Net's frame, which is the same
for both networks of a comparison).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from nnunetv2_ext.architectures.da_transunet import DATransUNet
from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.trainers.base import nnUNetTrainerExt
from nnunetv2_ext.trainers.pretrained import ImageNetStartMixin
from nnunetv2_ext.trainers.recipes import TRANSFORMER, Recipe
from nnunetv2_ext.weights.da_transunet import imagenet_weights
from nnunetv2_ext.weights.imagenet import ImageNetWeights

__all__ = [
    "nnUNetTrainerDATransUNet",
    "nnUNetTrainerDATransUNetRecA",
    "nnUNetTrainerDATransUNetRecA_pretrained",
    "nnUNetTrainerDATransUNet_pretrained",
]

# timm's model has no smaller stem than the published one.
TIMMS_STEM: Mapping[str, Any] = {"stem_width": 64, "resnet_layers": (3, 4, 9)}


class nnUNetTrainerDATransUNet(nnUNetTrainerExt):
    """DA-TransUNet with plain self-attention in its transformer, from random weights."""

    network_class: ClassVar[type[SegmentationNetwork]] = DATransUNet
    network_settings: ClassVar[Mapping[str, Any]] = {"reca": False}
    recipe: ClassVar[Recipe] = TRANSFORMER


class nnUNetTrainerDATransUNetRecA(nnUNetTrainerDATransUNet):
    """DA-TransUNet with RecA in its transformer, from random weights."""

    network_settings: ClassVar[Mapping[str, Any]] = {"reca": True}


class nnUNetTrainerDATransUNet_pretrained(ImageNetStartMixin, nnUNetTrainerDATransUNet):
    """DA-TransUNet with plain self-attention, from ImageNet weights, as the authors start."""

    imagenet_weights: ClassVar[Callable[[Any], ImageNetWeights]] = staticmethod(imagenet_weights)
    narrow_settings: ClassVar[Mapping[str, Any]] = TIMMS_STEM


class nnUNetTrainerDATransUNetRecA_pretrained(ImageNetStartMixin, nnUNetTrainerDATransUNetRecA):
    """DA-TransUNet with RecA, from ImageNet weights, as the authors start."""

    imagenet_weights: ClassVar[Callable[[Any], ImageNetWeights]] = staticmethod(imagenet_weights)
    narrow_settings: ClassVar[Mapping[str, Any]] = TIMMS_STEM
