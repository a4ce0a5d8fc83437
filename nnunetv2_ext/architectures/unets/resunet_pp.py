"""ResUNet++ with or without dual cross-attention on its skip connections.

Network: Jha et al., "ResUNet++: An Advanced Architecture for Medical Image Segmentation", as Ates et al. have it
("Dual Cross-Attention for Medical Image Segmentation"): residual stages with squeeze and excitation between them, an
atrous pyramid as bridge at the size of the deepest stage and another one at the output, and a gate in front of each
decoder level. The gate has no sigmoid: it multiplies by an unbounded number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.unets.blocks import ConvNormActivation, Layers, SqueezeExcitation
from nnunetv2_ext.architectures.unets.common import UShapedNetwork, scale_dilations

__all__ = ["ResUNetPP"]

DILATIONS = (1, 6, 12, 18)
# Positions per axis of the maps on which the authors use these dilations.
AUTHORS_BRIDGE_SIZE, AUTHORS_OUTPUT_SIZE = 28, 224
LEAST_SQUEEZED = 4


class InputStage(nn.Module):
    """Two convolutions, with norm and activation between them, beside one."""

    def __init__(self, layers: Layers, in_channels: int, channels: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = ConvNormActivation(layers, in_channels, channels, kernel)
        self.conv2 = layers.conv(channels, channels, kernel)
        self.project = layers.conv(in_channels, channels, kernel)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.conv2(self.conv1(x)) + self.project(x)
        return x, x, x


class ResidualBlock(nn.Module):
    """Twice norm, activation, convolution, the first with the stride, beside a 1-wide convolution of that stride.

    Shape:
        (B, in_channels, *grid) to (B, channels, *grid / stride).
    """

    def __init__(
        self, layers: Layers, in_channels: int, channels: int, kernel: Sequence[int], stride: Sequence[int] | int = 1
    ) -> None:
        super().__init__()
        self.pre1 = layers.norm_activation(in_channels)
        self.conv1 = layers.conv(in_channels, channels, kernel, stride=stride)
        self.pre2 = layers.norm_activation(channels)
        self.conv2 = layers.conv(channels, channels, kernel)
        self.project = layers.conv(in_channels, channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.pre2(self.conv1(self.pre1(x)))) + self.project(x)


class EncoderStage(nn.Module):
    """Squeeze and excitation, then a residual block; its sum is output, skip and DCA's source."""

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        channels: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        squeezed: int,
    ) -> None:
        super().__init__()
        self.excitation = SqueezeExcitation(in_channels, squeezed)
        self.block = ResidualBlock(layers, in_channels, channels, kernel, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.block(self.excitation(x))
        return x, x, x


class AtrousPyramid(nn.Module):
    """The sum of normalised convolutions of several dilations, then a normalised 1-wide convolution.

    Args:
        layers: makes the layers.
        in_channels: channels of the input.
        channels: channels of the output.
        kernel: per axis.
        dilations: one, per axis or for all axes, for each convolution.
        activation: whether an activation follows each of the convolutions.

    Shape:
        (B, in_channels, *grid) to (B, channels, *grid).
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        channels: int,
        kernel: Sequence[int],
        dilations: Sequence[Sequence[int] | int],
        *,
        activation: bool,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            ConvNormActivation(layers, in_channels, channels, kernel, dilation=dilation, activation=activation)
            for dilation in dilations
        )
        self.merge = ConvNormActivation(layers, channels, channels, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches
        total = first(x)
        for branch in others:
            total = total + branch(x)
        return self.merge(total)


class Gate(nn.Module):
    """Multiply the decoder's feature d by one number per position, computed from d and from the skip e one level up.

    a = pool(convolution(activation(norm(e)))) + convolution(activation(norm(d))); d times the 1-wide convolution, to
    one channel, of activation(norm(a)).

    Shape:
        d (B, channels, *grid / stride), e (B, skip_channels, *grid), to the shape of d.
    """

    def __init__(
        self,
        layers: Layers,
        channels: int,
        skip_channels: int,
        *,
        kernel: Sequence[int],
        skip_kernel: Sequence[int],
        stride: Sequence[int],
    ) -> None:
        super().__init__()
        self.of_skip = nn.Sequential(
            *layers.norm_activation(skip_channels),
            layers.conv(skip_channels, channels, skip_kernel),
            layers.max_pool(stride),
        )
        self.of_decoder = nn.Sequential(
            *layers.norm_activation(channels),
            layers.conv(channels, channels, kernel),
        )
        self.weigh = nn.Sequential(*layers.norm_activation(channels), layers.conv(channels, 1, 1))

    def forward(self, d: Tensor, e: Tensor) -> Tensor:
        return d * self.weigh(self.of_skip(e) + self.of_decoder(d))


class DecoderLevel(nn.Module):
    """The gate, nearest-neighbour interpolation, and a residual block over the result and the skip."""

    def __init__(self, layers: Layers, channels: int, skip_channels: int, out_channels: int, **gate: Any) -> None:
        super().__init__()
        self.gate = Gate(layers, channels, skip_channels, **gate)
        self.block = ResidualBlock(layers, channels + skip_channels, out_channels, gate["skip_kernel"])

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(self.gate(x, skip), size=skip.shape[2:])
        return self.block(torch.cat((x, skip), dim=1))


class ResUNetPP(UShapedNetwork):
    """ResUNet++ with or without DCA.

    Args:
        input_channels: channels of the input.
        num_classes: channels of the logits.
        bridge_features: channels of the bridge. None: twice those of the deepest stage, or as many, where the deepest
            two stages have the same width.
        squeezed_features: hidden units of squeeze and excitation behind each stage but the last. None: an eighth of the
            channels behind the first stage, a sixteenth later, and at least 4.
        bridge_dilations: dilations of the bridge's convolutions, per axis or for all axes.
        output_dilations: the same at the output.
        arguments: arguments as in `UShapedNetwork`.
    """

    AUTHORS_FEATURES: ClassVar[tuple[int, ...]] = (32, 64, 128, 256)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        bridge_features: int | None = None,
        squeezed_features: Sequence[int] | None = None,
        bridge_dilations: Sequence[Sequence[int] | int] = DILATIONS,
        output_dilations: Sequence[Sequence[int] | int] = DILATIONS,
        **arguments: Any,
    ) -> None:
        super().__init__(input_channels, num_classes, **arguments)
        widths, kernels, strides, layers = self.features, self.kernel_sizes, self.strides, self.layers
        n_skips = len(widths) - 1
        if bridge_features is None:
            bridge_features = 2 * widths[-1] if widths[-1] > widths[-2] else widths[-1]
        if squeezed_features is None:
            squeezed_features = [
                max(LEAST_SQUEEZED, width // (16 if stage else 8)) for stage, width in enumerate(widths[:-1])
            ]
        self.encoder = nn.ModuleList(
            [
                InputStage(layers, input_channels, widths[0], kernels[0]),
                *(
                    EncoderStage(
                        layers,
                        widths[stage - 1],
                        widths[stage],
                        kernels[stage],
                        strides[stage],
                        squeezed_features[stage - 1],
                    )
                    for stage in range(1, len(widths))
                ),
            ]
        )
        self.bottom = AtrousPyramid(
            layers, widths[-1], bridge_features, kernels[-1], bridge_dilations, activation=False
        )
        if self.dca_stages:
            self.dca = self.make_dca(widths)
        # A level's output is as wide as the stage below it.
        incoming = (*widths[2:], bridge_features)
        self.decoder = self.make_decoder(
            [
                DecoderLevel(
                    layers,
                    incoming[stage],
                    widths[stage],
                    widths[stage + 1],
                    kernel=kernels[stage + 1],
                    skip_kernel=kernels[stage],
                    stride=strides[stage + 1],
                )
                for stage in reversed(range(n_skips))
            ],
            (widths[0], *widths[2:]),
            output=AtrousPyramid(layers, widths[1], widths[0], kernels[0], output_dilations, activation=True),
        )

    @classmethod
    def settings_from_plan(cls, geometry: Geometry) -> dict[str, Any]:
        """Turn a plan into constructor arguments: as for every network, and dilations scaled to the plan's maps."""
        return {
            **super().settings_from_plan(geometry),
            "bridge_dilations": scale_dilations(DILATIONS, geometry.grid(geometry.n_stages - 1), AUTHORS_BRIDGE_SIZE),
            "output_dilations": scale_dilations(DILATIONS, geometry.patch_size, AUTHORS_OUTPUT_SIZE),
        }
