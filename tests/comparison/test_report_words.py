"""The sentences of a report say what the numbers allow, and no more."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from nnunetv2_ext.comparison.model import Comparison, Metric, Pair, Result
from nnunetv2_ext.comparison.report import words
from nnunetv2_ext.comparison.report.methods import describe_methods
from nnunetv2_ext.comparison.report.numbers import (
    format_amount,
    format_interval,
    format_number,
    format_p,
    format_signed,
)
from nnunetv2_ext.comparison.report.power import cases_needed, smallest_p
from nnunetv2_ext.comparison.report.tables import setup_table
from tests.comparison.example import METRICS, make_example

DICE, HD95 = METRICS


def with_pairs(comparison: Comparison, metric: str, *pairs: Pair) -> tuple[Comparison, Result]:
    """Replace the pairs of a result."""
    result = dataclasses.replace(comparison.result(metric), pairs=pairs)
    return comparison, result


def sentence(pair: Pair, metric: str = "Dice", n_cases: int = 20) -> str:
    return words.conclude(*with_pairs(make_example(("A", "B"), n_cases=n_cases), metric, pair))[0]


def test_a_difference_names_the_better_trainer() -> None:
    pair = Pair("B", "A", 20, 0.0123, (0.004, 0.02), 0.002, 0.004, 0.7, 16, 1, 3)
    assert sentence(pair) == (
        "B has the better Dice than A (mean difference +0.0123, 95 % interval +0.0040 to +0.0200, p = 0.004 after "
        "Holm's correction; 16 wins, 1 tie and 3 losses in 20 cases)."
    )
    assert sentence(dataclasses.replace(pair, difference=-0.0123, ci95=(-0.02, -0.004), effect=-0.7)).startswith(
        "A has the better Dice than B"
    )


def test_lower_distances_are_better() -> None:
    text = sentence(Pair("B", "A", 20, 1.5, (0.5, 2.5), 1e-5, 1e-5, 0.7, 3, 0, 17), "HD95")
    assert text.startswith("A has the better HD95 than B (mean difference +1.50 mm")
    assert "p < 0.001" in text


def test_a_null_result_is_not_equality() -> None:
    text = sentence(Pair("B", "A", 20, 0.002, (-0.006, 0.01), 0.4, 0.4, 0.2, 11, 0, 9))
    assert text.startswith("No difference between B and A was shown")
    assert text.endswith("That does not show that they are equal: the data allow a difference of up to 0.0100.")
    assert "better" not in text


def test_interval_and_test_that_disagree_are_said_to() -> None:
    few_large = sentence(Pair("B", "A", 20, 0.002, (-0.006, 0.01), 0.001, 0.001, 0.7, 18, 0, 2))
    assert "the interval of the mean holds 0" in few_large
    corrected = sentence(Pair("B", "A", 20, 0.01, (0.001, 0.02), 0.03, 0.09, 0.7, 14, 0, 6))
    assert corrected.startswith("No difference between B and A was shown")
    assert "not corrected for the number of pairs" in corrected
    assert "point opposite ways" in sentence(Pair("B", "A", 20, -0.01, (-0.05, 0.03), 0.01, 0.01, 0.6, 18, 0, 2))


def test_a_trainer_against_itself() -> None:
    text = sentence(Pair("B", "A", 20, 0.0, (0.0, 0.0), 1.0, 1.0, 0.0, 0, 20, 0))
    assert text.startswith("B and A have the same Dice in every case (mean difference 0.0000, 95 % interval 0.0000 to")


def test_no_common_case() -> None:
    text = sentence(Pair("B", "A", 0, None, None, None, None, None, 0, 0, 0))
    assert text == "B and A cannot be compared: no case has a number of both."


def test_too_few_cases_for_any_p() -> None:
    comparison = make_example(("A", "B", "C"), n_cases=6)
    said = " ".join(words.limits(comparison, comparison.result("Dice")))
    assert "With 6 cases and 3 pairs the smallest p that this test can give after the correction is 0.094" in said
    comparison = make_example(("A", "B"), n_cases=6)
    assert "6 cases are few" in " ".join(words.limits(comparison, comparison.result("Dice")))
    comparison = make_example(("A", "B"), n_cases=40)
    assert "few" not in " ".join(words.limits(comparison, comparison.result("Dice")))


@pytest.mark.parametrize("cases", [3, 5, 8])
def test_smallest_p_is_scipys(cases: int) -> None:
    assert smallest_p(cases) == pytest.approx(stats.wilcoxon(np.arange(1.0, cases + 1)).pvalue, abs=1e-12)
    assert smallest_p(cases, 100) == min(1.0, 100 * smallest_p(cases))


def test_few_datasets_are_said_to_be_few() -> None:
    two, three = (make_example(("A", "B"), tuple("XYZ"[:n]), n_cases=4) for n in (2, 3))
    assert "2 datasets are too few" in words.limits(two, two.result("Dice"))[0]
    assert "datasets are too few" not in " ".join(words.limits(three, three.result("Dice")))


def test_cases_needed_are_said_where_no_difference_was_shown() -> None:
    comparison = make_example(("A", "B"), n_cases=20)
    pair = dataclasses.replace(comparison.result("Dice").pairs[0], p_holm=0.4)
    _, result = with_pairs(comparison, "Dice", pair)
    deviation = float(np.std(np.subtract(result.values["B"], result.values["A"]), ddof=1))
    said = " ".join(words.limits(comparison, result))
    assert f"about {cases_needed(deviation, 0.01)} cases to see a true difference of 0.01 Dice" in said
    assert "to see a true difference" not in " ".join(words.limits(comparison, comparison.result("Dice")))


def test_cases_needed_are_enough_and_not_far_too_many() -> None:
    """Simulated: 400 studies with normal differences."""
    rng = np.random.default_rng(0)
    for deviation, difference in ((0.03, 0.02), (0.03, 0.01)):
        n = cases_needed(deviation, difference)
        studies = rng.normal(difference, deviation, (400, n))
        found = np.mean(stats.wilcoxon(studies, axis=1, method="approx").pvalue < 0.05)
        assert 0.74 <= found <= 0.88
    assert cases_needed(0.001, 1.0) == 6  # below, no p is small enough
    with pytest.raises(ValueError, match="difference of 0"):
        cases_needed(0.1, 0.0)


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (0.12345, DICE, "0.1235"), (-0.00001, DICE, "0.0000"), (-0.5, DICE, "\u22120.5000"), (3.14159, HD95, "3.14"),
        (None, DICE, "\u2013"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, metric: Metric, text: str) -> None:
    assert format_number(value, metric) == text


def test_signs_and_p() -> None:
    assert [format_signed(value, DICE) for value in (0.01, -0.01, 0.0, 1e-9)] == [
        "+0.0100",
        "\u22120.0100",
        "0.0000",
        "0.0000",
    ]
    assert format_interval((-0.01, 0.02), DICE, signed=True) == "\u22120.0100 to +0.0200"
    assert [format_p(p) for p in (None, 0.0004, 0.05, 1.0)] == ["\u2013", "< 0.001", "0.050", "1.000"]


def test_methods_paragraph_states_what_was_done() -> None:
    comparison = make_example(("A", "B", "C"))
    text = describe_methods(comparison)
    assert "A, B and C on Dataset901_CTBody (20 cases)" in text
    for part in ("folds 0, 1, 2, 3, 4", "999 samples, seed 0", "two-sided [1]", "over the 3 pairs", "Friedman"):
        assert part in text
    assert "scipy 1.17.0" in text
    assert DICE.definition in text
    pair = describe_methods(make_example(("A", "B")))
    assert "over the 1 pair of each question" in pair
    assert "Friedman" not in pair


def test_settings_that_differ_are_a_table_and_others_a_sentence() -> None:
    comparison = make_example(("A", "B"))
    assert setup_table(comparison, "Dataset901_CTBody", "setup")[1] is None
    setups = (comparison.setups[0], dataclasses.replace(comparison.setups[1], batch_size=4, host=None))
    sentence_, table = setup_table(dataclasses.replace(comparison, setups=setups), "Dataset901_CTBody", "setup")
    assert "patch 128 x 128 x 128" in sentence_
    assert "batch" not in sentence_
    assert table is not None
    assert table.header == ("trainer", "batch", "machine")
    assert table.rows == (("A", "2", "node1"), ("B", "4", "\u2013"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        (0, "0.000"),
        (0.0004, "< 0.001"),
        (0.0283, "0.028"),
        (1.934, "1.93"),
        (46.18, "46.2"),
        (4872.3, "4,872"),
    ],
)
def test_costs_keep_three_digits(value: float | None, text: str | None) -> None:
    assert format_amount(value) == text
