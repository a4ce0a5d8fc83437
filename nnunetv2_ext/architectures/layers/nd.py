"""torch's layers by dimension, so that a network is written once for 2D and 3D."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = [
    "batch_norm",
    "channel_dropout",
    "channels_first",
    "channels_last",
    "conv",
    "conv_transpose",
    "instance_norm",
]


def _pick(spatial_dims: int, in_2d: type[nn.Module], in_3d: type[nn.Module]) -> type[nn.Module]:
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims is {spatial_dims}; only 2 and 3 exist.")
    return in_2d if spatial_dims == 2 else in_3d


def conv(spatial_dims: int) -> type[nn.Module]:
    """Return the convolution class of a dimension."""
    return _pick(spatial_dims, nn.Conv2d, nn.Conv3d)


def conv_transpose(spatial_dims: int) -> type[nn.Module]:
    """Return the transposed convolution class of a dimension."""
    return _pick(spatial_dims, nn.ConvTranspose2d, nn.ConvTranspose3d)


def batch_norm(spatial_dims: int) -> type[nn.Module]:
    """Return the batch norm class of a dimension."""
    return _pick(spatial_dims, nn.BatchNorm2d, nn.BatchNorm3d)


def instance_norm(spatial_dims: int) -> type[nn.Module]:
    """Return the instance norm class of a dimension."""
    return _pick(spatial_dims, nn.InstanceNorm2d, nn.InstanceNorm3d)


def channel_dropout(spatial_dims: int) -> type[nn.Module]:
    """Return the dropout class that zeroes whole channels."""
    return _pick(spatial_dims, nn.Dropout2d, nn.Dropout3d)


def channels_last_format(spatial_dims: int) -> torch.memory_format:
    """Return the memory format in which the channels of a map lie together."""
    return torch.channels_last if spatial_dims == 2 else torch.channels_last_3d


def put_channels_last(module: nn.Module) -> None:
    """Let the channels of all weights of convolutions lie together in memory; their shapes stay."""
    nn.utils.convert_conv2d_weight_memory_format(module, torch.channels_last)
    nn.utils.convert_conv3d_weight_memory_format(module, torch.channels_last_3d)


def channels_last(x: Tensor) -> Tensor:
    """Move the channels of a map behind its axes: (B, C, *n) to a view (B, *n, C)."""
    return x.permute(0, *range(2, x.ndim), 1)


def channels_first(x: Tensor) -> Tensor:
    """Move the channels of a map before its axes: (B, *n, C) to a view (B, C, *n)."""
    return x.permute(0, x.ndim - 1, *range(1, x.ndim - 1))
