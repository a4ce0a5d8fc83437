"""DoubleU-Net with or without dual cross-attention on its skip connections.

Network: Jha et al., "DoubleU-Net: A Deep Convolutional Neural Network for Medical Image Segmentation", as Ates et al.
have it ("Dual Cross-Attention for Medical Image Segmentation"). A first U-Net, whose encoder is VGG19's, untrained,
multiplies the image by a mask; a second one predicts from the product, and its decoder reads the skips of both
encoders. The mask is not supervised.

The published class cannot be built with DCA and cannot run without it. Repaired as the paper implies: its three DCA
modules have the same tokens, and without DCA both decoders read the first encoder's plain skips.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.layers.recompute import checkpoint
from nnunetv2_ext.architectures.unets.blocks import ConvNormActivation, Layers, SqueezeExcitation, enlarge
from nnunetv2_ext.architectures.unets.common import UShapedNetwork, scale_dilations

__all__ = ["DoubleUNet"]

DILATIONS = (1, 6, 12, 18)
AUTHORS_BOTTOM_SIZE = 14
REDUCTION = 8
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def convs_in_stage(stage: int) -> int:
    """Return the number of convolutions of a stage of VGG19's encoder, counted from 0."""
    return 2 if stage < 2 else 4


class VGGStage(nn.Module):
    """Max pooling, then convolutions with activations; the last convolution's raw output is skip and DCA's source.

    Args:
        layers: makes the layers.
        in_channels: channels of the input.
        channels: channels of the output.
        kernel: per axis.
        stride: stride of the pooling.
        n_convs: number of convolutions.
        norm: put a norm behind each convolution.
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        channels: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        *,
        n_convs: int,
        norm: bool,
    ) -> None:
        super().__init__()
        self.pool = layers.max_pool(stride)
        widths = (in_channels, *(channels,) * (n_convs - 1))
        self.convs = nn.ModuleList(layers.conv(width, channels, kernel) for width in widths)
        self.norms = nn.ModuleList(layers.normalise(channels) if norm else nn.Identity() for _ in widths)
        self.has_norm = norm
        self.activation = layers.activate()
        convs: Iterable[Any] = self.convs
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.pool(x)
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            x = self.activation(norm(conv(x)))
        skip = self.convs[-1](x)
        x = self.norms[-1](skip)
        # The activation works in place. Without a norm x is the skip itself, which must not be overwritten.
        return self.activation(x if self.has_norm else x.clone()), skip, skip


class ExcitedBlock(nn.Module):
    """Two normalised convolutions, then squeeze and excitation; gives its output and the second's raw output.

    Shape:
        (B, in_channels, *grid) to two of (B, channels, *grid).
    """

    def __init__(self, layers: Layers, in_channels: int, channels: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = ConvNormActivation(layers, in_channels, channels, kernel)
        self.conv2 = layers.conv(channels, channels, kernel)
        self.out = layers.norm_activation(channels)
        self.excitation = SqueezeExcitation(channels, max(1, channels // REDUCTION))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        source = self.conv2(self.conv1(x))
        return self.excitation(self.out(source)), source


class SecondEncoderStage(nn.Module):
    """Max pooling and a block; the block's raw output is skip and DCA's source."""

    def __init__(
        self, layers: Layers, in_channels: int, channels: int, kernel: Sequence[int], stride: Sequence[int]
    ) -> None:
        super().__init__()
        self.pool = layers.max_pool(stride)
        self.block = ExcitedBlock(layers, in_channels, channels, kernel)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, source = self.block(self.pool(x))
        return out, source, source


class AtrousPyramid(nn.Module):
    """A 1-wide convolution and dilated ones side by side, concatenated, then a 1-wide convolution; all normalised.

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
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvNormActivation(layers, in_channels, channels, 1),
                *(
                    ConvNormActivation(layers, in_channels, channels, kernel, dilation=dilation, bias=False)
                    for dilation in dilations
                ),
            ]
        )
        self.merge = ConvNormActivation(layers, len(self.branches) * channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(torch.cat([branch(x) for branch in self.branches], dim=1))


class DecoderLevel(nn.Module):
    """Interpolation, then a block over the skips (all of one size) and the result."""

    def __init__(
        self, layers: Layers, in_channels: int, skip_channels: int, channels: int, kernel: Sequence[int]
    ) -> None:
        super().__init__()
        self.block = ExcitedBlock(layers, skip_channels + in_channels, channels, kernel)

    def forward(self, x: Tensor, skips: tuple[Tensor, ...]) -> Tensor:
        return self.block(torch.cat((*skips, enlarge(x, skips[0])), dim=1))[0]


class DoubleUNet(UShapedNetwork):
    """DoubleU-Net with or without DCA.

    Args:
        input_channels: channels of the input.
        num_classes: channels of the logits.
        dilations: dilations of the convolutions at both bottoms, per axis or for all axes.
        encoder_norm: put norms into the first encoder, which has none in the paper.
        imagenet_input: normalise an image in [0, 1] by ImageNet's mean and deviation, and repeat a single channel three
            times.
        second_dca_input: what the second DCA module on the first encoder's skips reads: `first_dca`, the first one's
            output, as in the authors' code, or `encoder`, as the paper says.
        arguments: arguments as in `UShapedNetwork`; the second U-Net and the first decoder have half of `features`.

    Raises:
        ValueError: with `imagenet_input`, for other than one or three channels.
    """

    mean: Tensor
    deviation: Tensor

    AUTHORS_FEATURES: ClassVar[tuple[int, ...]] = (64, 128, 256, 512, 512)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        dilations: Sequence[Sequence[int] | int] = DILATIONS,
        encoder_norm: bool = False,
        imagenet_input: bool = True,
        second_dca_input: str = "first_dca",
        **arguments: Any,
    ) -> None:
        super().__init__(input_channels, num_classes, **arguments)
        if imagenet_input and input_channels not in (1, 3):
            raise ValueError(
                f"ImageNet's normalisation is for 1 or 3 channels, and there are {input_channels}: set imagenet_input "
                "to False."
            )
        if second_dca_input not in ("first_dca", "encoder"):
            raise ValueError(f"second_dca_input is {second_dca_input!r}, and must be 'first_dca' or 'encoder'.")
        self.second_dca_input = second_dca_input
        image_channels = 3 if imagenet_input else input_channels
        self.imagenet_input = imagenet_input
        if imagenet_input:
            shape = (3, *(1,) * len(self.patch_size))
            self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(shape), persistent=False)
            self.register_buffer("deviation", torch.tensor(IMAGENET_STD).view(shape), persistent=False)

        widths, kernels, strides, layers = self.features, self.kernel_sizes, self.strides, self.layers
        halves = [max(1, width // 2) for width in widths[:-1]]
        upwards = list(reversed(range(len(halves))))
        self.encoder = nn.ModuleList(
            VGGStage(
                layers,
                widths[stage - 1] if stage else image_channels,
                widths[stage],
                kernels[stage],
                strides[stage],
                n_convs=convs_in_stage(stage),
                norm=encoder_norm,
            )
            for stage in range(len(widths))
        )
        self.first_bottom = AtrousPyramid(layers, widths[-1], widths[0], kernels[-1], dilations)
        incoming = (*halves[1:], widths[0])
        self.first_decoder = nn.ModuleList(
            DecoderLevel(layers, incoming[stage], widths[stage], halves[stage], kernels[stage]) for stage in upwards
        )
        self.mask = layers.conv(halves[0], image_channels, 1)
        self.second_encoder = nn.ModuleList(
            SecondEncoderStage(
                layers, halves[stage - 1] if stage else image_channels, halves[stage], kernels[stage], strides[stage]
            )
            for stage in range(len(halves))
        )
        self.bottom = nn.Sequential(
            layers.max_pool(strides[-1]), AtrousPyramid(layers, halves[-1], widths[0], kernels[-1], dilations)
        )
        if self.dca_stages:
            self.dca = self.make_dca(widths)
            self.second_dca = self.make_dca(widths)
            self.second_encoder_dca = self.make_dca(halves)
        self.decoder = self.make_decoder(
            [
                DecoderLevel(layers, incoming[stage], widths[stage] + halves[stage], halves[stage], kernels[stage])
                for stage in upwards
            ],
            halves,
        )

    @classmethod
    def settings_from_plan(cls, geometry: Geometry) -> dict[str, Any]:
        """Turn a plan into constructor arguments.

        As for every network; dilations are scaled to the plan's deepest map; the first encoder gets norms, without
        which it does not train well at nnU-Net's learning rate; and the image is taken as nnU-Net normalised it.
        """
        return {
            **super().settings_from_plan(geometry),
            "dilations": scale_dilations(DILATIONS, geometry.grid(geometry.n_stages - 1), AUTHORS_BOTTOM_SIZE),
            "encoder_norm": True,
            "imagenet_input": False,
        }

    def encode(self, x: Tensor) -> tuple[Tensor, list[Any]]:
        """Run both encoders, with the first decoder between them; skips are pairs, the first encoder's first."""
        if self.imagenet_input:
            x = (x - self.mean) / self.deviation
        image = x
        x, plain, sources = self.run_stages(self.encoder, image)
        skips = self.attend(self.dca, sources, plain) if self.dca_stages else plain
        mask = self.mask(self._decode_first(self.first_bottom(x), skips))
        x, second_plain, second_sources = self.run_stages(self.second_encoder, torch.sigmoid(mask) * image)
        if self.dca_stages:
            if self.second_dca_input == "first_dca":
                sources = skips
            skips = self.attend(self.second_dca, sources, plain)
            second_plain = self.attend(self.second_encoder_dca, second_sources, second_plain)
        return x, list(zip(skips, second_plain, strict=True))

    def _decode_first(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        for level, skip in zip(self.first_decoder, reversed(skips), strict=True):
            x = checkpoint(level, x, (skip,)) if self.checkpointing else level(x, (skip,))
        return x
