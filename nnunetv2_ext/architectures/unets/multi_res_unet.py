"""MultiResUNet with or without dual cross-attention on its skip connections.

Network: Ibtehaz, Rahman, "MultiResUNet: Rethinking the U-Net architecture for multimodal biomedical image
segmentation", as Ates et al. have it ("Dual Cross-Attention for Medical Image Segmentation"): blocks of three chained
convolutions whose outputs are concatenated, and chains of residual convolutions (ResPaths) on the skip connections.

DCA reads the last residual sum of a ResPath, before its norm; that norm then cannot influence the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.layers.precision import without_autocast
from nnunetv2_ext.architectures.unets.blocks import ConvNormActivation, Layers
from nnunetv2_ext.architectures.unets.common import UShapedNetwork

__all__ = ["MultiResUNet"]

WIDENING = 1.67
SHARES = (0.167, 0.333, 0.5)
LONGEST_PATH = 4


def block_widths(nominal: int) -> tuple[int, ...]:
    """Return the channels of a block's three convolutions; their sum is the block's output."""
    return tuple(int(WIDENING * nominal * share) for share in SHARES)


class MultiResBlock(nn.Module):
    """Three chained convolutions beside a 1-wide one.

    With p, q and r the outputs of the three, activation(norm(concatenate(p, q, r)) + norm(1-wide convolution of x)).

    Args:
        layers: makes the layers.
        in_channels: channels of the input.
        nominal: U, from which the widths follow.
        kernel: per axis.
        reads_image: compute the 1-wide convolution and its norm in float32 under autocast.

    Shape:
        (B, in_channels, *grid) to (B, sum(block_widths(U)), *grid).
    """

    def __init__(
        self, layers: Layers, in_channels: int, nominal: int, kernel: Sequence[int], *, reads_image: bool = False
    ) -> None:
        super().__init__()
        self.reads_image = reads_image
        widths = block_widths(nominal)
        self.skip = ConvNormActivation(layers, in_channels, sum(widths), 1, activation=False)
        self.convs = nn.ModuleList(
            ConvNormActivation(layers, before, width, kernel)
            for before, width in zip((in_channels, *widths[:-1]), widths, strict=True)
        )
        self.norm = layers.normalise(sum(widths))
        self.activation = layers.activate()

    def forward(self, x: Tensor) -> Tensor:
        residual = without_autocast(self.skip, x) if self.reads_image else self.skip(x)
        parts = []
        for conv in self.convs:
            x = conv(x)
            parts.append(x)
        joined = self.norm(torch.cat(parts, dim=1))
        return self.activation(joined + residual.to(joined.dtype))


class ResPath(nn.Module):
    """Repeat s = convolution(x) + 1-wide convolution(x), x = activation(norm(s)); gives the last x and s.

    Args:
        layers: makes the layers.
        in_channels: channels of the input.
        channels: channels of the output.
        kernel: per axis.
        length: number of repetitions.
        has_last_norm: build the last norm.
        gives_sum: give the last s alone (in both places), without its norm and activation.

    Shape:
        (B, in_channels, *grid) to two of (B, channels, *grid).
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        channels: int,
        kernel: Sequence[int],
        length: int,
        *,
        has_last_norm: bool,
        gives_sum: bool,
    ) -> None:
        super().__init__()
        widths = (in_channels, *(channels,) * (length - 1))
        self.convs = nn.ModuleList(layers.conv(width, channels, kernel) for width in widths)
        self.projections = nn.ModuleList(layers.conv(width, channels, 1) for width in widths)
        self.norms = nn.ModuleList(layers.normalise(channels) for _ in range(length - (not has_last_norm)))
        self.activation = layers.activate()
        self.gives_sum = gives_sum

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        last = len(self.convs) - 1
        for step, (conv, projection) in enumerate(zip(self.convs, self.projections, strict=True)):
            total = conv(x) + projection(x)
            if step == last and self.gives_sum:
                return total, total
            x = self.activation(self.norms[step](total))
        return x, total


class EncoderStage(nn.Module):
    """Max pooling and a block, whose output goes on down and, where there is a ResPath, through it to the skip."""

    def __init__(self, pool: nn.Module, block: MultiResBlock, path: ResPath | None) -> None:
        super().__init__()
        self.pool, self.block, self.path = pool, block, path

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.block(self.pool(x))
        return (x, x, x) if self.path is None else (x, *self.path(x))


class DecoderLevel(nn.Module):
    """Transposed convolution with norm and activation, then a block over the result and the skip."""

    def __init__(
        self, layers: Layers, in_channels: int, nominal: int, kernel: Sequence[int], stride: Sequence[int]
    ) -> None:
        super().__init__()
        self.up = nn.Sequential(layers.upsample(in_channels, nominal, stride), *layers.norm_activation(nominal))
        self.block = MultiResBlock(layers, 2 * nominal, nominal, kernel)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat((self.up(x), skip), dim=1))


class MultiResUNet(UShapedNetwork):
    """MultiResUNet with or without DCA; arguments as in `UShapedNetwork`.

    `features` are the nominal widths U of the stages: a block's output is about 1.67 U wide, a skip U. ResPaths get
    shorter from stage to stage: as long as there are skips from this one down, and at most 4.
    """

    def __init__(self, input_channels: int, num_classes: int, **arguments: Any) -> None:
        super().__init__(input_channels, num_classes, **arguments)
        nominal, kernels, strides = self.features, self.kernel_sizes, self.strides
        widths = [sum(block_widths(width)) for width in nominal]
        n_skips = len(nominal) - 1

        def path(stage: int) -> ResPath | None:
            if stage == n_skips:
                return None
            return ResPath(
                self.layers,
                widths[stage],
                nominal[stage],
                kernels[stage],
                min(LONGEST_PATH, n_skips - stage),
                has_last_norm=stage >= self.dca_stages or self.unused_layers,
                gives_sum=stage < self.dca_stages,
            )

        self.encoder = nn.ModuleList(
            EncoderStage(
                self.layers.max_pool(strides[stage]),
                MultiResBlock(
                    self.layers,
                    widths[stage - 1] if stage else input_channels,
                    nominal[stage],
                    kernels[stage],
                    reads_image=not stage,
                ),
                path(stage),
            )
            for stage in range(len(nominal))
        )
        if self.dca_stages:
            self.dca = self.make_dca(nominal)
        self.decoder = self.make_decoder(
            [
                DecoderLevel(self.layers, widths[stage + 1], nominal[stage], kernels[stage], strides[stage + 1])
                for stage in reversed(range(n_skips))
            ],
            widths,
        )
