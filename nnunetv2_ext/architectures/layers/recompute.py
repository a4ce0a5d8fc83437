"""Recomputation in the backward pass: memory for time, with the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["recompute"]


Result = TypeVar("Result")


def recompute(function: Callable[..., Result], *inputs: Tensor) -> Result:
    """Apply `function` so that the backward pass keeps `inputs` alone and computes the rest again.

    Random numbers (dropout) and autocast are the same in both runs. `function` must not change any state: a batch norm
    would update its running statistics twice.
    """
    if torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)
