"""The statistics against scipy, statsmodels and scikit-posthocs, on degenerate tables, and by simulation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import scikit_posthocs
from scipy import stats
from statsmodels.stats.multitest import multipletests

from nnunetv2_ext.comparison import statistics
from nnunetv2_ext.comparison.facts import Dataset, Metric
from nnunetv2_ext.comparison.model import Result, Score
from nnunetv2_ext.comparison.tables import compare_cases, compare_datasets

DICE = Metric("Dice", "", True, "")
NAMES = ("A", "B", "C", "D")


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def continuous() -> np.ndarray:
    rng = np.random.default_rng(1)
    base = rng.beta(8, 2, 30)[:, None]
    return np.clip(base + rng.normal([0, 0.01, -0.02, 0], [0, 0.02, 0.03, 0.02], (30, 4)), 0, 1)


def with_ties() -> np.ndarray:
    """Return scores of few different values, so that cases and differences are tied and some are zero."""
    return np.round(10 * np.random.default_rng(2).beta(8, 2, (60, 4))) / 10


def many() -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.beta(8, 2, 200)[:, None] + rng.normal(0, 0.05, (200, 4))


TABLES = [continuous(), with_ties(), many()]


def compare(table: np.ndarray, names: tuple[str, ...] = NAMES, metric: Metric = DICE, dataset: str = "X") -> Result:
    names = names[: table.shape[1]]
    cases = tuple(f"case_{row:03d}" for row in range(len(table)))
    scores = [
        Score(dataset, case, 0, name, "1", {metric.name: float(value)}, 10, 10, 9)
        for case, row in zip(cases, table, strict=True)
        for name, value in zip(names, row, strict=True)
    ]
    return compare_cases(scores, Dataset(dataset, {"1": "heart"}, cases), metric, names, names[0])


# In whole numbers, sums of the same cases in another order are equal, and scipy sees the ties that there are.
@pytest.mark.parametrize("table", [continuous(), np.round(10 * with_ties()), many()])
def test_intervals_equal_scipys(table: np.ndarray) -> None:
    ends = statistics.mean_intervals(table)
    for column, (low, high) in enumerate(ends):
        rng = np.random.default_rng(statistics.SEED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            oracle = stats.bootstrap((table[:, column],), np.mean, n_resamples=9999, method="BCa", rng=rng)
        assert (low, high) == pytest.approx(tuple(oracle.confidence_interval), abs=1e-12)


@pytest.mark.parametrize("table", TABLES)
def test_pairs_equal_scikit_posthocs_and_statsmodels(table: np.ndarray) -> None:
    result = compare(table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw, corrected = (
            scikit_posthocs.posthoc_wilcoxon(list(table.T), p_adjust=adjust, zero_method="pratt").to_numpy()
            for adjust in (None, "holm")
        )
    for pair in result.pairs:
        a, b = NAMES.index(pair.a), NAMES.index(pair.b)
        assert pair.p == pytest.approx(raw[a, b], abs=1e-12)
        assert pair.p_holm == pytest.approx(corrected[a, b], abs=1e-12)
        assert pair.difference == pytest.approx((table[:, a] - table[:, b]).mean(), abs=1e-12)
        assert (pair.wins, pair.ties) == ((table[:, a] > table[:, b]).sum(), (table[:, a] == table[:, b]).sum())
        assert pair.wins + pair.ties + pair.losses == pair.n == len(table)
    p = [pair.p for pair in result.pairs]
    assert [pair.p_holm for pair in result.pairs] == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)
    assert {(pair.a, pair.b) for pair in result.pairs[:3]} == {("B", "A"), ("C", "A"), ("D", "A")}


@pytest.mark.parametrize("table", TABLES)
def test_friedman_equals_scipy_and_the_critical_difference_nemenyis(table: np.ndarray) -> None:
    found = compare(table).friedman
    assert found is not None
    oracle = stats.friedmanchisquare(*table.T)
    assert (found.statistic, found.p) == pytest.approx((oracle.statistic, oracle.pvalue), abs=1e-12)
    # Nemenyi's p value is 0.05 exactly where two mean ranks differ by the critical difference.
    k, n = table.shape[1], len(table)
    ranks = stats.rankdata(-table, axis=1).mean(axis=0)
    nemenyi = scikit_posthocs.posthoc_nemenyi_friedman(table).to_numpy()
    for i in range(k):
        for j in range(i):
            apart = abs(ranks[i] - ranks[j]) > found.critical_difference
            assert apart == (nemenyi[i, j] < 0.05)
    q = found.critical_difference / np.sqrt(k * (k + 1) / (6 * n)) * np.sqrt(2)
    assert stats.studentized_range.sf(q, k, np.inf) == pytest.approx(0.05, abs=1e-9)


def test_critical_difference_is_the_published_one() -> None:
    """Table of q values for 5 %: 2.343, 2.569, 2.728 for two to five classifiers (Demsar 2006)."""
    for k, q in ((2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728)):
        assert statistics.critical_difference(k, 10) == pytest.approx(q * np.sqrt(k * (k + 1) / 60), abs=1e-3)


def test_rank_biserial_by_hand() -> None:
    # Ranks of the absolute values: 1, 2, 3, 4; positive 2 + 3 + 4.
    assert statistics.rank_biserial(np.array([-0.1, 0.2, 0.3, 0.4])) == pytest.approx((9 - 1) / 10)
    assert statistics.rank_biserial(np.array([0.1, 0.2])) == 1
    assert statistics.rank_biserial(np.array([0.0, -0.2])) == -1
    assert statistics.rank_biserial(np.zeros(3)) == 0


def test_a_trainer_against_itself_is_a_tie() -> None:
    table = continuous()[:, [0, 0, 0]]
    result = compare(table)
    for pair in result.pairs:
        assert (pair.difference, pair.ci95, pair.p, pair.p_holm, pair.effect) == (0, (0, 0), 1, 1, 0)
        assert (pair.wins, pair.ties, pair.losses) == (0, 30, 0)
    assert result.friedman is not None
    assert (result.friedman.statistic, result.friedman.p) == (0, 1)
    for ranking in result.rankings:
        assert set(ranking.ranks.values()) == {2.0}
        assert ranking.kendall_tau == 1
        assert ranking.frequencies["A"] == (1, 0, 0)


def test_few_cases_have_no_interval_and_no_crash() -> None:
    one = compare(np.array([[0.8, 0.9, 0.7]]))
    assert [summary.ci95 for summary in one.summaries] == [None] * 3
    assert (one.pairs[0].difference, one.pairs[0].p, one.pairs[0].ci95) == (pytest.approx(0.1), 1, None)
    assert one.friedman is None
    assert one.rankings == ()
    two = compare(np.array([[0.8, 0.9, 0.7], [0.8, 0.9, 0.6]]))
    assert two.summaries[0].ci95 == (0.8, 0.8)
    assert two.friedman is not None


def test_undefined_scores_are_left_out_by_pair() -> None:
    table = continuous()[:, :3]
    table[0, 0] = table[1] = np.nan
    result = compare(table)
    assert [summary.n for summary in result.summaries] == [28, 29, 29]
    by_names = {(pair.a, pair.b): pair for pair in result.pairs}
    assert (by_names["B", "A"].n, by_names["B", "C"].n) == (28, 29)
    assert result.friedman is not None
    assert result.friedman.n == 28
    nothing = compare(np.full((3, 2), np.nan))
    assert nothing.summaries[0].mean is nothing.pairs[0].p is nothing.pairs[0].p_holm is None
    # A trainer without results takes nothing from the others.
    table = continuous()[:, :3]
    table[:, 1] = np.nan
    result = compare(table)
    assert result.rankings[0].ranks.keys() == {"A", "C"}
    assert [pair.n for pair in result.pairs] == [0, 30, 0]


def test_labels_are_averaged_within_a_case_first() -> None:
    values = {("a", "1"): 0.5, ("a", "2"): 0.9, ("b", "1"): 0.7, ("b", "2"): np.nan}
    scores = [Score("X", case, 0, "A", label, {"Dice": value}, 9, 9, 9) for (case, label), value in values.items()]
    result = compare_cases(scores, Dataset("X", {"1": "", "2": ""}, ("a", "b")), DICE, ("A",), "A")
    assert result.values["A"] == pytest.approx((0.7, 0.7))
    assert [table.summaries[0].n for table in result.labels] == [2, 1]
    assert [table.summaries[0].mean for table in result.labels] == pytest.approx([0.6, 0.9])


def test_a_missed_mask_has_no_distance_for_anyone() -> None:
    """Otherwise who misses the difficult organ would have the better mean."""
    distance = Metric("HD95", "mm", False, "")
    values = {("A", "1"): 2.0, ("A", "2"): 40.0, ("B", "1"): 3.0, ("B", "2"): np.nan}
    scores = [Score("X", "a", 0, name, label, {"HD95": v}, 9, 9, 9) for (name, label), v in values.items()]
    result = compare_cases(scores, Dataset("X", {"1": "", "2": ""}, ("a",)), distance, ("A", "B"), "A")
    assert result.values == {"A": (2.0,), "B": (3.0,)}
    pair = result.pairs[0]
    assert (pair.difference, pair.wins, pair.losses) == (1.0, 0, 1)


def test_failures_are_counted() -> None:
    counts = {"a": (9, 9, 5), "b": (9, 4, 0), "c": (0, 3, 0), "d": (0, 0, 0)}
    dice = {"a": 0.6, "b": 0.0, "c": 0.0, "d": np.nan}
    scores = [Score("X", case, 0, "A", "1", {"Dice": dice[case]}, *counts[case]) for case in counts]
    (failures,) = compare_cases(scores, Dataset("X", {"1": ""}, tuple(counts)), DICE, ("A",), "A").failures
    assert (failures.missed, failures.with_reference) == (1, 2)
    assert (failures.false_positives, failures.without_reference) == (1, 2)
    assert (failures.worst_decile, failures.worst_cases) == (0.0, ("b",))


def test_over_datasets_each_dataset_counts_once() -> None:
    tables = [continuous()[:n, :2] for n in (30, 5, 9)]
    results = [compare(table, dataset=f"Dataset{n}") for n, table in enumerate(tables)]
    over = compare_datasets(results, DICE, ("A", "B"), "A")
    means = np.array([table.mean(axis=0) for table in tables])
    assert over.units == ("Dataset0", "Dataset1", "Dataset2")
    assert over.pairs[0].n == 3
    assert over.pairs[0].difference == pytest.approx((means[:, 1] - means[:, 0]).mean(), abs=1e-12)
    assert over.failures == over.labels == ()


def test_a_stable_ranking_is_called_stable() -> None:
    rng = np.random.default_rng(0)
    clear = rng.beta(8, 2, 40)[:, None] + [0.0, 0.1, 0.05] + rng.normal(0, 0.01, (40, 3))
    for ranking in compare(clear).rankings:
        assert ranking.ranks == {"A": 3, "B": 1, "C": 2}
        assert ranking.kendall_tau == pytest.approx(1, abs=1e-3)
        assert ranking.frequencies["B"] == pytest.approx((1, 0, 0), abs=1e-3)
    tau = [ranking.kendall_tau for ranking in compare(rng.normal(0, 1, (40, 3))).rankings]
    assert max(tau) < 0.9


# Simulations, with fixed seeds


def test_null_effects_are_rarely_called_significant() -> None:
    rng = np.random.default_rng(4)
    false_alarms = 0
    for _ in range(2000):
        base = rng.beta(8, 2, 30)[:, None]
        table = base + rng.normal(0, 0.03, (30, 3))
        p = [statistics.wilcoxon(table[:, a] - table[:, b]) for a, b in ((1, 0), (2, 0), (1, 2))]
        false_alarms += statistics.holm(np.array(p)).min() < 0.05
    assert 0.01 < false_alarms / 2000 <= 0.055


def test_a_planted_effect_is_found() -> None:
    rng = np.random.default_rng(5)
    found = [statistics.wilcoxon(rng.normal(0.02, 0.03, 30)) < 0.05 for _ in range(1000)]
    assert np.mean(found) >= 0.9


@pytest.mark.parametrize("kind", ["differences", "scores"])
def test_intervals_cover(kind: str) -> None:
    rng = np.random.default_rng(6)
    drawn, truth = (
        (rng.normal(0.02, 0.03, (30, 2000)), 0.02) if kind == "differences" else (rng.beta(8, 2, (50, 2000)), 0.8)
    )
    ends = statistics.mean_intervals(drawn, resamples=1999)
    assert 0.93 <= np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])) <= 0.97
