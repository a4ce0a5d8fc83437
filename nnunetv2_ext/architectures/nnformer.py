"""nnFormer, plain and with recurrent attention (RecA): a window transformer down and up.

Papers: Zhou et al., "nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer", arXiv 2109.03201, and the
method Recurrent-Attention. The network follows the public implementation of the authors of RecA;
docs/networks/nnformer.md has the equations, the sources and every deviation.

Idea: convolutions embed the image; four stages of shifted-window blocks, with strided convolutions between them, go
down. On the way up a transposed convolution doubles the map, attends once to the skip of its resolution, and passes
self-attention. With RecA each stage of the encoder hands the sum of its queries from block to block (RecA-H); no
parameter is added.

Shape legend: B batch, E channels after the embedding, C channels, n a map's size of k = 2 or 3 axes, h heads, N tokens
of a window, B' windows of all samples.

Memory: outputs of norms and activations are recomputed in the backward pass; `checkpointing=True` recomputes the
embedding and the blocks whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.geometry import Geometry, halving_stride, stage_grids
from nnunetv2_ext.architectures.layers import nd
from nnunetv2_ext.architectures.layers.drop_path import DropPath
from nnunetv2_ext.architectures.layers.precision import as_factor
from nnunetv2_ext.architectures.layers.rates import check_rate
from nnunetv2_ext.architectures.layers.recompute import checkpoint, recompute
from nnunetv2_ext.architectures.layers.window_attention import (
    WindowLayout,
    WindowPositionBias,
    clip_window,
    norms_biases_and_tables,
)
from nnunetv2_ext.architectures.layers.window_stage import (
    MLPBranch,
    WindowStage,
    describe_window_stages,
    window_blocks,
)
from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.architectures.reca import run_blocks

__all__ = ["CrossAttentionBlock", "DecoderStage", "EncoderStage", "NNFormer", "clip_to_smallest_axis"]

STAGES = 4
LARGEST_EMBEDDING_STRIDE = {2: (4, 4), 3: (2, 4, 4)}
PAPER_WINDOWS = (4, 4, 8, 4)
# Positions of the shortest axis of a map below which its window is clipped axis by axis.
SMALLEST_CUBE = 3


def clip_to_smallest_axis(grid: Sequence[int], size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Clip a window of equal sides as the authors do: to the shortest axis of the map, and then without a shift.

    Returns:
        The window and the shift of shifted blocks.
    """
    axes = len(grid)
    if min(grid) <= size:
        return (min(grid),) * axes, (0,) * axes
    return (size,) * axes, (size // 2,) * axes


def _window_settings(grid: Sequence[int], window: int | Sequence[int], position_index: str) -> dict[str, Any]:
    """Return a stage's window, shift and rule for position biases: the authors' where it is a cube."""
    window, shift = clip_to_smallest_axis(grid, window) if isinstance(window, int) else clip_window(grid, tuple(window))
    cube = len(window) == 3 and len(set(window)) == 1
    return {"window": window, "shift": shift, "position_index": position_index if cube else "exact"}


class Embedding(nn.Module):
    """Four 3-wide convolutions; GELU and layer norm after the first three, layer norm after the last.

    Args:
        in_channels: channels of the image.
        channels: E; half of them in the first two convolutions.
        stride: 1, 2 or 4 per axis. The first convolution takes up to 2 of it, the third the rest.

    Shape:
        (B, in_channels, *size) to (B, *size / stride, E).
    """

    def __init__(self, in_channels: int, channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        conv, half = nd.conv(len(stride)), channels // 2
        first = tuple(min(step, 2) for step in stride)
        second = tuple(step // taken for step, taken in zip(stride, first, strict=True))
        self.conv1 = conv(in_channels, half, 3, stride=first, padding=1)
        self.norm1 = nn.LayerNorm(half)
        self.conv2 = conv(half, half, 3, padding=1)
        self.norm2 = nn.LayerNorm(half)
        self.conv3 = conv(half, channels, 3, stride=second, padding=1)
        self.norm3 = nn.LayerNorm(channels)
        self.conv4 = conv(channels, channels, 3, padding=1)
        self.norm4 = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for norm, conv in ((self.norm1, self.conv2), (self.norm2, self.conv3), (self.norm3, self.conv4)):
            x = recompute(_Step(norm, conv), x)
        return self.norm4(nd.channels_last(x))


class _Step(nn.Module):
    """GELU, layer norm over channels and a convolution: of what it needs for the backward pass, its input is enough."""

    def __init__(self, norm: nn.Module, conv: nn.Module) -> None:
        super().__init__()
        self.norm, self.conv = norm, conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nd.channels_first(self.norm(F.gelu(nd.channels_last(x)))))


class Downsampling(nn.Module):
    """Between encoder stages: GELU, layer norm, strided 3-wide convolution.

    Shape:
        (B, *n, C) to (B, *n / stride, 2 C).
    """

    def __init__(self, channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nd.conv(len(stride))(channels, 2 * channels, 3, stride=tuple(stride), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return nd.channels_last(recompute(self._apply_all, x)).contiguous()

    def _apply_all(self, x: Tensor) -> Tensor:
        return self.conv(nd.channels_first(self.norm(F.gelu(x))))


class EncoderStage(WindowStage):
    """Window blocks, every second one shifted.

    Args:
        channels: C.
        num_heads: h.
        grid: n.
        window: a number, a cube clipped by `clip_to_smallest_axis`; or one per axis, clipped axis by axis.
        position_index: "nnformer" or "exact", for cubes; see `window_attention.position_rows`.
        settings: the other arguments of `WindowStage`.

    Shape:
        (B, *n, C) to the same.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        grid: Sequence[int],
        window: int | Sequence[int],
        position_index: str,
        **settings: Any,
    ) -> None:
        settings |= _window_settings(grid, window, position_index)
        super().__init__(channels, num_heads, grid=grid, **settings)


class WindowCrossAttention(nn.Module):
    """Attention inside windows with keys and values from another map; the queries are not projected.

    Shape:
        tokens of query and context windows (B' N, C) to (B' N, C).
    """

    def __init__(self, channels: int, num_heads: int, layout: WindowLayout, *, position_index: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kv = nn.Linear(channels, 2 * channels)
        self.position = WindowPositionBias(num_heads, layout, position_index=position_index)
        self.proj = nn.Linear(channels, channels)

    def forward(self, query: Tensor, kv: Tensor) -> Tensor:
        """Attend with queries (B' N, C), and projections (B' N, 2 C) that hold keys and values; give (B' N, C)."""
        heads = (self.num_heads, query.shape[-1] // self.num_heads)
        # Autocast computes norms in float32 and projections in half precision; attention wants one of them.
        query = query.to(kv.dtype).view(-1, self.position.tokens, *heads).transpose(1, 2)
        key, value = kv.view(-1, self.position.tokens, 2, *heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(self.position(query, key, value).transpose(1, 2).reshape(-1, self.proj.in_features))


class CrossAttentionBlock(nn.Module):
    """Window block whose queries come from the decoder and keys and values from the skip; one norm serves both.

    x = u + k;  x + Attention(LN(u), LN(k)), then x + MLP(LN(x)), both with stochastic depth.

    Shape:
        decoder's map u and skip k, (B, n, C) with their positions in a row, to (B, n, C).
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        grid: Sequence[int],
        window: Sequence[int],
        position_index: str,
        mlp_ratio: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.layout = WindowLayout(grid, window, (0,) * len(grid))
        self.norm = nn.LayerNorm(channels)
        self.attention = WindowCrossAttention(channels, num_heads, self.layout, position_index=position_index)
        self.mlp = MLPBranch(channels, int(channels * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        tokens = self.attention(*recompute(self._project, x, skip))
        x = x + skip + self.drop_path(self.layout.merge(tokens))
        return x + self.drop_path(self.mlp(x))

    def _project(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries, and keys with values: of both maps at once, as samples of a batch of twice the size."""
        tokens = self.layout.partition(as_factor(self.norm(torch.cat((x, skip)))))
        query, context = tokens.chunk(2)
        # A view would keep the context's half of the memory for the backward pass too; a compiled graph has no views.
        return query if torch.compiler.is_compiling() else query.clone(), self.attention.kv(context)


class DecoderStage(nn.Module):
    """Layer norm and transposed convolution, cross-attention to the skip, then self-attention, always shifted.

    Args:
        stride: stride of the transposed convolution, per axis.
        drop_path: rates of stochastic depth, of the cross-attention and of each block behind it.
        others: see `EncoderStage`; the attention is plain.

    Shape:
        (B, *n / stride, 2 C) and the skip (B, *n, C) to (B, *n, C).
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        stride: Sequence[int],
        grid: Sequence[int],
        window: int | Sequence[int],
        position_index: str,
        mlp_ratio: float,
        drop_path: Sequence[float],
        checkpointing: bool,
    ) -> None:
        super().__init__()
        stride = tuple(stride)
        self.norm = nn.LayerNorm(2 * channels)
        self.upsample = nd.conv_transpose(len(stride))(2 * channels, channels, stride, stride=stride)
        settings = {"grid": grid, "mlp_ratio": mlp_ratio, **_window_settings(grid, window, position_index)}
        shift = settings.pop("shift")
        self.cross = CrossAttentionBlock(channels, num_heads, drop_path=drop_path[0], **settings)
        self.blocks = window_blocks(
            channels, num_heads, shift=shift, drop_path=drop_path[1:], always_shifted=True, **settings
        )
        self.checkpointing = checkpointing

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = nd.channels_last(recompute(self._upsample, x)).contiguous()
        maps = x.flatten(1, -2), skip.flatten(1, -2)
        tokens = checkpoint(self.cross, *maps) if self.checkpointing else self.cross(*maps)
        return run_blocks(self.blocks, tokens, reca=False, checkpointing=self.checkpointing).view(skip.shape)

    def _upsample(self, x: Tensor) -> Tensor:
        return self.upsample(nd.channels_first(self.norm(x)))


class Encoder(nn.Module):
    """Embedding and stages; gives each stage's output, normalised, highest resolution first."""

    def __init__(
        self,
        embedding: Embedding,
        stages: Sequence[EncoderStage],
        downsamplings: Sequence[Downsampling],
        norms: Sequence[nn.LayerNorm],
        *,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.stages = nn.ModuleList(stages)
        self.downsamplings = nn.ModuleList(downsamplings)
        self.norms = nn.ModuleList(norms)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor) -> list[Tensor]:
        x = checkpoint(self.embedding, x) if self.checkpointing else self.embedding(x)
        skips = []
        for number, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            # The next stage sees the map without the norm.
            x = stage(x if number == 0 else self.downsamplings[number - 1](x))
            skips.append(norm(x))
        return skips


class Decoder(nn.Module):
    """The decoder stages and the segmentation layers, both highest resolution first.

    `seg_layers[0]` gives the logits; `seg_layers[j]`, where it exists, predicts from the j-th finest map.
    """

    def __init__(
        self, stages: Sequence[DecoderStage], seg_layers: Sequence[nn.Module], *, deep_supervision: bool
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.seg_layers = nn.ModuleList(seg_layers)
        self.deep_supervision = deep_supervision
        if not deep_supervision:
            # Distributed training stops on a trainable parameter that takes no part in a step.
            self.seg_layers[1:].requires_grad_(False)

    def forward(self, skips: Sequence[Tensor]) -> Tensor | list[Tensor]:
        x = skips[-1]
        features: list[Tensor] = []
        for stage, skip in zip(reversed(self.stages), reversed(skips[:-1]), strict=True):
            x = stage(x, skip)
            features.insert(0, x)
        if not self.deep_supervision or len(self.seg_layers) == 1:
            return self._predict(self.seg_layers[0], x)
        return [self._predict(layer, feature) for layer, feature in zip(self.seg_layers, features, strict=True)]

    @staticmethod
    def _predict(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(nd.channels_first(x)).contiguous()


class NNFormer(SegmentationNetwork):
    """nnFormer, in 2D and 3D. Defaults are the authors' settings. A network accepts exactly one patch size.

    Args:
        input_channels: channels of the input.
        num_classes: channels of the logits.
        patch_size: voxels per axis; each must be divisible by the product of its strides.
        embedding_stride: stride of the embedding and of the segmentation layers, 1, 2 or 4 per axis. None: (2, 4, 4),
            in 2D (4, 4).
        strides: three strides, of the down-samplings. None: 2 on every axis.
        embed_dim: E, channels of the first stage; they double from stage to stage.
        depths: blocks of each stage; a decoder stage has as many as the encoder's of its resolution.
        num_heads: heads of each stage.
        windows: per stage the window: a number, a cube that is clipped to the shortest axis of the map and then not
            shifted, as the authors have it; or one number per axis, clipped axis by axis.
        mlp_ratio: width of the MLPs' hidden layer against C.
        drop_path_rate: rate of stochastic depth in the last block of encoder and decoder; it rises linearly from 0.
        position_index: "nnformer", the authors' rule for position biases, by which different offsets share a value, or
            "exact". 2D windows and windows that are no cube have the exact one.
        reca: recurrent attention in all stages of the encoder, instead of self-attention.
        auxiliary_heads: predict from all three decoder stages, for deep supervision.
        checkpointing: recompute embedding and blocks in the backward pass: same numbers, less memory.
        deep_supervision: initial state of `decoder.deep_supervision`. Heads that it leaves unused are frozen.

    Raises:
        ValueError: for sizes that do not fit together, in the constructor, and for an input of another size.
    """

    served_dims: ClassVar[tuple[int, ...]] = (2, 3)
    narrow_settings: ClassVar[Mapping[str, Any]] = {"embed_dim": 16, "num_heads": [2, 4, 8, 16], "depths": [2, 1, 1, 1]}

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        patch_size: Sequence[int] = (96, 96, 96),
        embedding_stride: Sequence[int] | None = None,
        strides: Sequence[Sequence[int]] | None = None,
        embed_dim: int = 192,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (6, 12, 24, 48),
        windows: Sequence[int | Sequence[int]] = PAPER_WINDOWS,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.2,
        position_index: str = "nnformer",
        reca: bool = False,
        auxiliary_heads: bool = False,
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.input_channels = input_channels
        self.patch_size = tuple(patch_size)
        dims = len(self.patch_size)
        embedding_stride = tuple(embedding_stride or LARGEST_EMBEDDING_STRIDE[dims])
        strides = [tuple(stride) for stride in strides or ((2,) * dims,) * (STAGES - 1)]
        if not len(depths) == len(num_heads) == len(windows) == len(strides) + 1 == STAGES:
            raise ValueError(
                f"nnFormer has four stages: strides {tuple(strides)} need three entries, depths {tuple(depths)}, "
                f"num_heads {tuple(num_heads)} and windows {tuple(windows)} four each."
            )
        if set(embedding_stride) - {1, 2, 4}:
            raise ValueError(f"Embedding stride {embedding_stride}: nnFormer can embed by 1, 2 or 4 per axis.")
        if position_index not in ("nnformer", "exact"):
            raise ValueError(f"nnFormer has no position index {position_index!r}; there are nnformer and exact.")
        check_rate("drop_path_rate", drop_path_rate)
        self.strides = (embedding_stride, *strides)
        self.grids = stage_grids(self.patch_size, self.strides)
        channels = [embed_dim * 2**stage for stage in range(STAGES)]

        def stage(number: int) -> dict[str, Any]:
            return {
                "channels": channels[number],
                "num_heads": num_heads[number],
                "grid": self.grids[number],
                "window": windows[number],
                "position_index": position_index,
                "mlp_ratio": mlp_ratio,
                "checkpointing": checkpointing,
            }

        def rates(lengths: Sequence[int]) -> list[list[float]]:
            """Let the rate of stochastic depth rise over blocks that are run one after the other."""
            rising = iter(torch.linspace(0, drop_path_rate, sum(lengths), device="cpu").tolist())
            return [[next(rising) for _ in range(length)] for length in lengths]

        self.encoder = Encoder(
            Embedding(input_channels, embed_dim, embedding_stride),
            [
                EncoderStage(**stage(number), drop_path=drop_path, reca=reca)
                for number, drop_path in enumerate(rates(depths))
            ],
            [Downsampling(width, stride) for width, stride in zip(channels, strides, strict=False)],
            [nn.LayerNorm(width) for width in channels],
            checkpointing=checkpointing,
        )
        decoder_rates = rates(depths[-2::-1])[::-1]
        heads = range(STAGES - 1 if auxiliary_heads else 1)
        self.decoder = Decoder(
            [
                DecoderStage(**stage(number), stride=strides[number], drop_path=drop_path)
                for number, drop_path in enumerate(decoder_rates)
            ],
            [
                nd.conv_transpose(dims)(channels[number], num_classes, embedding_stride, stride=embedding_stride)
                for number in heads
            ],
            deep_supervision=deep_supervision,
        )
        self.output_strides = tuple(
            tuple(math.prod(axis) for axis in zip((1,) * dims, *strides[:number], strict=True)) for number in heads
        )

    @classmethod
    def settings_from_plan(cls, geometry: Geometry) -> dict[str, Any]:
        """Turn a plan into constructor arguments.

        The embedding's stride is the product of the plan's first two poolings, but not more than (2, 4, 4), in 2D
        (4, 4). What is left of the plan's poolings of an axis is given to the three down-samplings, 2 at a time; where
        nothing is left, and in the place of a pooling that the plan does not have, axes are halved that are even and
        have four positions at least. Windows are the paper's, 4, 4, 8 and 4; where the shortest axis has fewer than
        three positions, they are clipped axis by axis instead of all to that axis.
        """
        dims, poolings = geometry.spatial_dims, list(geometry.strides[1:])
        while len(poolings) < 2:
            poolings.append(halving_stride(stage_grids(geometry.patch_size, [*poolings, (1,) * dims])[-1]))
        embedding_stride = tuple(
            min(first * second, largest)
            for first, second, largest in zip(*poolings[:2], LARGEST_EMBEDDING_STRIDE[dims], strict=True)
        )
        left = [
            max(1, math.prod(axis) // taken) for *axis, taken in zip(*geometry.strides, embedding_stride, strict=True)
        ]
        strides: list[tuple[int, ...]] = []
        for _ in range(STAGES - 1):
            halving = halving_stride(stage_grids(geometry.patch_size, [embedding_stride, *strides])[-1])
            strides.append(tuple(2 if rest >= 2 else step for rest, step in zip(left, halving, strict=True)))
            left = [max(1, rest // 2) for rest in left]
        grids = stage_grids(geometry.patch_size, [embedding_stride, *strides])
        return {
            "patch_size": geometry.patch_size,
            "embedding_stride": embedding_stride,
            "strides": tuple(strides),
            "windows": tuple(
                size if min(grid) >= SMALLEST_CUBE else (size,) * dims
                for size, grid in zip(PAPER_WINDOWS, grids, strict=True)
            ),
        }

    def parameters_without_weight_decay(self) -> set[str]:
        """Name the norms, biases and position tables."""
        return norms_biases_and_tables(self)

    def describe_stages(self) -> list[dict[str, Any]]:
        """Return one row for each encoder stage."""
        return describe_window_stages(self.encoder.stages, self.strides)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map an image (B, input_channels, *patch_size) to logits (B, num_classes, *patch_size), or a list of them."""
        self.check_size(x)
        return self.decoder(self.encoder(x))
