"""How many cases a comparison needs."""

from __future__ import annotations

import math
from statistics import NormalDist

__all__ = ["cases_needed", "smallest_p"]

# What Wilcoxon's signed-rank test makes of a case, measured by the t test, where differences are normally distributed.
_EFFICIENCY = 3 / math.pi


def cases_needed(deviation: float, difference: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Return about how many cases Wilcoxon's signed-rank test needs to see a difference.

    Args:
        deviation: standard deviation of the paired differences over the cases.
        difference: true mean of the differences.
        power: share of the studies that are to see it.
        alpha: two-sided level of the test; for m pairs under Holm's correction alpha / m is on the safe side.

    Raises:
        ValueError: if the difference is 0.
    """
    if difference == 0:
        raise ValueError("No number of cases shows a difference of 0.")
    normal = NormalDist()
    quantiles = normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)
    count = math.ceil((quantiles * deviation / difference) ** 2 / _EFFICIENCY)
    # However clear the difference, fewer cases cannot give a p that is small enough.
    while smallest_p(count) > alpha:
        count += 1
    return count


def smallest_p(cases: int, pairs: int = 1) -> float:
    """Return the smallest p that Wilcoxon's signed-rank test can give, after Holm's correction over so many pairs."""
    return min(1.0, pairs * 2.0 ** (1 - cases))
