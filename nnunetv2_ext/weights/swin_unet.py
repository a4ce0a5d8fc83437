"""The authors' Swin-Unet: their settings and the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from nnunetv2_ext.architectures.swin_unet import PATCH, STEM_CHANNELS, SwinUNet

__all__ = ["IGNORED", "SEGMENTATION_LAYERS", "authors_name", "build"]

# The authors' names of the layers that depend on the classes of a dataset.
SEGMENTATION_LAYERS = re.compile(r"^swin_unet\.output\.")
# The authors' names of tensors that follow from the settings, or that their RecA network holds and never uses.
IGNORED = re.compile(r"(^|\.)(relative_position_index|attn_mask)$|^swin_unet\.decoder0\.")

# Each rule is tried once, in this order: places in the network first, then names inside a block.
_RENAMED = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^embedding\.project\.", "swin_unet.patch_embed.proj."),
        (r"^embedding\.norm\.", "swin_unet.patch_embed.norm."),
        (r"^stages\.", "swin_unet.layers."),
        (r"^mergings\.(\d+)\.", r"swin_unet.layers.\1.downsample."),
        (r"^norm\.", "swin_unet.norm."),
        (r"^decoder\.levels\.0\.expand\.", "swin_unet.layers_up.0."),
        (r"^decoder\.levels\.(\d+)\.expand\.", r"swin_unet.layers_up.\1.upsample."),
        (r"^decoder\.levels\.(\d+)\.join\.", lambda match: f"swin_unet.concat_back_dim.{int(match[1]) + 1}."),
        (r"^decoder\.levels\.(\d+)\.stage\.", lambda match: f"swin_unet.layers_up.{int(match[1]) + 1}."),
        (r"^decoder\.norm\.", "swin_unet.norm_up."),
        (r"^decoder\.expand\.", "swin_unet.up."),
        (r"^decoder\.seg_layers\.0\.", "swin_unet.output."),
        (r"\.attention\.position\.table$", ".attn.relative_position_bias_table"),
        (r"\.attention\.", ".attn."),
        (r"(\.blocks\.\d+)\.norm\.", r"\1.norm1."),
        (r"(\.blocks\.\d+)\.mlp\.norm\.", r"\1.norm2."),
    )
]


def authors_name(name: str) -> str:
    """Give the name that the authors' code has for a tensor of `SwinUNet`."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def build(config: Mapping[str, Any]) -> nn.Module:
    """Build the network that an authors' configuration describes.

    Raises:
        ValueError: for patches of another size than 4, or a stem of other channels than the network would build.
        KeyError: if a setting is missing.
    """
    channels = config["input_channels"]
    stem_channels = STEM_CHANNELS if channels == 1 else channels
    if (config["embed_patch"], config["stem_channels"]) != (PATCH, stem_channels):
        raise ValueError(
            f"Swin-Unet for {channels} channels embeds patches of {PATCH} pixels of {stem_channels} channels, and the "
            f"configuration has embed_patch {config['embed_patch']} and stem_channels {config['stem_channels']}."
        )
    settings = (
        *("input_channels", "num_classes", "embed_dim", "depths", "num_heads", "window_size", "mlp_ratio"),
        *("drop_path_rate", "reca"),
    )
    return SwinUNet(patch_size=config["img_size"], **{key: config[key] for key in settings})
