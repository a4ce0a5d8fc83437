"""Merging of neighbours, between the stages of a window transformer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.layers.recompute import recompute

__all__ = ["PatchMerging"]


class PatchMerging(nn.Module):
    """Between stages: the sub-grids of every stride-th position side by side, layer norm, linear map to 2 C.

    Args:
        channels: C.
        stride: per axis; an axis that it does not divide gets zeros at its end.
        offsets: the sub-grids, in order, by their first position; None: all, first axis fastest.

    Shape:
        (B, *n, C) to (B, *ceil(n / stride), 2 C).
    """

    def __init__(self, channels: int, stride: Sequence[int], offsets: Sequence[Sequence[int]] | None = None) -> None:
        super().__init__()
        self.stride = tuple(stride)
        every = [one[::-1] for one in itertools.product(*(range(step) for step in reversed(self.stride)))]
        self.offsets = tuple(every if offsets is None else (tuple(offset) for offset in offsets))
        # Numbers of the sub-grids, as `_sub_grids` has them; None where it has them in order.
        self._order = None if self.offsets == tuple(every) else [every.index(offset) for offset in self.offsets]
        self.norm = nn.LayerNorm(len(self.offsets) * channels)
        self.reduction = nn.Linear(len(self.offsets) * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return recompute(self._merge, x)

    def _merge(self, x: Tensor) -> Tensor:
        parts = self._sub_grids(x)
        if self._order is None:
            return self.reduction(self.norm(parts.flatten(-2)))
        # Whole sub-grids, whose gradients are sums of maps; those of an index would be added one number at a time.
        each = parts.unbind(-2)
        return self.reduction(self.norm(torch.cat([each[number] for number in self._order], dim=-1)))

    def _sub_grids(self, x: Tensor) -> Tensor:
        """Put every sub-grid beside the others, first axis fastest: (B, *n, C) to (B, *ceil(n / stride), number, C)."""
        missing = [-size % step for size, step in zip(x.shape[1:-1], self.stride, strict=True)]
        if any(missing):
            x = F.pad(x, (0, 0, *itertools.chain.from_iterable((0, size) for size in reversed(missing))))
        axes = len(self.stride)
        for axis in reversed(range(axes)):
            x = x.unflatten(1 + axis, (-1, self.stride[axis]))
        x = x.permute(0, *range(1, 2 * axes, 2), *reversed(range(2, 2 * axes + 1, 2)), 2 * axes + 1)
        return x.reshape(*x.shape[: 1 + axes], math.prod(self.stride), x.shape[-1])
