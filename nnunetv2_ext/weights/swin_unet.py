"""Weights for Swin-Unet: the authors' own, and those of the ImageNet model that they start from."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Size, Tensor, nn

from nnunetv2_ext.architectures.swin_unet import PATCH, STEM_CHANNELS, SwinUNet
from nnunetv2_ext.weights.authors import AuthorsSystem
from nnunetv2_ext.weights.imagenet import ImageNetWeights, Source
from nnunetv2_ext.weights.renaming import compile_rules, rename

__all__ = ["SYSTEM", "authors_name", "build", "imagenet_weights", "resize_position_table"]

IMAGENET_MODEL = "swin_tiny_patch4_window7_224.ms_in1k"


# Each rule is tried once, in this order: places in the network first, then names inside a block.
_RENAMED = compile_rules(
    (
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
)


def authors_name(name: str) -> str:
    """Return the name that the authors' code has for a tensor of `SwinUNet`."""
    return rename(name, _RENAMED)


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


SYSTEM = AuthorsSystem(
    build=build,
    naming=lambda _network: authors_name,
    segmentation_layers=re.compile(r"^swin_unet\.output\."),
    # They follow from the settings, or their RecA network holds and never uses them.
    ignored=re.compile(r"(^|\.)(relative_position_index|attn_mask)$|^swin_unet\.decoder0\."),
)


# From the authors' names to timm's. Like the authors, decoder levels start from the encoder stage of the same grid.
_TIMM_NAMES = compile_rules(
    (
        (r"^swin_unet\.(patch_embed|norm)\.", r"\1."),
        # timm merges at the start of a stage.
        (r"^swin_unet\.layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample."),
        (r"^swin_unet\.layers\.(\d+)\.blocks\.", r"layers.\1.blocks."),
        (r"^swin_unet\.layers_up\.(\d+)\.blocks\.", lambda match: f"layers.{3 - int(match[1])}.blocks."),
    )
)


def resize_position_table(window: tuple[int, ...]) -> Callable[[Tensor, Size], Tensor]:
    """Return a function that resizes a table of position biases, made for a square window, to another window.

    Each head's biases, a grid of one for each offset between two tokens, are interpolated (bicubic, corners not
    aligned).
    """

    def resize(table: Tensor, shape: Size) -> Tensor:
        side = math.isqrt(table.shape[0])
        grid = table.T.reshape(1, -1, side, side)
        size = [2 * positions - 1 for positions in window]
        return F.interpolate(grid, size=size, mode="bicubic", align_corners=False).flatten(2)[0].T.reshape(shape)

    return resize


def imagenet_weights(network: SwinUNet) -> ImageNetWeights:
    """Describe which tensors of a network start from the Swin Transformer that the authors start from, and from which.

    These are the encoder without blocks that the published model has beyond a stage's depth, the norm after it, and the
    decoder's blocks, from the encoder stage of the same grid. timm fits the first convolution to the input's channels
    (the planes in turn, scaled by 3 / channels); a single channel is repeated to three and needs none of it.
    """
    stages: list[Any] = list(network.stages)
    levels: list[Any] = list(network.decoder.levels)
    windows = {f"stages.{number}.": stage.window for number, stage in enumerate(stages)}
    windows |= {f"decoder.levels.{number}.": level.stage.window for number, level in enumerate(levels)}

    def source(name: str) -> Source | None:
        theirs = authors_name(name)
        for pattern, replacement in _TIMM_NAMES:
            if pattern.match(theirs):
                resize = None
                if name.endswith(".position.table"):
                    resize = resize_position_table(next(windows[place] for place in windows if name.startswith(place)))
                return Source(pattern.sub(replacement, theirs), resize=resize)
        return None

    depths = [len(stage.blocks) for stage in stages]
    deeper_blocks = [rf"layers\.{stage}\.blocks\.[{depth}-9]\." for stage, depth in enumerate(depths)]
    return ImageNetWeights(
        model=IMAGENET_MODEL,
        source=source,
        unused=re.compile("|".join([r"^head\.", *(f"^{pattern}" for pattern in deeper_blocks)])),
        arguments={
            "in_chans": network.embedding.project.in_channels,
            "embed_dim": network.embedding.project.out_channels,
            "num_heads": tuple(stage.num_heads for stage in stages),
        },
    )
