"""What files that 0.1.0 wrote name: plans files name networks by where they are imported from."""

from __future__ import annotations

import pydoc

import pytest

from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.trainers import find_own_trainer

# Written out: a network that moves must stay importable from where it was.
IN_PLANS_FILES = (
    "nnunetv2_ext.architectures.da_transunet.DATransUNet",
    "nnunetv2_ext.architectures.danie.DANIE",
    "nnunetv2_ext.architectures.dca_planned.DCAPlannedNetwork",
    "nnunetv2_ext.architectures.nnformer.NNFormer",
    "nnunetv2_ext.architectures.peca_net.PECANet",
    "nnunetv2_ext.architectures.swin_unet.SwinUNet",
    "nnunetv2_ext.architectures.swin_unetr.SwinUNETR",
    "nnunetv2_ext.architectures.unets.double_unet.DoubleUNet",
    "nnunetv2_ext.architectures.unets.multi_res_unet.MultiResUNet",
    "nnunetv2_ext.architectures.unets.r2unet.R2UNet",
    "nnunetv2_ext.architectures.unets.resunet_pp.ResUNetPP",
    "nnunetv2_ext.architectures.unets.unet.UNet",
    "nnunetv2_ext.architectures.unets.vnet.VNet",
)


@pytest.mark.parametrize("name", IN_PLANS_FILES)
def test_networks_are_where_plans_files_look_for_them(name: str) -> None:
    # nnU-Net finds a class by this function.
    build = pydoc.locate(f"{name}.from_plans_file")
    assert callable(build)
    assert issubclass(pydoc.locate(name), SegmentationNetwork)


def test_every_released_network_is_listed() -> None:
    networks = {find_own_trainer(entry.name).network_class for entry in TRAINERS}
    assert {f"{network.__module__}.{network.__qualname__}" for network in networks} == set(IN_PLANS_FILES)
