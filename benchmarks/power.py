"""Simulate how many cases a comparison needs to see a difference of one point of Dice in four studies out of five.

Each study draws paired differences with a true mean of 0.01, and tests them as `nnUNetv2_ext compare` does: Wilcoxon's
signed-rank test, zeros after Pratt. The differences are normal, or have heavy tails (Student's t with 3 degrees of
freedom, scaled to the same standard deviation), as where a few cases fail. Writes its table into docs/comparing.md.

Usage: python -m benchmarks.power [--studies N]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np

from benchmarks.page import PAGE, write_block
from nnunetv2_ext.comparison.report.power import cases_needed
from nnunetv2_ext.comparison.statistics import wilcoxon
from nnunetv2_ext.io.tables import format_table

DIFFERENCE, POWER, ALPHA = 0.01, 0.8, 0.05
DEVIATIONS = (0.01, 0.02, 0.03, 0.05, 0.08)

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def draw_normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return numbers of mean 0 and standard deviation 1."""
    return rng.standard_normal(shape)


def draw_heavy(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return the same with heavy tails."""
    return rng.standard_t(3, shape) / math.sqrt(3)


def find_cases(draw: Draw, deviation: float, alpha: float, studies: int) -> int:
    """Return the least number of cases with which the share of studies that see the difference reaches the power."""

    def power(cases: int) -> float:
        differences = DIFFERENCE + deviation * draw(np.random.default_rng(0), (studies, cases))
        return float(np.mean([wilcoxon(study) < alpha for study in differences]))

    low, high = 2, 3 * cases_needed(deviation, DIFFERENCE, alpha=alpha)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def main() -> None:
    """Simulate, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=400, metavar="N", help="studies per number (default: 400)")
    studies = parser.parse_args().studies
    rows = [
        (
            f"{deviation:g}",
            cases_needed(deviation, DIFFERENCE),
            find_cases(draw_normal, deviation, ALPHA, studies),
            find_cases(draw_heavy, deviation, ALPHA, studies),
            find_cases(draw_normal, deviation, ALPHA / 3, studies),
        )
        for deviation in DEVIATIONS
    ]
    header = ("standard deviation of the differences", "the report's estimate", "normal", "heavy tails", "three pairs")
    write_block("power", format_table(header, rows, markdown=True), PAGE.with_name("comparing.md"))


if __name__ == "__main__":
    main()
