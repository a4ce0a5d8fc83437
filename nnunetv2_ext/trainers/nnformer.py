"""nnFormer under nnU-Net, plain and with RecA; docs/networks/nnformer.md says what of the recipe is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.architectures.nnformer import NNFormer
from nnunetv2_ext.trainers.base import nnUNetTrainerExt
from nnunetv2_ext.trainers.recipes import TRANSFORMER, Recipe

__all__ = [
    "nnUNetTrainerNNFormer",
    "nnUNetTrainerNNFormerDS",
    "nnUNetTrainerNNFormerRecA",
    "nnUNetTrainerNNFormerRecADS",
]


class nnUNetTrainerNNFormer(nnUNetTrainerExt):
    """nnFormer, the plain network that RecA is compared with: no auxiliary heads.

    Kept of the recipe of RecA's authors: AdamW from 1e-4 with weight decay 0.01, stochastic depth of 0.2, Dice and
    cross-entropy in equal parts, no deep supervision. Not kept: the constant learning rate (a short warm-up and
    nnU-Net's poly decay), weight decay of norms, biases and position tables, patches of 96 x 96 x 96 (the plan's are
    used), the background in the Dice loss, and their augmentation and choice of the best epoch (nnU-Net's are used).
    """

    network_class: ClassVar[type[SegmentationNetwork]] = NNFormer
    recipe: ClassVar[Recipe] = TRANSFORMER


class nnUNetTrainerNNFormerRecA(nnUNetTrainerNNFormer):
    """nnFormer with recurrent attention in all stages of its encoder; everything else is the same."""

    network_settings: ClassVar[Mapping[str, Any]] = {"reca": True}


class nnUNetTrainerNNFormerDS(nnUNetTrainerNNFormer):
    """nnFormer with the two auxiliary heads that the authors' code has and their training switches off.

    The outputs have nnU-Net's weights: 2/3, 1/3 and 0.
    """

    network_settings: ClassVar[Mapping[str, Any]] = {"auxiliary_heads": True}


class nnUNetTrainerNNFormerRecADS(nnUNetTrainerNNFormer):
    """nnFormer with recurrent attention and the two auxiliary heads."""

    network_settings: ClassVar[Mapping[str, Any]] = {"reca": True, "auxiliary_heads": True}
