"""Swin-Unet: a U-shaped network of shifted-window transformer blocks, with or without RecA in its encoder.

Papers: Cao et al., "Swin-Unet: Unet-like Pure Transformer for Medical Image Segmentation" (arXiv 2105.05537), on top of
the Swin Transformer (Liu et al., arXiv 2103.14030); with RecA as in the public implementation of Recurrent-Attention.
Where a paper and that implementation differ, the latter is followed: it made the published numbers.
docs/networks/swin_unet.md has the equations and every deviation, docs/networks/reca.md the operator.

Idea: pixels in patches of 4 x 4 become tokens. Encoder stages are window blocks, every second one with shifted windows,
and a merging that halves the grid and doubles the channels. Decoder levels are an expansion that does the opposite, a
linear map over its result and the encoder's tokens of the same grid, and window blocks. With `reca=True` each block of
an encoder stage attends with the sum of its queries and those of the stage's blocks before it (RecA-H); this adds no
parameter.

Shape legend: B batch, C channels of a stage, (h, w) its grid of tokens; maps are (B, h, w, C).

Memory: what ends in a linear map (norms, rearrangements, the expansion at the input's resolution) is recomputed in the
backward pass up to that map, and so are window partitions, activations and attention scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.layers.patch_merging import PatchMerging
from nnunetv2_ext.architectures.layers.rates import check_rate
from nnunetv2_ext.architectures.layers.recompute import recompute
from nnunetv2_ext.architectures.layers.window_attention import clip_window, norms_biases_and_tables
from nnunetv2_ext.architectures.layers.window_stage import WindowStage
from nnunetv2_ext.architectures.network import SegmentationNetwork

__all__ = ["PRESETS", "PatchExpanding", "SwinUNet", "choose_window"]

PATCH = 4
STEM_CHANNELS = 3
WINDOWS = (7, 8)
LINEAR_STD = 0.02


def choose_window(grids: Sequence[Sequence[int]]) -> int:
    """Choose the window size, 7 or 8, that pads the grids of all stages the least; 7 if they are equal.

    A grid is padded to a multiple of the window, clipped to the grid; padding of stage i counts 4^i times, which is the
    cost of a linear map per token.

    Args:
        grids: tokens per axis, for each stage.
    """

    def work(size: int) -> int:
        total = 0
        for stage, grid in enumerate(grids):
            window, _ = clip_window(grid, (size,) * len(grid))
            pairs = zip(grid, window, strict=True)
            total += 4**stage * math.prod(-(-positions // axis) * axis for positions, axis in pairs)
        return total

    return min(WINDOWS, key=work)


class PatchEmbedding(nn.Module):
    """Patches of pixels to tokens: a convolution with its kernel as its stride, and layer norm.

    Shape:
        (B, in_channels, H, W) to (B, H / 4, W / 4, C).
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, channels, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.project(x).permute(0, 2, 3, 1))


class PatchExpanding(nn.Module):
    """The opposite of merging: a linear map without bias whose output channels become positions, and layer norm.

    Args:
        channels: C.
        factor: positions per axis that one position becomes.
        out_channels: channels of the result. The map's output is read as (row, column, channel), channels fastest.

    Shape:
        (B, h, w, C) to (B, factor h, factor w, out_channels).
    """

    def __init__(self, channels: int, factor: int, out_channels: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(channels, factor**2 * out_channels, bias=False)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.arrange(self.split(x))

    def split(self, x: Tensor) -> Tensor:
        """Return the positions that each position becomes, (B, h, w, factor, factor, out_channels)."""
        return self.norm(self.expand(x).unflatten(-1, (self.factor, self.factor, -1)))

    @staticmethod
    def arrange(parts: Tensor) -> Tensor:
        """Put these positions in their places on the map."""
        return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class DecoderLevel(nn.Module):
    """Expansion to twice the resolution, a linear map over the result and the skip, and a stage.

    Shape:
        (B, h, w, 2 C) and a skip (B, 2 h, 2 w, C) to (B, 2 h, 2 w, C).
    """

    def __init__(self, channels: int, stage: WindowStage) -> None:
        super().__init__()
        self.expand = PatchExpanding(2 * channels, 2, channels)
        self.join = nn.Linear(2 * channels, channels)
        self.stage = stage

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.stage(recompute(self._join, x, skip))

    def _join(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.join(torch.cat((self.expand(x), skip), dim=-1))


class Decoder(nn.Module):
    """Decoder levels, deepest first, the expansion to the input's resolution, and the segmentation layer.

    Args:
        levels: the levels.
        channels: channels of the last level.
        num_classes: channels of the logits.
        deep_supervision: initial state of the switch, which nothing reads: there is one output.
    """

    def __init__(
        self, levels: Sequence[DecoderLevel], *, channels: int, num_classes: int, deep_supervision: bool
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.levels = nn.ModuleList(levels)
        self.norm = nn.LayerNorm(channels)
        self.expand = PatchExpanding(channels, PATCH, channels)
        self.seg_layers = nn.ModuleList([nn.Linear(channels, num_classes, bias=False)])

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        for level, skip in zip(self.levels, reversed(skips), strict=True):
            x = level(x, skip)
        return recompute(self._predict, x)

    def _predict(self, x: Tensor) -> Tensor:
        # The classes are fewer than the channels, so they are put in their places, and not the channels.
        parts = self.expand.split(self.norm(x))
        return self.expand.arrange(self.seg_layers[0](parts)).permute(0, 3, 1, 2)


class SwinUNet(SegmentationNetwork):
    """Swin-Unet, in 2D, with or without RecA.

    Defaults are the settings that the authors trained. The network accepts exactly one patch size; it pads it at the
    end of each axis to a multiple of the deepest stage's stride, 32, and crops the logits. Where a window does not
    divide a grid, the tokens are padded inside the block, and the padding is not attended to.

    Args:
        input_channels: channels of the input. A single one is repeated to three.
        num_classes: channels of the logits.
        patch_size: pixels per axis.
        reca: whether to attend, in the encoder, with the sum of the queries of all blocks of the stage so far (RecA-H),
            instead of the block's own.
        embed_dim: channels of the first stage; each later one has twice as many.
        depths: blocks in each encoder stage; the decoder level of the same grid has as many.
        num_heads: attention heads, per stage.
        window_size: window of the attention, per axis.
        mlp_ratio: width of the MLPs' hidden layers against a stage's channels.
        drop_path_rate: rate of stochastic depth of the last encoder block; it rises linearly from 0.
        checkpointing: recompute the blocks in the backward pass: same numbers, less memory.
        deep_supervision: initial state of `decoder.deep_supervision`, which changes nothing: there is one output.

    Raises:
        ValueError: for settings that do not fit together, in the constructor, and for an input of another size.
    """

    served_dims: ClassVar[tuple[int, ...]] = (2,)
    narrow_settings: ClassVar[Mapping[str, Any]] = {
        "embed_dim": 8,
        "depths": (2, 1, 1, 1),
        "num_heads": (1, 2, 2, 4),
    }

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        patch_size: Sequence[int] = (224, 224),
        reca: bool = True,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.2,
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.input_channels = input_channels
        self.patch_size = tuple(patch_size)
        if len(self.patch_size) != 2 or len(depths) != len(num_heads) or len(depths) < 2:
            raise ValueError(
                f"Swin-Unet is a 2D network of two stages at least, and got patch size {self.patch_size}, depths "
                f"{tuple(depths)} and num_heads {tuple(num_heads)}: give two sizes, and as many heads as depths."
            )
        n_stages = len(depths)
        self.grids = _grids(self.patch_size, n_stages)
        self.output_strides = ((1, 1),)
        channels = [embed_dim * 2**stage for stage in range(n_stages)]
        check_rate("drop_path_rate", drop_path_rate)
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()

        def stage(number: int, *, reca: bool) -> WindowStage:
            before = sum(depths[:number])
            window, shift = clip_window(self.grids[number], (window_size,) * 2)
            return WindowStage(
                channels[number],
                num_heads[number],
                grid=self.grids[number],
                window=window,
                shift=shift,
                mask_padding=True,
                mlp_ratio=mlp_ratio,
                drop_path=rates[before : before + depths[number]],
                reca=reca,
                checkpointing=checkpointing,
            )

        self.embedding = PatchEmbedding(STEM_CHANNELS if input_channels == 1 else input_channels, embed_dim)
        self.stages = nn.ModuleList(stage(number, reca=reca) for number in range(n_stages))
        self.mergings = nn.ModuleList(PatchMerging(width, (2, 2)) for width in channels[:-1])
        self.norm = nn.LayerNorm(channels[-1])
        self.decoder = Decoder(
            [DecoderLevel(channels[number], stage(number, reca=False)) for number in reversed(range(n_stages - 1))],
            channels=embed_dim,
            num_classes=num_classes,
            deep_supervision=deep_supervision,
        )
        for name, module in self.named_modules():
            # The layers at both ends, convolutions in the authors' code, keep torch's initialisation.
            if isinstance(module, nn.Linear) and ".seg_layers." not in name:
                nn.init.trunc_normal_(module.weight, std=LINEAR_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def padded_size(self) -> tuple[int, ...]:
        """Pixels per axis, rounded up to a multiple of the deepest stage's stride."""
        return tuple(PATCH * positions for positions in self.grids[0])

    @classmethod
    def settings_from_plan(cls, geometry: Geometry) -> dict[str, Any]:
        """Turn a plan into constructor arguments.

        Only the patch size is the plan's. The window is 7 or 8, whichever pads the stages' grids less (7 at the
        authors' size). Widths and stages are the authors', to which the published parameter counts and ImageNet's
        weights belong; they do not follow the plan's poolings.
        """
        return {"patch_size": geometry.patch_size, "window_size": choose_window(_grids(geometry.patch_size, 4))}

    def parameters_without_weight_decay(self) -> set[str]:
        """Name the tables of position biases, the norms, and the biases."""
        return norms_biases_and_tables(self)

    def describe_stages(self) -> list[dict[str, Any]]:
        """Return one row for each encoder stage."""
        stages: Iterable[Any] = self.stages
        return [
            {
                "stage": number,
                "stride": (PATCH * 2 ** (number - 1),) * 2,
                "grid": stage.grid,
                "channels": stage.blocks[0].norm.normalized_shape[0],
                "heads": stage.num_heads,
                "window": stage.window,
                "blocks": len(stage.blocks),
                "queries summed": len(stage.blocks) if stage.reca else 1,
            }
            for number, stage in enumerate(stages, start=1)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Map an image (B, input_channels, *patch_size) to logits (B, num_classes, *patch_size)."""
        self.check_size(x)
        (height, width), (padded_height, padded_width) = self.patch_size, self.padded_size
        x = F.pad(x, (0, padded_width - width, 0, padded_height - height))
        if self.input_channels == 1:
            x = x.expand(-1, STEM_CHANNELS, -1, -1)
        x = self.embedding(x)
        skips = []
        for stage, merging in zip(self.stages, self.mergings, strict=False):
            # The authors' skips are what goes into a stage, not what comes out of it.
            skips.append(x)
            x = merging(stage(x))
        x = self.norm(self.stages[-1](x))
        return self.decoder(x, skips)[..., :height, :width].contiguous()


def _grids(patch_size: Sequence[int], n_stages: int) -> list[tuple[int, ...]]:
    """Return the tokens per axis of each stage, for a patch that is padded to the deepest one's stride."""
    deepest = [-(-size // (PATCH * 2 ** (n_stages - 1))) for size in patch_size]
    return [tuple(positions * 2 ** (n_stages - 1 - stage) for positions in deepest) for stage in range(n_stages)]


# Constructor arguments of the authors' network; beside it, its trainable parameters, the same with and without RecA.
PRESETS: dict[str, dict[str, Any]] = {
    "synapse": {  # 27,168,900
        "input_channels": 1,
        "num_classes": 9,
        "patch_size": (224, 224),
        "embed_dim": 96,
        "depths": (2, 2, 2, 2),
        "num_heads": (3, 6, 12, 24),
        "window_size": 7,
        "mlp_ratio": 4.0,
        "drop_path_rate": 0.2,
    }
}
