"""PECA-Net under nnU-Net; docs/networks/peca_net.md says what of the paper's recipe is kept, and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.architectures.peca_net import PECANet
from nnunetv2_ext.trainers.base import nnUNetTrainerExt
from nnunetv2_ext.trainers.recipes import Recipe

__all__ = ["nnUNetTrainerPECANet", "nnUNetTrainerPECANetDS"]


class nnUNetTrainerPECANet(nnUNetTrainerExt):
    """PECA-Net as published: no auxiliary heads.

    The authors trained with nnU-Net v1's recipe, which is nnU-Net v2's: SGD with Nesterov momentum 0.99 from 1e-2, poly
    decay, Dice and cross-entropy, batch size from the plan. Not kept: their fixed patch sizes (the plan's are used) and
    weight decay on memory units, layer scales, position tables, temperatures and norms.
    """

    network_class: ClassVar[type[SegmentationNetwork]] = PECANet
    recipe: ClassVar[Recipe] = Recipe(weigh_last_output=True)


class nnUNetTrainerPECANetDS(nnUNetTrainerPECANet):
    """PECA-Net with the two auxiliary heads that the authors' code has and their trainers switch off.

    Weights of the three outputs are 4/7, 2/7 and 1/7: unlike nnU-Net, the authors do not leave out the coarsest.
    """

    network_settings: ClassVar[Mapping[str, Any]] = {"auxiliary_heads": True}
