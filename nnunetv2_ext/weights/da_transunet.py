"""The authors' DA-TransUNet: their settings and the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from nnunetv2_ext.architectures.da_transunet import SKIPS, DATransUNet

__all__ = ["IGNORED", "SEGMENTATION_LAYERS", "authors_name", "build"]

# The authors' names of the layers that depend on the classes of a dataset.
SEGMENTATION_LAYERS = re.compile(r"^segmentation_head\.")
# The authors' names of tensors that their network holds and that cannot influence its output: two of the three outputs
# of a dual-attention block, and the blocks of the decoder that are on no path.
IGNORED = re.compile(r"\.(conv6|conv7)\.|^decoder\.blocks\.(?!0\.da3\.|1\.da2\.)\d+\.da\d+\.")

# Each rule is tried once, in this order: places in the network first, then names inside a module.
_RENAMED = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^stem\.root\.", "transformer.embeddings.hybrid_model.root.conv."),
        (r"^stem\.root_norm\.", "transformer.embeddings.hybrid_model.root.gn."),
        (r"^stem\.blocks\.(\d+)\.(\d+)\.", lambda match: _unit(int(match[1]) + 1, int(match[2]) + 1)),
        (r"^embedding\.project\.", "transformer.embeddings.patch_embeddings."),
        (r"^embedding\.attention\.", "transformer.embeddings.DAblock1."),
        (r"^embedding\.position$", "transformer.embeddings.position_embeddings"),
        (r"^transformer\.layers\.(\d+)\.attention\.", r"transformer.encoder.layer.\1.attn."),
        (r"^transformer\.layers\.", "transformer.encoder.layer."),
        (r"^transformer\.norm\.", "transformer.encoder.encoder_norm."),
        (r"^decoder\.head\.", "decoder.conv_more."),
        (r"^decoder\.levels\.0\.attention\.", "decoder.blocks.0.da3."),
        (r"^decoder\.levels\.1\.attention\.", "decoder.blocks.1.da2."),
        (r"^decoder\.levels\.", "decoder.blocks."),
        (r"^decoder\.seg_layers\.", "segmentation_head."),
        (r"\.norm([123])\.", r".gn\1."),
        (r"\.project\.", ".downsample."),
        (r"\.project_norm\.", ".gn_proj."),
        (r"\.mlp_norm\.", ".ffn_norm."),
        (r"\.fc([12])\.", r".ffn.fc\1."),
        (r"\.position_in\.", ".conv5a."),
        (r"\.position_attention\.(query|key|value)\.", r".sa.\1_conv."),
        (r"\.position_attention\.", ".sa."),
        (r"\.position_out\.", ".conv51."),
        (r"\.channel_in\.", ".conv5c."),
        (r"\.channel_attention\.", ".sc."),
        (r"\.channel_out\.", ".conv52."),
        (r"\.mix\.", ".conv8.1."),
    )
]


def _unit(block: int, unit: int) -> str:
    return f"transformer.embeddings.hybrid_model.body.block{block}.unit{unit}."


def authors_name(name: str) -> str:
    """Give the name that the authors' code has for a tensor of `DATransUNet`."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def build(config: Mapping[str, Any]) -> nn.Module:
    """Build the network that an authors' configuration describes.

    Raises:
        ValueError: for another number of skips than the three of the decoder.
        KeyError: if a setting is missing.
    """
    if config["n_skip"] != SKIPS:
        raise ValueError(f"DA-TransUNet has {SKIPS} skips, and the configuration has n_skip {config['n_skip']}.")
    settings = (
        *("input_channels", "num_classes", "reca", "stem_width", "resnet_layers", "hidden_size", "mlp_dim"),
        *("num_heads", "num_layers", "decoder_head_channels", "decoder_channels"),
    )
    return DATransUNet(patch_size=config["img_size"], **{key: config[key] for key in settings})
