"""Layers that two or more of the six networks share, in the dimension, norm and activation that a network is built for.

Shape legend: B batch, C channels, *grid positions per axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.layers import nd
from nnunetv2_ext.architectures.layers.recompute import recompute

__all__ = ["ConvNormActivation", "Layers", "SqueezeExcitation", "enlarge"]

INTERPOLATION = {2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Layers:
    """Makes the layers of one network.

    Attributes:
        spatial_dims: 2 or 3.
        norm: `batch` as the authors have it, or `instance` as nnU-Net plans it.
        activation: `relu`, `prelu` (one slope) or `leaky_relu` (slope 0.01).

    Raises:
        ValueError: for a norm or an activation of another name.
    """

    spatial_dims: int
    norm: str
    activation: str

    NORMS: ClassVar[dict[str, Callable[[int], type[nn.Module]]]] = {
        "batch": nd.batch_norm,
        "instance": nd.instance_norm,
    }
    ACTIVATIONS: ClassVar[dict[str, tuple[type[nn.Module], dict[str, Any]]]] = {
        "relu": (nn.ReLU, {"inplace": True}),
        "leaky_relu": (nn.LeakyReLU, {"negative_slope": 0.01, "inplace": True}),
        "prelu": (nn.PReLU, {}),  # torch has none that works in place
    }

    def __post_init__(self) -> None:
        for what, known in (("norm", self.NORMS), ("activation", self.ACTIVATIONS)):
            if getattr(self, what) not in known:
                raise ValueError(f"The {what} {getattr(self, what)!r} is none of {', '.join(known)}.")

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int] | int,
        *,
        stride: Sequence[int] | int = 1,
        dilation: Sequence[int] | int = 1,
        bias: bool = True,
    ) -> nn.Module:
        """Make a convolution whose output has the size of its input, divided by the stride."""
        kernel, stride, dilation = (self._per_axis(value) for value in (kernel, stride, dilation))
        padding = tuple((size - 1) // 2 * step for size, step in zip(kernel, dilation, strict=True))
        return nd.conv(self.spatial_dims)(
            in_channels, out_channels, kernel, stride=stride, padding=padding, dilation=dilation, bias=bias
        )

    def downsample(self, in_channels: int, out_channels: int, stride: Sequence[int]) -> nn.Module:
        """Make a convolution with kernel = stride."""
        return nd.conv(self.spatial_dims)(in_channels, out_channels, tuple(stride), stride=tuple(stride))

    def upsample(self, in_channels: int, out_channels: int, stride: Sequence[int]) -> nn.Module:
        """Make a transposed convolution with kernel = stride."""
        return nd.conv_transpose(self.spatial_dims)(in_channels, out_channels, tuple(stride), stride=tuple(stride))

    def max_pool(self, stride: Sequence[int]) -> nn.Module:
        """Make a max pooling with window = stride; nothing where there is no stride."""
        if set(stride) == {1}:
            return nn.Identity()
        return MaxPool(stride)

    @property
    def norm_class(self) -> type[nn.Module]:
        """Class of the norm."""
        return self.NORMS[self.norm](self.spatial_dims)

    def normalise(self, channels: int) -> nn.Module:
        """Make a norm with a learned scale and shift per channel."""
        return self.norm_class(channels, affine=True)

    def activate(self) -> nn.Module:
        """Make an activation. It works in place: the tensor that it gets must be one that nothing else reads."""
        activation, arguments = self.ACTIVATIONS[self.activation]
        return activation(**arguments)

    def norm_activation(self, channels: int) -> nn.Sequential:
        """Make a norm followed by an activation."""
        return nn.Sequential(self.normalise(channels), self.activate())

    def _per_axis(self, value: Sequence[int] | int) -> tuple[int, ...]:
        return (value,) * self.spatial_dims if isinstance(value, int) else tuple(value)


class MaxPool(nn.Module):
    """Max pooling with window = stride.

    It is computed again in the backward pass: its indices, eight bytes each, take half as much memory as its input,
    which is kept anyway.

    Args:
        stride: per axis.

    Shape:
        (B, C, *grid) to (B, C, *grid / stride).
    """

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        return recompute(self._pool, x)

    def _pool(self, x: Tensor) -> Tensor:
        return (F.max_pool2d if len(self.stride) == 2 else F.max_pool3d)(x, self.stride)


class ConvNormActivation(nn.Module):
    """Convolution, norm, and an activation unless it is switched off.

    Args:
        layers: makes the layers.
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: per axis.
        dilation: per axis.
        bias: whether the convolution has one.
        activation: whether an activation follows.

    Shape:
        (B, in_channels, *grid) to (B, out_channels, *grid).
    """

    def __init__(
        self,
        layers: Layers,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int] | int,
        *,
        dilation: Sequence[int] | int = 1,
        bias: bool = True,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.conv = layers.conv(in_channels, out_channels, kernel, dilation=dilation, bias=bias)
        self.norm = layers.normalise(out_channels)
        self.activation = layers.activate() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class SqueezeExcitation(nn.Module):
    """Multiply each channel by a gate in (0, 1), computed from the averages of all channels.

    Args:
        channels: C.
        hidden: units between the two linear maps.

    Shape:
        (B, C, *grid) to the same.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.excite = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.flatten(2).mean(dim=2)))))  # (B, C)
        return x * gate.view(*gate.shape, *(1,) * (x.ndim - 2))


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Interpolate linearly, with corners aligned, to the size of another tensor."""
    return F.interpolate(x, size=like.shape[2:], mode=INTERPOLATION[x.ndim - 2], align_corners=True)
