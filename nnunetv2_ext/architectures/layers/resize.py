"""Resizing feature maps: averages over windows on the way down, linear interpolation on the way up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["average_to", "interpolate_to"]


def average_to(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Average a map over the windows of a grid (adaptive average pooling).

    Window j of an axis of size s reaches from floor(j s / g) to ceil((j + 1) s / g).

    Shape:
        (B, C, *size) to (B, C, *grid), in 2D and 3D.
    """
    size = x.shape[2:]
    if all(have % want == 0 for have, want in zip(size, grid, strict=True)):
        # A mean over split axes keeps nothing for the backward pass; pooling would keep the whole map.
        for axis, (have, want) in enumerate(zip(size, grid, strict=True)):
            x = x.unflatten(2 + 2 * axis, (want, have // want))
        return x.mean(dim=tuple(range(3, x.ndim, 2)))
    pool = F.adaptive_avg_pool2d if len(size) == 2 else F.adaptive_avg_pool3d
    return pool(x, tuple(grid))


def interpolate_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate a map linearly (bilinear, trilinear) so that corners stay at corners.

    One small matrix product an axis, which grows the last axis first: unlike torch's own interpolation its backward
    pass adds up in a fixed order on a GPU, and is no slower where one position of the grid meets thousands of voxels.

    Shape:
        (B, C, *grid) to (B, C, *size), in 2D and 3D.
    """
    for axis in reversed(range(2, x.ndim)):
        have, want = x.shape[axis], size[axis - 2]
        if have == want:
            continue
        unit = torch.eye(have, dtype=torch.float32, device=x.device)[None]
        weights = F.interpolate(unit, size=want, mode="linear", align_corners=True)[0].to(x.dtype)  # (have, want)
        if axis == x.ndim - 1:
            x = x @ weights
        else:
            rest = x.shape[axis + 1 :]
            x = (weights.t() @ x.flatten(axis + 1)).unflatten(axis + 1, rest)
    return x
