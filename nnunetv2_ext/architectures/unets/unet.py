"""U-Net, at half of its original width, with or without dual cross-attention on its skip connections.

Network: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", as Ates et al.
have it ("Dual Cross-Attention for Medical Image Segmentation"): bilinear upsampling followed by a convolution, and
skips that are the raw output of a stage's second convolution, without norm and activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.unets.blocks import ConvNormActivation, Layers, enlarge
from nnunetv2_ext.architectures.unets.common import UShapedNetwork

__all__ = ["UNet"]


class EncoderStage(nn.Module):
    """Max pooling, a normalised convolution, and a second one whose raw output is the skip and DCA's source."""

    def __init__(
        self, layers: Layers, in_channels: int, out_channels: int, kernel: Sequence[int], stride: Sequence[int]
    ) -> None:
        super().__init__()
        self.pool = layers.max_pool(stride)
        self.conv1 = ConvNormActivation(layers, in_channels, out_channels, kernel)
        self.conv2 = layers.conv(out_channels, out_channels, kernel)
        self.norm = layers.normalise(out_channels)
        self.activation = layers.activate()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        skip = self.conv2(self.conv1(self.pool(x)))
        return self.activation(self.norm(skip)), skip, skip


class DecoderLevel(nn.Module):
    """Interpolation and a convolution, then two convolutions over the result and the skip."""

    def __init__(self, layers: Layers, in_channels: int, out_channels: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.up = ConvNormActivation(layers, in_channels, out_channels, kernel)
        self.conv1 = ConvNormActivation(layers, 2 * out_channels, out_channels, kernel)
        self.conv2 = ConvNormActivation(layers, out_channels, out_channels, kernel)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(enlarge(x, skip))
        return self.conv2(self.conv1(torch.cat((x, skip), dim=1)))


class UNet(UShapedNetwork):
    """U-Net with or without DCA; arguments as in `UShapedNetwork`."""

    WIDTH_SCALE_3D: ClassVar[float] = 1

    def __init__(self, input_channels: int, num_classes: int, **arguments: Any) -> None:
        super().__init__(input_channels, num_classes, **arguments)
        widths, kernels = self.features, self.kernel_sizes
        self.encoder = nn.ModuleList(
            EncoderStage(self.layers, *channels, kernel, stride)
            for channels, kernel, stride in zip(
                zip((input_channels, *widths[:-1]), widths, strict=True), kernels, self.strides, strict=True
            )
        )
        if self.dca_stages:
            self.dca = self.make_dca(widths)
        self.decoder = self.make_decoder(
            [
                DecoderLevel(self.layers, widths[stage + 1], widths[stage], kernels[stage])
                for stage in reversed(range(len(widths) - 1))
            ],
            widths,
        )
