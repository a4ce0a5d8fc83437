"""Resizing feature maps: averages over windows on the way down, linear interpolation on the way up.

Both are one small matrix product an axis. Unlike torch's own pooling and interpolation they keep nothing of the map for
the backward pass, add up gradients in a fixed order on a GPU, and stay fast where one position of the grid stands for
thousands of voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["average_to", "interpolate_to"]


def average_to(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Average a map over the windows of a grid, as adaptive average pooling does.

    Window j of an axis of size s reaches from floor(j s / g) to ceil((j + 1) s / g).

    Shape:
        (B, C, *size) to (B, C, *grid), in 2D and 3D.
    """
    return _resize(x, grid, F.adaptive_avg_pool1d)


def interpolate_to(x: Tensor, size: Sequence[int], *, plus: Tensor | None = None) -> Tensor:
    """Interpolate a map linearly (bilinear, trilinear) so that corners stay at corners.

    Args:
        x: the map.
        size: positions per axis to give.
        plus: a map of that size, which is added to the result.

    Shape:
        (B, C, *grid) to (B, C, *size), in 2D and 3D.
    """
    return _resize(x, size, lambda unit, want: F.interpolate(unit, size=want, mode="linear", align_corners=True), plus)


def _resize(
    x: Tensor, size: Sequence[int], one_axis: Callable[[Tensor, int], Tensor], plus: Tensor | None = None
) -> Tensor:
    """Apply a linear map to each axis in turn, the last one first, where rows lie together in memory."""
    for axis in reversed(range(2, x.ndim)):
        have, want = x.shape[axis], size[axis - 2]
        if have == want:
            continue
        unit = torch.eye(have, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        weights = one_axis(unit[None], want)[0].to(x.dtype)  # (have, want)
        if axis == x.ndim - 1:
            x = x @ weights
        else:
            rest = x.shape[axis + 1 :]
            x = weights.t() @ x.flatten(axis + 1)
            if axis == 2 and plus is not None and plus.dtype == x.dtype:
                # In place, and before the result is seen under another shape: autograd copies for in-place views.
                x, plus = x.add_(plus.flatten(3)), None
            x = x.unflatten(axis + 1, rest)
    return x if plus is None else x + plus
