"""Resizing feature maps: averages over windows on the way down, linear interpolation on the way up.

Unlike torch's own pooling and interpolation they keep nothing of the map for the backward pass, add up gradients in a
fixed order on a GPU, and stay fast where one position of the grid stands for thousands of voxels. Windows that do not
overlap are one mean; all else is one small matrix product per axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Interpolation", "average_to", "interpolate_to"]


def average_to(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Average a map over the windows of a grid, as adaptive average pooling does.

    Window j of an axis of size s reaches from floor(j s / g) to ceil((j + 1) s / g).

    Shape:
        (B, C, *size) to (B, C, *grid), in 2D and 3D.
    """
    size = x.shape[2:]
    if any(have % want for have, want in zip(size, grid, strict=True)):
        return _resize(x, [_averages(*axis, like=x) for axis in zip(size, grid, strict=True)])
    windows = [part for have, want in zip(size, grid, strict=True) for part in (want, have // want)]
    return x.reshape(*x.shape[:2], *windows).mean(dim=tuple(range(3, 2 + len(windows), 2)))


def interpolate_to(x: Tensor, size: Sequence[int], *, plus: Tensor | None = None) -> Tensor:
    """Interpolate a map linearly (bilinear, trilinear) so that corners stay at corners.

    Args:
        x: the map.
        size: positions per axis to give.
        plus: a map of that size, which is added to the result.

    Shape:
        (B, C, *grid) to (B, C, *size), in 2D and 3D.
    """
    return _resize(x, [_interpolates(*axis, like=x) for axis in zip(x.shape[2:], size, strict=True)], plus)


class Interpolation(nn.Module):
    """`interpolate_to` between sizes that are known when a network is built, so that its matrices are made once.

    The matrices are no part of the state dict. Whatever moves or casts the module makes them anew, so that they are
    right after `to_empty` and exact after `double`.

    Args:
        grid: positions per axis of the map.
        size: positions per axis to give.

    Shape:
        (B, C, *grid) to (B, C, *size), in 2D and 3D.
    """

    def __init__(self, grid: Sequence[int], size: Sequence[int]) -> None:
        super().__init__()
        self.grid, self.size = tuple(grid), tuple(size)
        for axis in range(len(self.size)):
            self.register_buffer(f"axis{axis}", None, persistent=False)
        self._fill(torch.empty(()))

    def _fill(self, like: Tensor) -> None:
        for axis, sizes in enumerate(zip(self.grid, self.size, strict=True)):
            setattr(self, f"axis{axis}", _interpolates(*sizes, like=like))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        moved = next(self.buffers(), None)
        if moved is not None:
            self._fill(moved)
        return self

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        return _resize(x, [getattr(self, f"axis{axis}") for axis in range(len(self.size))], plus)


def _averages(have: int, want: int, *, like: Tensor) -> Tensor | None:
    """Make the matrix (have, want) that averages an axis; None where it would change nothing."""
    return _matrix(have, want, lambda unit: F.adaptive_avg_pool1d(unit, want), like)


def _interpolates(have: int, want: int, *, like: Tensor) -> Tensor | None:
    """Make the matrix (have, want) that interpolates an axis; None where it would change nothing."""
    return _matrix(have, want, lambda unit: F.interpolate(unit, size=want, mode="linear", align_corners=True), like)


def _matrix(have: int, want: int, apply: Callable[[Tensor], Tensor], like: Tensor) -> Tensor | None:
    if have == want:
        return None
    unit = torch.eye(have, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    return apply(unit[None])[0].to(like.dtype)


def _resize(x: Tensor, matrices: Sequence[Tensor | None], plus: Tensor | None = None) -> Tensor:
    """Apply a matrix (have, want) to each axis in turn, the last one first, where rows lie together in memory."""
    for axis in reversed(range(2, x.ndim)):
        matrix = matrices[axis - 2]
        if matrix is None:
            continue
        matrix = matrix.to(x.dtype)
        before, rest = x.shape[:axis], x.shape[axis + 1 :]
        if axis == x.ndim - 1:
            x = (x.flatten(0, -2) @ matrix).view(*before, -1)
        else:
            batch = math.prod(before)
            x = torch.bmm(matrix.t().expand(batch, -1, -1), x.reshape(batch, x.shape[axis], -1))
            if axis == 2 and plus is not None and plus.dtype == x.dtype:
                # In place, and before the result is seen under another shape: autograd copies for in-place views.
                x, plus = x.add_(plus.reshape(x.shape)), None
            x = x.view(*before, -1, *rest)
    return x if plus is None else x + plus
