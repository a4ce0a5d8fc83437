"""SwinUNETR under nnU-Net, plain and with RecA; docs/networks/swin_unetr.md says what of the recipe is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.architectures.swin_unetr import SwinUNETR
from nnunetv2_ext.trainers.base import nnUNetTrainerExt
from nnunetv2_ext.trainers.pretrained import SelfSupervisedStartMixin
from nnunetv2_ext.trainers.recipes import TRANSFORMER, Recipe

__all__ = [
    "nnUNetTrainerSwinUNETR",
    "nnUNetTrainerSwinUNETRRecA",
    "nnUNetTrainerSwinUNETRRecA_pretrained",
    "nnUNetTrainerSwinUNETR_pretrained",
]


class nnUNetTrainerSwinUNETR(nnUNetTrainerExt):
    """SwinUNETR, the plain network that RecA is compared with: no auxiliary heads.

    Kept of the authors' recipe: AdamW from 1e-4 with weight decay 0.01, Dice and cross-entropy in equal parts, no deep
    supervision. Not kept: the constant learning rate (a short warm-up and nnU-Net's poly decay), weight decay of norms,
    biases and position tables, patches of 96 x 96 x 96 (the plan's are used), the background in the Dice loss, and
    their augmentation and choice of the best epoch (nnU-Net's are used).
    """

    network_class: ClassVar[type[SegmentationNetwork]] = SwinUNETR
    recipe: ClassVar[Recipe] = TRANSFORMER


class nnUNetTrainerSwinUNETRRecA(nnUNetTrainerSwinUNETR):
    """SwinUNETR with recurrent attention in all stages of its encoder; everything else is the same."""

    network_settings: ClassVar[Mapping[str, Any]] = {"reca": True}


class nnUNetTrainerSwinUNETR_pretrained(SelfSupervisedStartMixin, nnUNetTrainerSwinUNETR):
    """SwinUNETR whose encoder starts from self-supervised weights (docs/self_supervised_weights.md); in 3D."""


class nnUNetTrainerSwinUNETRRecA_pretrained(SelfSupervisedStartMixin, nnUNetTrainerSwinUNETRRecA):
    """SwinUNETR with RecA whose encoder starts from the self-supervised weights of plain attention; in 3D."""
