"""The six U-Nets of the DCA paper under nnU-Net, each without and with dual cross-attention (DCA).

All train with nnU-Net's own recipe and deep supervision at every decoder level, so that a comparison shows the network
alone. Not kept of the paper: Adam at 1e-4 without a schedule, 200 epochs on images of 224 x 224, a loss of Dice alone,
and the choice of the epoch that is best on the test set. docs/networks/dca.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.architectures.unets.double_unet import DoubleUNet
from nnunetv2_ext.architectures.unets.multi_res_unet import MultiResUNet
from nnunetv2_ext.architectures.unets.r2unet import R2UNet
from nnunetv2_ext.architectures.unets.resunet_pp import ResUNetPP
from nnunetv2_ext.architectures.unets.unet import UNet
from nnunetv2_ext.architectures.unets.vnet import VNet
from nnunetv2_ext.trainers.base import nnUNetTrainerExt

__all__ = [
    "nnUNetTrainerDCADoubleUNet",
    "nnUNetTrainerDCAMultiResUNet",
    "nnUNetTrainerDCAR2UNet",
    "nnUNetTrainerDCAResUNetPP",
    "nnUNetTrainerDCAUNet",
    "nnUNetTrainerDCAVNet",
    "nnUNetTrainerDoubleUNet",
    "nnUNetTrainerMultiResUNet",
    "nnUNetTrainerR2UNet",
    "nnUNetTrainerResUNetPP",
    "nnUNetTrainerUNet",
    "nnUNetTrainerVNet",
]

PLAIN: dict[str, Any] = {"dca": False, "auxiliary_heads": True}
WITH_DCA: dict[str, Any] = {"dca": True, "auxiliary_heads": True}


class nnUNetTrainerUNet(nnUNetTrainerExt):
    """U-Net with the plan's widths."""

    network_class: ClassVar[type[SegmentationNetwork]] = UNet
    network_settings: ClassVar[Mapping[str, Any]] = PLAIN


class nnUNetTrainerDCAUNet(nnUNetTrainerUNet):
    """U-Net with DCA."""

    network_settings: ClassVar[Mapping[str, Any]] = WITH_DCA


class nnUNetTrainerVNet(nnUNetTrainerExt):
    """V-Net; in 3D with half of the plan's widths."""

    network_class: ClassVar[type[SegmentationNetwork]] = VNet
    network_settings: ClassVar[Mapping[str, Any]] = PLAIN


class nnUNetTrainerDCAVNet(nnUNetTrainerVNet):
    """V-Net with DCA."""

    network_settings: ClassVar[Mapping[str, Any]] = WITH_DCA


class nnUNetTrainerR2UNet(nnUNetTrainerExt):
    """R2U-Net; in 3D with half of the plan's widths."""

    network_class: ClassVar[type[SegmentationNetwork]] = R2UNet
    network_settings: ClassVar[Mapping[str, Any]] = PLAIN


class nnUNetTrainerDCAR2UNet(nnUNetTrainerR2UNet):
    """R2U-Net with DCA."""

    network_settings: ClassVar[Mapping[str, Any]] = WITH_DCA


class nnUNetTrainerResUNetPP(nnUNetTrainerExt):
    """ResUNet++; in 3D with half of the plan's widths."""

    network_class: ClassVar[type[SegmentationNetwork]] = ResUNetPP
    network_settings: ClassVar[Mapping[str, Any]] = PLAIN


class nnUNetTrainerDCAResUNetPP(nnUNetTrainerResUNetPP):
    """ResUNet++ with DCA."""

    network_settings: ClassVar[Mapping[str, Any]] = WITH_DCA


class nnUNetTrainerDoubleUNet(nnUNetTrainerExt):
    """DoubleU-Net with norms in its first encoder; in 3D with half of the plan's widths."""

    network_class: ClassVar[type[SegmentationNetwork]] = DoubleUNet
    network_settings: ClassVar[Mapping[str, Any]] = PLAIN


class nnUNetTrainerDCADoubleUNet(nnUNetTrainerDoubleUNet):
    """DoubleU-Net with three DCA modules."""

    network_settings: ClassVar[Mapping[str, Any]] = WITH_DCA


class nnUNetTrainerMultiResUNet(nnUNetTrainerExt):
    """MultiResUNet; in 3D with half of the plan's widths."""

    network_class: ClassVar[type[SegmentationNetwork]] = MultiResUNet
    network_settings: ClassVar[Mapping[str, Any]] = PLAIN


class nnUNetTrainerDCAMultiResUNet(nnUNetTrainerMultiResUNet):
    """MultiResUNet with DCA."""

    network_settings: ClassVar[Mapping[str, Any]] = WITH_DCA
