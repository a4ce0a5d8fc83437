"""nnFormer of the authors of RecA: their settings and the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from nnunetv2_ext.architectures.nnformer import NNFormer
from nnunetv2_ext.weights.authors import AuthorsSystem
from nnunetv2_ext.weights.renaming import compile_rules, rename

__all__ = ["SYSTEM", "authors_name", "build"]


_EMBEDDING = {
    "conv1": "proj1.conv1",
    "norm1": "proj1.norm1",
    "conv2": "proj1.conv2",
    "norm2": "proj1.norm2",
    "conv3": "proj2.conv1",
    "norm3": "proj2.norm1",
    "conv4": "proj2.conv2",
    "norm4": "norm",
}

_RENAMED = compile_rules(
    (
        (r"^encoder\.embedding\.(\w+)\.", lambda match: f"model_down.patch_embed.{_EMBEDDING[match[1]]}."),
        (r"^encoder\.stages\.", "model_down.layers."),
        (r"^encoder\.downsamplings\.(\d+)\.norm\.", r"model_down.layers.\1.downsample.norm."),
        (r"^encoder\.downsamplings\.(\d+)\.conv\.", r"model_down.layers.\1.downsample.reduction."),
        (r"^encoder\.norms\.", "model_down.norm"),
        (r"^decoder\.seg_layers\.(\d+)\.", r"final.\1.up."),
        (r"^decoder\.stages\.(\d+)\.norm\.", r"decoder.layers.\1.Upsample.norm."),
        (r"^decoder\.stages\.(\d+)\.upsample\.", r"decoder.layers.\1.Upsample.up."),
        # The first block of a decoder stage is the one with cross-attention.
        (r"^(decoder)\.stages\.(\d+)\.blocks\.(\d+)\.", lambda m: f"{m[1]}.layers.{m[2]}.blocks.{int(m[3]) + 1}."),
        (r"^decoder\.stages\.(\d+)\.cross\.", r"decoder.layers.\1.blocks.0."),
        (r"\.attention\.position\.table$", ".attn.relative_position_bias_table"),
        (r"\.attention\.", ".attn."),
        (r"(\.blocks\.\d+)\.norm\.", r"\1.norm1."),
        (r"\.mlp\.norm\.", ".norm2."),
    )
)


def authors_name(name: str) -> str:
    """Return the name that the authors' code has for a tensor of `NNFormer`."""
    return rename(name, _RENAMED)


def build(config: Mapping[str, Any]) -> nn.Module:
    """Build the network that an authors' configuration describes.

    Raises:
        KeyError: if a setting is missing.
    """
    return NNFormer(
        patch_size=config["img_size"],
        embedding_stride=config["embed_patch"],
        windows=config["window_size"],
        auxiliary_heads=config["deep_supervision"],
        **{
            key: config[key]
            for key in (
                *("input_channels", "num_classes", "embed_dim", "depths", "num_heads", "mlp_ratio"),
                *("drop_path_rate", "position_index", "reca", "deep_supervision"),
            )
        },
    )


SYSTEM = AuthorsSystem(
    build=build,
    naming=lambda _network: authors_name,
    segmentation_layers=re.compile(r"^final\."),
    # It follows from the window.
    ignored=re.compile(r"\.relative_position_index$"),
)
