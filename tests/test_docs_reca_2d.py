"""The pages about Swin-Unet and DA-TransUNet agree with the code: settings, plans, memory, golden files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from nnunetv2_ext.architectures import da_transunet, swin_unet
from nnunetv2_ext.architectures.cost import estimate_cost
from nnunetv2_ext.architectures.geometry import Geometry
from tests import golden_files
from tests.test_docs import ROOT, number, table

PAGES = {
    "swin_unet": (swin_unet.SwinUNet, swin_unet.PRESETS["synapse"]),
    "da_transunet": (da_transunet.DATransUNet, da_transunet.PRESETS["synapse"]),
}
GOLDEN = {
    "swin_unet": ("reca_swinunet-", "reca_2d_swinstage"),
    "da_transunet": (
        *("reca_datransunet-", "reca_2d_encoder", "reca_2d_vit", "reca_2d_r50stem"),
        *("reca_2d_pam", "reca_2d_cam", "reca_2d_dablock", "reca_2d_posresize"),
    ),
}

each_page = pytest.mark.parametrize("page", PAGES)


def path(page: str) -> Path:
    return ROOT / "docs" / "networks" / f"{page}.md"


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@each_page
def test_table_of_settings(page: str) -> None:
    network_class, settings = PAGES[page]
    rows = {row[0].strip("`"): row[1] for row in table(path(page), "argument")}
    assert {name: ast.literal_eval(rows[name]) for name in settings} == settings
    for reca in (False, True):
        with torch.device("meta"):
            count = count_parameters(network_class(**settings, reca=reca))
        assert number(rows["trainable parameters, without and with RecA"]) == count


@each_page
def test_table_of_plans(page: str) -> None:
    network_class, _ = PAGES[page]
    for row in table(path(page), "patch"):
        patch, channels, classes, padded = row[:4]
        geometry = Geometry.from_strides([int(size) for size in patch.split()], [(2, 2)])
        settings = network_class.settings_from_plan(geometry)
        with torch.device("meta"):
            network = network_class(int(channels), int(classes), **settings)
        assert " ".join(str(size) for size in network.padded_size) == padded
        assert number(row[-3]) == count_parameters(network)
        if page == "swin_unet":
            assert row[4:6] == [
                str(settings["window_size"]),
                " ".join(f"{height}x{width}" for height, width in network.grids),
            ]
        else:
            height, width = network.grid
            assert row[4] == f"{height} x {width} = {height * width}"


@pytest.mark.slow
@each_page
def test_multiply_adds_and_memory(page: str) -> None:
    """Of the authors' sizes with RecA, with the defaults and with checkpointing."""
    network_class, settings = PAGES[page]
    cost, least = (
        estimate_cost(lambda value=value: network_class(**settings, checkpointing=value)) for value in (False, True)
    )
    adds = f"{cost.multiply_adds / 1e9:.1f} G"
    kept = [f"{one.kept_bytes / 2**20:,.0f} MiB" for one in (cost, least)]
    rows = {row[0]: row[1] for row in table(path(page), "argument")}
    assert rows["multiply-adds, forward, one sample"] == adds
    assert table(path(page), "patch")[0][-2:] == [adds, kept[0]]
    assert table(path(page), "network")[1][2:] == kept


@each_page
def test_all_golden_files_are_named(page: str) -> None:
    named = {name for row in table(path(page), "golden file") for name in re.findall(r"`([^`]+)`", row[0])}
    assert named == {name for prefix in GOLDEN[page] for name in golden_files.names(prefix)}
