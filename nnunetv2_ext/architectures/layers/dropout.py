"""Dropout in two halves, so that random numbers are drawn outside of what is computed twice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["apply_mask", "apply_rate", "draw_mask", "drop"]


def draw_mask(dropout: nn.Dropout, shape: Sequence[int], device: torch.device) -> Tensor | None:
    """Draw which elements a dropout keeps.

    Args:
        dropout: the layer, read for its rate and for whether it trains.
        shape: shape of the tensor that `apply_mask` will get, or one that broadcasts to it.
        device: device of the mask.

    Returns:
        A boolean mask, true where an element is kept; None where all are.
    """
    if not dropout.training or dropout.p == 0:
        return None
    return torch.empty(tuple(shape), dtype=torch.bool, device=device).bernoulli_(1 - dropout.p)


def apply_rate(x: Tensor, dropout: nn.Dropout) -> Tensor:
    """Scale by 1 / (1 - rate) in training; a factor of what is masked may take it, where that is the smaller tensor.

    Shape:
        x to the same.
    """
    return x * (1 / (1 - dropout.p)) if dropout.training and dropout.p else x


def apply_mask(x: Tensor, mask: Tensor | None, dropout: nn.Dropout) -> Tensor:
    """Zero what a mask of `draw_mask` does not keep, and scale the rest by 1 / (1 - rate), as the dropout itself does.

    Shape:
        x to the same.
    """
    return x if mask is None else apply_rate(x * mask, dropout)


def drop(x: Tensor, dropout: nn.Dropout) -> Tensor:
    """Apply a dropout by the one operator that torch itself takes for it on some devices, and three on others.

    Shape:
        x to the same.
    """
    return torch.native_dropout(x, dropout.p, train=True)[0] if dropout.training and dropout.p else x
