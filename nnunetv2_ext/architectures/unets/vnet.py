"""V-Net with or without dual cross-attention on its skip connections.

Network: Milletari, Navab, Ahmadi, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
Segmentation", as Ates et al. have it ("Dual Cross-Attention for Medical Image Segmentation"). Stages are residual
chains of 5-wide convolutions (2k - 1 wide, where the plan's are k wide), with strided convolutions between them.

The first stage's residual sum reaches DCA alone: the main path goes on from the convolution without it. Without DCA its
1-wide convolution therefore cannot influence the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.unets.blocks import ConvNormActivation, Layers
from nnunetv2_ext.architectures.unets.common import UShapedNetwork

__all__ = ["VNet"]

MOST_CONVS = 3


def _chain(layers: Layers, in_channels: int, channels: int, kernel: Sequence[int], n_convs: int) -> nn.Sequential:
    """Chain convolutions with norm and activation after each but the last."""
    widths = (in_channels, *(channels,) * (n_convs - 1))
    return nn.Sequential(
        *(ConvNormActivation(layers, width, channels, kernel) for width in widths[:-1]),
        layers.conv(widths[-1], channels, kernel),
    )


class InputStage(nn.Module):
    """One convolution y; gives the activated y, and as DCA's source y plus a 1-wide convolution of the image."""

    def __init__(
        self, layers: Layers, in_channels: int, channels: int, kernel: Sequence[int], *, has_sum: bool, gives_sum: bool
    ) -> None:
        super().__init__()
        self.conv = layers.conv(in_channels, channels, kernel)
        if has_sum:
            self.project = layers.conv(in_channels, channels, 1)
        self.gives_sum = gives_sum
        self.out = layers.norm_activation(channels)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x = self.conv(image)
        out = self.out(x)
        return out, out, x + self.project(image) if self.gives_sum else None


class EncoderStage(nn.Module):
    """Strided convolution, then a chain of convolutions beside the identity; DCA's source is their sum."""

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        channels: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        n_convs: int,
    ) -> None:
        super().__init__()
        self.down = layers.downsample(in_channels, channels, stride)
        self.convs = _chain(layers, channels, channels, kernel, n_convs)
        self.out = layers.norm_activation(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.down(x)
        x = x + self.convs(x)
        out = self.out(x)
        return out, out, x


class DecoderLevel(nn.Module):
    """Transposed convolution u; a chain of convolutions over the skip and the activated u; their sum with u."""

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        channels: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        n_convs: int,
    ) -> None:
        super().__init__()
        self.up = layers.upsample(in_channels, channels, stride)
        self.up_out = layers.norm_activation(channels)
        self.convs = _chain(layers, 2 * channels, channels, kernel, n_convs)
        self.out = layers.norm_activation(channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        return self.out(x + self.convs(torch.cat((skip, self.up_out(x)), dim=1)))


class VNet(UShapedNetwork):
    """V-Net with or without DCA; arguments as in `UShapedNetwork`. Stage i (from 1) has min(i, 3) convolutions."""

    AUTHORS_ACTIVATION: ClassVar[str] = "prelu"

    def __init__(self, input_channels: int, num_classes: int, **arguments: Any) -> None:
        super().__init__(input_channels, num_classes, **arguments)
        widths, strides = self.features, self.strides
        kernels = [tuple(2 * size - 1 for size in kernel) for kernel in self.kernel_sizes]
        n_convs = [min(stage + 1, MOST_CONVS) for stage in range(len(widths))]
        gives_sum = self.dca_stages > 0
        self.encoder = nn.ModuleList(
            [
                InputStage(
                    self.layers,
                    input_channels,
                    widths[0],
                    kernels[0],
                    has_sum=gives_sum or self.unused_layers,
                    gives_sum=gives_sum,
                ),
                *(
                    EncoderStage(
                        self.layers, widths[stage - 1], widths[stage], kernels[stage], strides[stage], n_convs[stage]
                    )
                    for stage in range(1, len(widths))
                ),
            ]
        )
        if self.dca_stages:
            self.dca = self.make_dca(widths)
        self.decoder = self.make_decoder(
            [
                DecoderLevel(
                    self.layers, widths[stage + 1], widths[stage], kernels[stage], strides[stage + 1], n_convs[stage]
                )
                for stage in reversed(range(len(widths) - 1))
            ],
            widths,
        )
