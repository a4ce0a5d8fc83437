"""R2U-Net with or without dual cross-attention on its skip connections.

Network: Alom et al., "Recurrent Residual Convolutional Neural Network based on U-Net (R2U-Net) for Medical Image
Segmentation", as Ates et al. have it ("Dual Cross-Attention for Medical Image Segmentation").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.layers.precision import without_autocast
from nnunetv2_ext.architectures.unets.blocks import ConvNormActivation, Layers, enlarge
from nnunetv2_ext.architectures.unets.common import UShapedNetwork

__all__ = ["R2UNet"]


class RecurrentResidualBlock(nn.Module):
    """x = 1-wide convolution of the input; s = x + g*(f*(activation(norm(x)))); gives activation(norm(s)) and s.

    h*(y) is the recurrence r = h(y), then t times r = h(y + r), with one set of weights. f is a convolution with norm
    and activation, g a bare convolution. A norm inside a recurrence is one norm, applied t + 1 times.

    Args:
        layers: makes the layers.
        in_channels: channels of the input.
        channels: channels of s.
        kernel: per axis.
        recurrences: t.
        reads_image: compute x and its norm in float32 under autocast.

    Shape:
        (B, in_channels, *grid) to two of (B, channels, *grid).
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        channels: int,
        kernel: Sequence[int],
        recurrences: int,
        *,
        reads_image: bool = False,
    ) -> None:
        super().__init__()
        self.reads_image = reads_image
        self.project = layers.conv(in_channels, channels, 1)
        self.project_out = layers.norm_activation(channels)
        self.first = ConvNormActivation(layers, channels, channels, kernel)
        self.second = layers.conv(channels, channels, kernel)
        self.out = layers.norm_activation(channels)
        self.recurrences = recurrences

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = without_autocast(self.project, x) if self.reads_image else self.project(x)
        recurrent = self.project_out(x)
        for conv in (self.first, self.second):
            recurrent = self._recur(conv, recurrent)
        source = x.to(recurrent.dtype) + recurrent
        return self.out(source), source

    def _recur(self, conv: nn.Module, x: Tensor) -> Tensor:
        recurrent = conv(x)
        for _ in range(self.recurrences):
            recurrent = conv(x + recurrent)
        return recurrent


class EncoderStage(nn.Module):
    """Max pooling and a block; DCA's source is the block's residual sum."""

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        channels: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        recurrences: int,
        *,
        reads_image: bool,
    ) -> None:
        super().__init__()
        self.pool = layers.max_pool(stride)
        self.block = RecurrentResidualBlock(layers, in_channels, channels, kernel, recurrences, reads_image=reads_image)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, source = self.block(self.pool(x))
        return out, out, source


class DecoderLevel(nn.Module):
    """Interpolation and a convolution, then a block over the result and the skip."""

    def __init__(
        self, layers: Layers, in_channels: int, channels: int, kernel: Sequence[int], recurrences: int
    ) -> None:
        super().__init__()
        self.up = ConvNormActivation(layers, in_channels, channels, kernel)
        self.block = RecurrentResidualBlock(layers, 2 * channels, channels, kernel, recurrences)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat((self.up(enlarge(x, skip)), skip), dim=1))[0]


class R2UNet(UShapedNetwork):
    """R2U-Net with or without DCA.

    Args:
        input_channels: channels of the input.
        num_classes: channels of the logits.
        recurrences: how often a convolution is applied again.
        arguments: arguments as in `UShapedNetwork`.
    """

    def __init__(self, input_channels: int, num_classes: int, *, recurrences: int = 2, **arguments: Any) -> None:
        super().__init__(input_channels, num_classes, **arguments)
        widths, kernels = self.features, self.kernel_sizes
        self.encoder = nn.ModuleList(
            EncoderStage(self.layers, before, width, kernel, stride, recurrences, reads_image=not stage)
            for stage, (before, width, kernel, stride) in enumerate(
                zip((input_channels, *widths[:-1]), widths, kernels, self.strides, strict=True)
            )
        )
        if self.dca_stages:
            self.dca = self.make_dca(widths)
        self.decoder = self.make_decoder(
            [
                DecoderLevel(self.layers, widths[stage + 1], widths[stage], kernels[stage], recurrences)
                for stage in reversed(range(len(widths) - 1))
            ],
            widths,
        )
