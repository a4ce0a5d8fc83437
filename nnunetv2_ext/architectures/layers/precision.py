"""Precision of what goes into matrix products and convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["as_factor"]


def as_factor(x: Tensor) -> Tensor:
    """Cast to the precision that autocast will use for a product, if it is on.

    Autocast computes norms in float32 on CUDA and casts where a product begins. A copy or a concatenation between the
    two moves half of the bytes if the cast comes first.
    """
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
