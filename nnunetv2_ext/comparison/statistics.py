"""Statistics of paired scores: pure functions on arrays, by scipy.

A table has one row per unit (a case, or a dataset) and one column per trainer; NaN where a score is not defined.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import ndtr, ndtri

__all__ = [
    "RESAMPLES",
    "SEED",
    "FriedmanTest",
    "bootstrap_ranks",
    "critical_difference",
    "friedman",
    "holm",
    "kendall_tau",
    "mean_intervals",
    "rank_biserial",
    "ranks_of",
    "wilcoxon",
]

RESAMPLES = 9999
SEED = 0
_AT_ONCE = 2**21  # numbers of a block of resamples


def _resampled_counts(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw bootstrap samples of `n` units, in blocks: how often each unit is in each sample, shape (samples, n)."""
    rng = np.random.default_rng(seed)
    block = max(1, _AT_ONCE // n)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(0, n, (size, n)) + np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(float)


def _resampled_means(table: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Average the columns of a table without NaN over bootstrap samples of its rows, shape (samples, columns)."""
    n = len(table)
    return np.concatenate([counts @ table / n for counts in _resampled_counts(n, resamples, seed)])


def mean_intervals(
    table: np.ndarray, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """Find the confidence intervals of the means of columns by BCa bootstrap over the rows.

    These are the intervals of `scipy.stats.bootstrap(..., method="BCa")` for the same random numbers. All columns share
    the samples, so that a mean is a product of matrices, and the jackknife of a mean has a closed form.

    Args:
        table: shape (units, columns), without NaN.
        confidence: confidence of the intervals.
        resamples: number of bootstrap samples.
        seed: seed of the random numbers.

    Returns:
        Lower and upper ends, shape (columns, 2); NaN for fewer than two units. A column of equal numbers has an
        interval without width.
    """
    n, columns = table.shape
    if n < 2:
        return np.full((columns, 2), np.nan)
    means = table.mean(axis=0)
    # Around the means, where rounding is least.
    centred = table - means
    drawn = np.sort(_resampled_means(centred, resamples, seed), axis=0)
    spread = (centred**2).sum(axis=0)
    constant = np.ptp(table, axis=0) == 0
    # A sample that holds each unit once has the mean itself, up to rounding; of few units such samples are frequent.
    same = 1e-13 * np.abs(table).max(axis=0)
    below = (drawn < -same).sum(axis=0) + (drawn <= same).sum(axis=0)
    # All samples on one side occur for few units only; the probit needs a share inside (0, 1).
    share = np.clip(below / (2 * resamples), 0.5 / resamples, 1 - 0.5 / resamples)
    bias = ndtri(share)
    with np.errstate(invalid="ignore", divide="ignore"):
        # scipy's jackknife, written out for a mean: leaving unit i out moves the mean by -centred[i] / (n - 1).
        skew = np.where(constant, 0.0, (centred**3).sum(axis=0) / (6 * spread**1.5))
    tail = (1 - confidence) / 2
    ends = np.empty((columns, 2))
    for side, z in enumerate((ndtri(tail), ndtri(1 - tail))):
        shifted = bias + z
        level = ndtr(bias + shifted / (1 - skew * shifted))
        for column in range(columns):
            ends[column, side] = means[column] + _quantile(drawn[:, column], level[column])
    ends[constant] = table[0, constant][:, None]
    return ends


def _quantile(ordered: np.ndarray, level: float) -> float:
    """Return a quantile of ordered numbers, linearly interpolated as numpy does."""
    place = level * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (place - low) * (ordered[high] - ordered[low]))


def wilcoxon(differences: np.ndarray) -> float:
    """Return the p value of Wilcoxon's signed-rank test, two-sided, with zeros after Pratt.

    Args:
        differences: per unit, without NaN; at least one.

    Returns:
        1 where all differences are zero.
    """
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="pratt", method="auto").pvalue)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Correct p values for being several, by Holm's step-down procedure."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate((len(p_values) - np.arange(len(p_values))) * p_values[order])
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(stepped, 1)
    return corrected


def rank_biserial(differences: np.ndarray) -> float:
    """Return the matched-pairs rank-biserial correlation, from -1 to 1.

    Positive minus negative part of the ranks of the absolute differences, as shares of both; zeros are ranked with the
    others, as by Pratt, and then left out.

    Args:
        differences: per unit, without NaN; at least one.

    Returns:
        0 where all differences are zero.
    """
    ranks = stats.rankdata(np.abs(differences))
    positive, negative = ranks[differences > 0].sum(), ranks[differences < 0].sum()
    return float((positive - negative) / (positive + negative)) if positive + negative else 0.0


def ranks_of(table: np.ndarray, *, higher_is_better: bool) -> np.ndarray:
    """Rank within each row, 1 is best; ties share the mean of their ranks."""
    return stats.rankdata(-table if higher_is_better else table, axis=1)


@dataclass(frozen=True)
class FriedmanTest:
    """Friedman's chi-square, corrected for ties, and its p value."""

    statistic: float
    p: float


def friedman(table: np.ndarray) -> FriedmanTest:
    """Test whether any of three or more columns differs.

    Args:
        table: shape (units, columns), without NaN.

    Returns:
        Statistic 0 and p 1 where all columns are equal in every row.
    """
    if not np.ptp(table, axis=1).any():
        return FriedmanTest(0.0, 1.0)
    found = stats.friedmanchisquare(*table.T)
    return FriedmanTest(float(found.statistic), float(found.pvalue))


def critical_difference(columns: int, units: int, *, level: float = 0.05) -> float:
    """Return Nemenyi's critical difference of mean ranks."""
    quantile = stats.studentized_range.ppf(1 - level, columns, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(columns * (columns + 1) / (6 * units)))


def kendall_tau(ranks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the agreement (tau-b) of one ranking with others.

    Args:
        ranks: shape (columns,).
        others: shape (rankings, columns).

    Returns:
        One number per ranking: 1 for the same ranking, and 0 where one of both does not tell any two columns apart.
    """
    unique, back = np.unique(others, axis=0, return_inverse=True)
    found = np.empty(len(unique))
    for index, other in enumerate(unique):
        if (other == ranks).all():
            found[index] = 1.0
        elif not np.ptp(other) or not np.ptp(ranks):
            found[index] = 0.0
        else:
            found[index] = stats.kendalltau(ranks, other).statistic
    return found[back.ravel()]


def bootstrap_ranks(
    table: np.ndarray, *, higher_is_better: bool, resamples: int = RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """Rank the columns by their means over bootstrap samples of the rows, shape (samples, columns)."""
    # Sums of the same numbers in another order differ in their last digits, which would break ties.
    means = np.round(_resampled_means(table, resamples, seed), 12)
    return ranks_of(means, higher_is_better=higher_is_better)
