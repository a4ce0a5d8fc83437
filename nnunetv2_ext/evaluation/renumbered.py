"""Finding out whether one side of an evaluation has its labels in another order than the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from nnunetv2_ext.images.labels import LabelMap

__all__ = ["add_tables", "describe_renumbering", "find_renumbering"]

# Organs that were exchanged hardly meet their namesakes, and lie nearly where another organ of the other side lies.
_NEAR_NOTHING, _THE_SAME = 0.1, 0.8


def find_renumbering(table: np.ndarray) -> dict[int, int]:
    """Find labels of the prediction that lie where the reference has other labels.

    Args:
        table: how often each value of the reference (rows) meets each value of the prediction (columns), (N, N); the
            first row and column are the background.

    Returns:
        For each such value of the prediction the reference's value there. Empty unless two or more labels have a Dice
        near 0 with their own number, and each of them a Dice above 0.8 with another one, no two with the same.
    """
    counts = np.asarray(table, dtype=float)
    sums = counts.sum(axis=1)[:, None] + counts.sum(axis=0)[None]
    dices = np.divide(2 * counts, sums, out=np.zeros_like(counts), where=sums > 0)[1:, 1:]
    lost = np.diag(dices) < _NEAR_NOTHING
    rows = np.flatnonzero(lost & (counts.sum(axis=1)[1:] > 0))
    columns = np.flatnonzero(lost & (counts.sum(axis=0)[1:] > 0))
    if len(rows) < 2 or len(columns) < 2:
        return {}
    chosen = dices[np.ix_(rows, columns)]
    pairs = list(zip(*linear_sum_assignment(chosen, maximize=True), strict=True))
    if min(chosen[pair] for pair in pairs) <= _THE_SAME:
        return {}
    return {int(columns[column]) + 1: int(rows[row]) + 1 for row, column in pairs}


def describe_renumbering(found: Mapping[int, int], labels: LabelMap) -> str:
    """Describe which labels of the predictions are which of the references."""
    names = {value: name for name, value in labels.classes.items() if isinstance(value, int)}

    def named(value: int) -> str:
        return f"{value} ({names[value]})" if value in names else str(value)

    parts = [f"{value} lies on {named(other)}" for value, other in sorted(found.items())]
    return (
        "the labels of the prediction look renumbered against the reference: "
        f"{', '.join(parts)}. Convert one side, or say with --labels what both mean"
    )


def add_tables(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Add tables of different sizes, whose values are numbered alike."""
    size = max(len(table) for table in tables)
    total = np.zeros((size, size), dtype=np.int64)
    for table in tables:
        total[: len(table), : len(table)] += table
    return total
