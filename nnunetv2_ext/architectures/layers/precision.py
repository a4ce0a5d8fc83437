"""Precision of what goes into matrix products and convolutions, and comes out of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["as_factor", "without_autocast"]


def as_factor(x: Tensor) -> Tensor:
    """Cast to the precision that autocast will use for a product, if it is on.

    Autocast computes norms in float32 on CUDA and casts where a product begins. A copy or a concatenation between the
    two moves half of the bytes if the cast comes first.
    """
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def without_autocast(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer to an image in the precision of its weights where autocast is on, and as it is elsewhere.

    A 1-wide convolution of an image of one channel gives w x + b for each channel. Where w is small against b, all
    that a norm keeps of the channel are its last digits, which half precision has rounded away.
    """
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return layer(x)
    with torch.autocast(kind, enabled=False):
        return layer(x.float())
