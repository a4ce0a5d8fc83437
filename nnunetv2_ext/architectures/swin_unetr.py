"""SwinUNETR, plain and with recurrent attention (RecA): window transformer down, convolutions up.

Papers: Hatamizadeh et al., "Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images",
arXiv 2201.01266, and the method Recurrent-Attention. The network follows MONAI 0.9.0, which the authors of RecA took
as their baseline, and their public implementation; docs/networks/swin_unetr.md has the sources and every deviation.

Idea: an image is embedded by a strided convolution; four stages of shifted-window blocks each end in a merging of
neighbours. The image and the five maps, normalised, are skips of a convolutional decoder. With RecA each stage hands
the sum of its queries from block to block (RecA-H); no parameter is added.

Shape legend: B batch, F feature size, C channels, n a map's size of k = 2 or 3 axes.

Memory: of a residual block the backward pass keeps the inputs of its 3-wide convolutions before norm and activation;
`checkpointing=True` recomputes window blocks and residual blocks whole.
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
from nnunetv2_ext.architectures.layers.patch_merging import PatchMerging
from nnunetv2_ext.architectures.layers.precision import as_factor
from nnunetv2_ext.architectures.layers.rates import check_rate
from nnunetv2_ext.architectures.layers.recompute import checkpoint, is_captured, recompute
from nnunetv2_ext.architectures.layers.window_attention import clip_window, norms_biases_and_tables
from nnunetv2_ext.architectures.layers.window_stage import WindowStage, describe_window_stages
from nnunetv2_ext.architectures.network import SegmentationNetwork

__all__ = ["MERGING_ORDERS", "SwinUNETR"]

HALVINGS = 5

# Sub-grids of a merging by 2 x 2 x 2, by their first position. The authors' order takes two of them twice, two never.
MERGING_ORDERS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "legacy": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
    "corrected": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
}


def _instance_norm(x: Tensor) -> Tensor:
    """Normalise every channel of every sample, without parameters: (B, C, *n) to (1, B C, *n), or itself if captured.

    Not by torch's instance norm: an in-place operation on what it returns costs copies.
    """
    if is_captured():
        # Half of the operators that a compiler or another runtime sees in a batch norm. Autocast would make it float32.
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, x.shape[2:])
    # Batch norm of one sample: torch's kernel for it is made for long rows.
    return F.batch_norm(x.reshape(1, -1, *x.shape[2:]), None, None, training=True)


class ResidualBlock(nn.Module):
    """Two 3-wide convolutions with instance norm beside the identity, or beside a 1-wide one where widths differ.

    Shape:
        (B, in_channels, *n) to (B, out_channels, *n).
    """

    def __init__(self, in_channels: int, out_channels: int, spatial_dims: int) -> None:
        super().__init__()
        conv = nd.conv(spatial_dims)
        self.conv1 = conv(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1, bias=False)
        self.projects = in_channels != out_channels
        if self.projects:
            self.conv3 = conv(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return recompute(self._add, recompute(self._second, self.conv1(x)), x)

    def _second(self, x: Tensor) -> Tensor:
        return self.conv2(F.leaky_relu(_instance_norm(x), 0.01, inplace=True).view(x.shape))

    def _add(self, x: Tensor, residual: Tensor) -> Tensor:
        normalised = _instance_norm(x)
        residual = _instance_norm(self.conv3(residual)) if self.projects else residual.reshape(normalised.shape)
        return F.leaky_relu(normalised + residual, 0.01, inplace=True).view(x.shape)


class EncoderStage(WindowStage):
    """Window blocks, every second one shifted, then merging.

    Args:
        channels: C.
        num_heads: heads of the attention.
        grid: n.
        window_size: per axis, before clipping.
        stride: stride of the merging, per axis.
        merging: order of the sub-grids, a key of `MERGING_ORDERS`.
        settings: the other arguments of `WindowStage`. Of its position indices "cropped" is "exact" where no axis is
            clipped.

    Shape:
        (B, *n, C) to (B, *n / stride, 2 C).
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        grid: Sequence[int],
        window_size: Sequence[int],
        stride: Sequence[int],
        merging: str,
        **settings: Any,
    ) -> None:
        window, shift = clip_window(grid, window_size)
        super().__init__(
            channels, num_heads, grid=grid, window=window, shift=shift, table_window=window_size, **settings
        )
        self.merging = PatchMerging(channels, stride, MERGING_ORDERS[merging] if tuple(stride) == (2, 2, 2) else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.merging(super().forward(x))


class Encoder(nn.Module):
    """Embedding and stages; gives the map after each, normalised, highest resolution first."""

    def __init__(self, embedding: nn.Module, stages: Sequence[EncoderStage]) -> None:
        super().__init__()
        self.embedding = embedding
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        # The stages add to this map; in order, since each addition of another order would move it once more.
        x = nd.channels_last(self.embedding(x)).contiguous()
        skips = [self._normalise(x)]
        for stage in self.stages:
            x = stage(x)
            skips.append(self._normalise(x))
        return skips

    @staticmethod
    def _normalise(x: Tensor) -> Tensor:
        """Norm of the channels at each position, without parameters; the stages see the map without it."""
        return nd.channels_first(as_factor(F.layer_norm(x, x.shape[-1:]))).contiguous()


class DecoderLevel(nn.Module):
    """Transposed convolution, the skip beside it, residual block."""

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        stride = tuple(stride)
        self.upsample = nd.conv_transpose(len(stride))(in_channels, out_channels, stride, stride=stride, bias=False)
        self.block = ResidualBlock(2 * out_channels, out_channels, len(stride))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat([self.upsample(x), skip], dim=1))


class Decoder(nn.Module):
    """Levels, coarsest first, and the segmentation layer. There are no auxiliary heads: it ignores nnU-Net's switch."""

    def __init__(
        self,
        levels: Sequence[DecoderLevel],
        seg_layer: nn.Module,
        *,
        checkpointing: bool,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self.seg_layers = nn.ModuleList([seg_layer])
        self.checkpointing = checkpointing
        self.deep_supervision = deep_supervision

    def forward(self, skips: Sequence[Tensor]) -> Tensor:
        x = skips[-1]
        for level, skip in zip(self.levels, reversed(skips[:-1]), strict=True):
            x = checkpoint(level, x, skip) if self.checkpointing else level(x, skip)
        return self.seg_layers[0](x)


class SwinUNETR(SegmentationNetwork):
    """SwinUNETR, in 2D and 3D. Defaults are the authors' settings. A network accepts exactly one patch size.

    Args:
        input_channels: channels of the input.
        num_classes: channels of the logits.
        patch_size: voxels per axis; each must be divisible by the product of its strides.
        strides: five strides: of the embedding, and of the four stages' mergings. None: 2 on every axis.
        feature_size: F, channels after the embedding; every merging doubles them.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        window_size: side of the windows, before clipping to the map.
        mlp_ratio: width of the MLPs' hidden layer against C.
        drop_path_rate: rate of stochastic depth in the last block; it rises linearly from 0 in the first.
        merging: "legacy", the authors' order of the sub-grids merged by 2 x 2 x 2, which loses a quarter of the voxels,
            or "corrected"; the shapes are the same.
        position_index: "cropped", the authors' offsets in clipped windows, which are wrong there, or "exact".
        reca: recurrent attention in all four stages, instead of self-attention.
        checkpointing: recompute window blocks and residual blocks in the backward pass: same numbers, less memory.
        deep_supervision: initial state of `decoder.deep_supervision`, which changes nothing: there is one output.

    Raises:
        ValueError: for sizes that do not fit together, in the constructor, and for an input of another size.
    """

    served_dims: ClassVar[tuple[int, ...]] = (2, 3)
    narrow_settings: ClassVar[Mapping[str, Any]] = {
        "feature_size": 8,
        "num_heads": [1, 2, 4, 8],
        "depths": [2, 1, 1, 1],
    }

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        patch_size: Sequence[int] = (96, 96, 96),
        strides: Sequence[Sequence[int]] | None = None,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        merging: str = "legacy",
        position_index: str = "cropped",
        reca: bool = False,
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.input_channels = input_channels
        self.patch_size = tuple(patch_size)
        dims = len(self.patch_size)
        self.strides = tuple(tuple(stride) for stride in strides or ((2,) * dims,) * HALVINGS)
        if not len(depths) == len(num_heads) == len(self.strides) - 1 == HALVINGS - 1:
            raise ValueError(
                f"SwinUNETR has four stages: strides {self.strides} need five entries, depths {tuple(depths)} and "
                f"num_heads {tuple(num_heads)} four each."
            )
        if merging not in MERGING_ORDERS:
            raise ValueError(f"There is no merging {merging!r}; there are {', '.join(MERGING_ORDERS)}.")
        if position_index not in ("cropped", "exact"):
            raise ValueError(f"SwinUNETR has no position index {position_index!r}; there are cropped and exact.")
        self.grids = stage_grids(self.patch_size, self.strides)
        if math.prod(self.grids[-1]) == 1:
            raise ValueError(
                f"Patch size {self.patch_size} leaves one position at the bottom, which instance norm cannot train on: "
                "use a larger patch, or fewer strides of 2."
            )
        check_rate("drop_path_rate", drop_path_rate)
        drop_path = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        channels = [feature_size * 2**level for level in range(HALVINGS)]
        self.encoder = Encoder(
            nd.conv(dims)(input_channels, feature_size, self.strides[0], stride=self.strides[0]),
            [
                EncoderStage(
                    channels[stage],
                    num_heads[stage],
                    grid=self.grids[stage],
                    window_size=(window_size,) * dims,
                    stride=self.strides[stage + 1],
                    merging=merging,
                    position_index=position_index,
                    mlp_ratio=mlp_ratio,
                    drop_path=drop_path[sum(depths[:stage]) : sum(depths[: stage + 1])],
                    reca=reca,
                    checkpointing=checkpointing,
                )
                for stage in range(HALVINGS - 1)
            ],
        )
        # The map before the last goes to the decoder as it is.
        self.image_skip = ResidualBlock(input_channels, feature_size, dims)
        self.map_skips = nn.ModuleList(ResidualBlock(width, width, dims) for width in channels[:3])
        self.bottom = ResidualBlock(channels[-1], channels[-1], dims)
        self.decoder = Decoder(
            [
                DecoderLevel(channels[level], channels[max(level - 1, 0)], self.strides[level])
                for level in reversed(range(HALVINGS))
            ],
            nd.conv(dims)(feature_size, num_classes, 1),
            checkpointing=checkpointing,
            deep_supervision=deep_supervision,
        )
        self.checkpointing = checkpointing
        self.output_strides = ((1,) * dims,)

    @classmethod
    def settings_from_plan(cls, geometry: Geometry) -> dict[str, Any]:
        """Turn a plan into constructor arguments.

        The five strides are the plan's first five poolings. Where the plan has fewer, each further stride halves the
        axes that are even and have four positions at least, and leaves the others, so that the network always has five
        levels and no input needs padding.
        """
        strides = list(geometry.strides[1 : 1 + HALVINGS])
        while len(strides) < HALVINGS:
            strides.append(
                halving_stride(stage_grids(geometry.patch_size, strides or [(1,) * geometry.spatial_dims])[-1])
            )
        return {"patch_size": geometry.patch_size, "strides": tuple(strides)}

    def parameters_without_weight_decay(self) -> set[str]:
        """Name the norms, biases and position tables."""
        return norms_biases_and_tables(self)

    def describe_stages(self) -> list[dict[str, Any]]:
        """Return one row for each encoder stage, and one for the bottom."""
        rows = describe_window_stages(self.encoder.stages, self.strides)
        bottom: dict[str, Any] = dict.fromkeys(rows[0], "")
        bottom.update(
            stage="bottom", stride=self.strides[-1], grid=self.grids[-1], channels=self.bottom.conv1.out_channels
        )
        return [*rows, bottom]

    def forward(self, x: Tensor) -> Tensor:
        """Map an image (B, input_channels, *patch_size) to logits (B, num_classes, *patch_size)."""
        self.check_size(x)
        first, second, third, fourth, last = self.encoder(x)
        blocks = (self.image_skip, *self.map_skips, None, self.bottom)
        maps = (x, first, second, third, fourth, last)
        return self.decoder(
            [
                feature if block is None else self._run(block, feature)
                for block, feature in zip(blocks, maps, strict=True)
            ]
        )

    def _run(self, block: ResidualBlock, x: Tensor) -> Tensor:
        return checkpoint(block, x) if self.checkpointing else block(x)
