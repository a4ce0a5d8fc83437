"""SwinUNETR of the authors of RecA and of MONAI, which have one set of names: settings and names of tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from nnunetv2_ext.architectures.swin_unetr import SwinUNETR
from nnunetv2_ext.weights.authors import AuthorsSystem
from nnunetv2_ext.weights.renaming import compile_rules, rename

__all__ = ["SYSTEM", "authors_name", "build"]


_RENAMED = compile_rules(
    (
        (r"^encoder\.embedding\.", "swinViT.patch_embed.proj."),
        (r"^encoder\.stages\.(\d+)\.", lambda match: f"swinViT.layers{int(match[1]) + 1}.0."),
        (r"\.merging\.", ".downsample."),
        (r"\.attention\.position\.table$", ".attn.relative_position_bias_table"),
        (r"\.attention\.", ".attn."),
        (r"(\.blocks\.\d+)\.norm\.", r"\1.norm1."),
        (r"\.mlp\.norm\.", ".norm2."),
        (r"\.mlp\.fc(\d)\.", r".mlp.linear\1."),
        (r"\.(conv[123])\.weight$", r".\1.conv.weight"),
        (r"^image_skip\.", "encoder1.layer."),
        (r"^map_skips\.(\d+)\.", lambda match: f"encoder{int(match[1]) + 2}.layer."),
        (r"^bottom\.", "encoder10.layer."),
        (r"^decoder\.levels\.(\d+)\.upsample\.", lambda match: f"decoder{5 - int(match[1])}.transp_conv.conv."),
        (r"^decoder\.levels\.(\d+)\.block\.", lambda match: f"decoder{5 - int(match[1])}.conv_block."),
        (r"^decoder\.seg_layers\.0\.", "out.conv.conv."),
    )
)


def authors_name(name: str) -> str:
    """Return the name that MONAI and the authors of RecA have for a tensor of `SwinUNETR`."""
    return rename(name, _RENAMED)


def build(config: Mapping[str, Any]) -> nn.Module:
    """Build the network that an authors' configuration describes.

    Raises:
        KeyError: if a setting is missing.
    """
    patch_size = tuple(config["img_size"])
    # One stride for the embedding; every merging halves.
    strides = ((config["embed_patch"],) * len(patch_size), *((2,) * len(patch_size),) * 4)
    return SwinUNETR(
        patch_size=patch_size,
        strides=strides,
        merging=config["patch_merging"],
        **{
            key: config[key]
            for key in (
                *("input_channels", "num_classes", "feature_size", "depths", "num_heads", "window_size"),
                *("mlp_ratio", "drop_path_rate", "position_index", "reca"),
            )
        },
    )


SYSTEM = AuthorsSystem(
    build=build,
    naming=lambda _network: authors_name,
    segmentation_layers=re.compile(r"^out\."),
    # It follows from the window.
    ignored=re.compile(r"\.relative_position_index$"),
)
