"""Weights for DA-TransUNet: the authors' own, and those of the ImageNet model that they start from."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Size, Tensor, nn

from nnunetv2_ext.architectures.da_transunet import SKIPS, DATransUNet
from nnunetv2_ext.weights.authors import AuthorsSystem
from nnunetv2_ext.weights.imagenet import ImageNetWeights, Source
from nnunetv2_ext.weights.renaming import compile_rules, rename

__all__ = ["SYSTEM", "authors_name", "build", "imagenet_weights", "resize_positions"]

IMAGENET_MODEL = "vit_base_r50_s16_224.orig_in21k"


# Each rule is tried once, in this order: places in the network first, then names inside a module.
_RENAMED = compile_rules(
    (
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
)


def _unit(block: int, unit: int) -> str:
    return f"transformer.embeddings.hybrid_model.body.block{block}.unit{unit}."


def authors_name(name: str) -> str:
    """Return the name that the authors' code has for a tensor of `DATransUNet`."""
    return rename(name, _RENAMED)


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


SYSTEM = AuthorsSystem(
    build=build,
    naming=lambda _network: authors_name,
    segmentation_layers=re.compile(r"^segmentation_head\."),
    # Held by their network without influence on its output: two of the three outputs of a dual-attention block, and the
    # blocks of the decoder that are on no path.
    ignored=re.compile(r"\.(conv6|conv7)\.|^decoder\.blocks\.(?!0\.da3\.|1\.da2\.)\d+\.da\d+\."),
)


# From our names to timm's.
_TIMM_NAMES = compile_rules(
    (
        (r"^stem\.root\.", "patch_embed.backbone.stem.conv."),
        (r"^stem\.root_norm\.", "patch_embed.backbone.stem.norm."),
        (
            r"^stem\.blocks\.(\d+)\.(\d+)\.(conv\d|norm\d)\.",
            r"patch_embed.backbone.stages.\1.blocks.\2.\3.",
        ),
        (r"^stem\.blocks\.(\d+)\.(\d+)\.project\.", r"patch_embed.backbone.stages.\1.blocks.\2.downsample.conv."),
        (
            r"^stem\.blocks\.(\d+)\.(\d+)\.project_norm\.",
            r"patch_embed.backbone.stages.\1.blocks.\2.downsample.norm.",
        ),
        (r"^embedding\.project\.", "patch_embed.proj."),
        (r"^embedding\.position$", "pos_embed"),
        (r"^transformer\.layers\.(\d+)\.attention_norm\.", r"blocks.\1.norm1."),
        (r"^transformer\.layers\.(\d+)\.attention\.(query|key|value)\.", r"blocks.\1.attn.qkv."),
        (r"^transformer\.layers\.(\d+)\.attention\.out\.", r"blocks.\1.attn.proj."),
        (r"^transformer\.layers\.(\d+)\.mlp_norm\.", r"blocks.\1.norm2."),
        (r"^transformer\.layers\.(\d+)\.(fc\d)\.", r"blocks.\1.mlp.\2."),
        (r"^transformer\.norm\.", "norm."),
    )
)
_THIRDS = ("query", "key", "value")


def resize_positions(grid: tuple[int, ...]) -> Callable[[Tensor, Size], Tensor]:
    """Return a function that drops the class token of a position table and resizes the rest, a square, to a grid.

    The interpolation is linear and keeps corners at corners, as the authors' is.
    """

    def resize(table: Tensor, shape: Size) -> Tensor:
        side = math.isqrt(table.shape[1] - 1)
        positions = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        positions = F.interpolate(positions, size=grid, mode="bilinear", align_corners=True)
        return positions.flatten(2).transpose(1, 2).reshape(shape)

    return resize


def imagenet_weights(network: DATransUNet) -> ImageNetWeights:
    """Describe which tensors of a network start from the hybrid vision transformer that the authors start from.

    These are all but the dual-attention blocks and the decoder. timm fits the first convolution to the input's channels
    (the planes in turn, scaled by 3 / channels); a single channel is repeated to three and needs none of it.
    """
    channels = network.embedding.project.out_channels
    layers: list[Any] = list(network.transformer.layers)

    def source(name: str) -> Source | None:
        for pattern, replacement in _TIMM_NAMES:
            if pattern.match(name):
                theirs = pattern.sub(replacement, name)
                if ".attn.qkv." in theirs:
                    third = _THIRDS.index(name.split(".")[-2])
                    return Source(theirs, rows=slice(third * channels, (third + 1) * channels))
                return Source(theirs, resize=resize_positions(network.grid) if theirs == "pos_embed" else None)
        return None

    return ImageNetWeights(
        model=IMAGENET_MODEL,
        source=source,
        unused=re.compile(r"^cls_token$"),
        arguments={
            "in_chans": network.stem.root.in_channels,
            "embed_dim": channels,
            "depth": len(layers),
            "num_heads": layers[0].attention.num_heads,
            "mlp_ratio": layers[0].fc1.out_features / channels,
        },
    )
