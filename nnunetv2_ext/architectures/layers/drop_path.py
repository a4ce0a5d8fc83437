"""Stochastic depth."""

from __future__ import annotations

from torch import Tensor, nn

from nnunetv2_ext.architectures.layers.rates import check_rate

__all__ = ["DropPath"]


class DropPath(nn.Module):
    """Stochastic depth: in training, drop the residual branch of a sample, and scale up the branches that are left.

    Args:
        rate: probability of dropping, in [0, 1).

    Raises:
        ValueError: for another rate.

    Shape:
        (B, ...) to the same.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = check_rate("Rate of stochastic depth", rate)

    def extra_repr(self) -> str:
        return f"{self.rate:g}"

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.rate):
            return x
        keep = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))
