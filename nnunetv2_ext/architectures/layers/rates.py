"""Rates of dropout and of stochastic depth, checked where a network is built."""

from __future__ import annotations

__all__ = ["check_rate"]


def check_rate(name: str, rate: float) -> float:
    """Return a rate, once it is sure that training can go on with it.

    Args:
        name: name of the argument, for the error.
        rate: share that is dropped; what is left is scaled by 1 / (1 - rate), so that nothing finite is left at 1.

    Raises:
        ValueError: if the rate is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"{name} is {rate}: a rate is at least 0 and less than 1.")
    return rate
