"""Dual cross-attention under nnU-Net; docs/networks/dca.md says how it adapts to plans."""

from __future__ import annotations

from typing import ClassVar

from nnunetv2_ext.architectures.dca_planned import DCAPlannedNetwork
from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.trainers.base import nnUNetTrainerExt

__all__ = ["nnUNetTrainerDCA"]


class nnUNetTrainerDCA(nnUNetTrainerExt):
    """DCA on the network that the plan names, plain or residual.

    The recipe is nnU-Net's own, so that what differs from `-tr nnUNetTrainer` with the same plans is DCA alone. Not
    kept of the paper's: Adam at a constant 1e-4 with soft Dice loss, 200 epochs, images resized to 224 x 224.
    """

    network_class: ClassVar[type[SegmentationNetwork]] = DCAPlannedNetwork
