"""From the scores of cases to the results of a comparison: the tables, and what `statistics` says of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from nnunetv2_ext.comparison.facts import Dataset, Metric
from nnunetv2_ext.comparison.model import (
    Failures,
    Friedman,
    Interval,
    LabelSummary,
    Pair,
    Ranking,
    Result,
    Score,
    Summary,
)
from nnunetv2_ext.comparison.statistics import (
    bootstrap_ranks,
    critical_difference,
    friedman,
    holm,
    kendall_tau,
    mean_intervals,
    rank_biserial,
    ranks_of,
    wilcoxon,
)

__all__ = ["compare_cases", "compare_datasets"]

_WORST_SHARE = 10


def compare_cases(
    scores: Sequence[Score], dataset: Dataset, metric: Metric, trainers: Sequence[str], reference: str
) -> Result:
    """Compare trainers on the cases of a dataset.

    Args:
        scores: scores of that dataset; those of other cases and labels than the dataset's are left out.
        dataset: which cases and labels are compared.
        metric: by which is compared.
        trainers: names, in the order of the tables.
        reference: one of them.
    """
    by_label = _tables(scores, dataset, metric, trainers)
    if not metric.higher_is_better:
        # A missed mask has no distance: who misses the difficult ones must not look better for it.
        there = ~np.isnan(by_label).all(axis=(0, 2))
        by_label[np.isnan(by_label[:, there]).any(axis=1)[:, None, :].repeat(len(trainers), axis=1)] = math.nan
    table = _mean_of_defined(by_label)
    labels = tuple(
        LabelSummary(label, _summaries(by_label[:, :, column], trainers)) for column, label in enumerate(dataset.labels)
    )
    failures = tuple(
        _failures(scores, dataset, metric, trainer, table[:, column]) for column, trainer in enumerate(trainers)
    )
    return _result(table, metric, dataset.name, dataset.cases, trainers, reference, labels, failures)


def compare_datasets(results: Sequence[Result], metric: Metric, trainers: Sequence[str], reference: str) -> Result:
    """Compare trainers over datasets, each of which counts once: by the means of its cases."""
    means = [[_nan(summary.mean) for summary in result.summaries] for result in results]
    names = [str(result.dataset) for result in results]
    return _result(np.array(means, dtype=float), metric, None, names, trainers, reference, (), ())


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _tables(scores: Sequence[Score], dataset: Dataset, metric: Metric, trainers: Sequence[str]) -> np.ndarray:
    """Lay out scores, shape (cases, trainers, labels); NaN where there is none."""
    rows = {case: index for index, case in enumerate(dataset.cases)}
    columns = {trainer: index for index, trainer in enumerate(trainers)}
    layers = {label: index for index, label in enumerate(dataset.labels)}
    table = np.full((len(rows), len(columns), len(layers)), math.nan)
    for score in scores:
        if score.case in rows and score.label in layers and score.trainer in columns:
            value = score.values.get(metric.name, math.nan)
            table[rows[score.case], columns[score.trainer], layers[score.label]] = value
    return table


def _mean_of_defined(by_label: np.ndarray) -> np.ndarray:
    """Average over the labels that are defined; NaN where none is."""
    defined = ~np.isnan(by_label)
    count = defined.sum(axis=2)
    total = np.where(defined, by_label, 0.0).sum(axis=2)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _result(
    table: np.ndarray,
    metric: Metric,
    dataset: str | None,
    units: Sequence[str],
    trainers: Sequence[str],
    reference: str,
    labels: tuple[LabelSummary, ...],
    failures: tuple[Failures, ...],
) -> Result:
    # A trainer without any result is in the tables, but takes no other's cases away.
    there = ~np.isnan(table).all(axis=0)
    found = [trainer for trainer, known in zip(trainers, there, strict=True) if known]
    complete = table[:, there][~np.isnan(table[:, there]).any(axis=1)]
    several = len(found) > 1 and len(complete) > 1
    return Result(
        metric=metric.name,
        dataset=dataset,
        units=tuple(units),
        values={trainer: tuple(map(float, table[:, column])) for column, trainer in enumerate(trainers)},
        summaries=_summaries(table, trainers),
        labels=labels,
        pairs=_pairs(table, metric, trainers, reference),
        friedman=_friedman(complete, metric, found) if several and len(found) > 2 else None,
        rankings=_rankings(complete, metric, found) if several else (),
        failures=failures,
    )


def _summaries(table: np.ndarray, trainers: Sequence[str]) -> tuple[Summary, ...]:
    columns = [table[~np.isnan(table[:, column]), column] for column in range(len(trainers))]
    intervals = _intervals(columns)
    return tuple(
        Summary(
            trainer,
            len(values),
            float(values.mean()) if len(values) else None,
            float(np.median(values)) if len(values) else None,
            interval,
        )
        for trainer, values, interval in zip(trainers, columns, intervals, strict=True)
    )


def _intervals(columns: Sequence[np.ndarray]) -> list[Interval | None]:
    """Find the intervals of the means of columns, those of the same length by the same bootstrap samples."""
    found: list[Interval | None] = [None] * len(columns)
    for n in sorted({len(values) for values in columns if len(values) > 1}):
        of_length = [index for index, values in enumerate(columns) if len(values) == n]
        ends = mean_intervals(np.stack([columns[index] for index in of_length], axis=1))
        for index, (low, high) in zip(of_length, ends, strict=True):
            found[index] = (float(low), float(high))
    return found


def _pairs(table: np.ndarray, metric: Metric, trainers: Sequence[str], reference: str) -> tuple[Pair, ...]:
    column = {trainer: index for index, trainer in enumerate(trainers)}
    others = [trainer for trainer in trainers if trainer != reference]
    names = [(a, reference) for a in others if reference in column]
    names += [(a, b) for index, a in enumerate(others) for b in others[index + 1 :]]
    differences = []
    for a, b in names:
        difference = table[:, column[a]] - table[:, column[b]]
        differences.append(difference[~np.isnan(difference)])
    intervals = _intervals(differences)
    p_values = np.array([wilcoxon(d) if len(d) else math.nan for d in differences])
    corrected = np.full(len(names), math.nan)
    tested = ~np.isnan(p_values)
    corrected[tested] = holm(p_values[tested])
    pairs = []
    for (a, b), d, interval, p, p_holm in zip(names, differences, intervals, p_values, corrected, strict=True):
        higher, lower = int((d > 0).sum()), int((d < 0).sum())
        wins, losses = (higher, lower) if metric.higher_is_better else (lower, higher)
        pairs.append(
            Pair(
                a, b, len(d),
                difference=float(d.mean()) if len(d) else None,
                ci95=interval,
                p=float(p) if len(d) else None,
                p_holm=float(p_holm) if len(d) else None,
                effect=rank_biserial(d) if len(d) else None,
                wins=wins, ties=len(d) - wins - losses, losses=losses,
            )
        )  # fmt: skip
    return tuple(pairs)


def _by_name(trainers: Sequence[str], values: np.ndarray) -> Mapping[str, float]:
    return {trainer: float(value) for trainer, value in zip(trainers, values, strict=True)}


def _friedman(complete: np.ndarray, metric: Metric, trainers: Sequence[str]) -> Friedman:
    test = friedman(complete)
    n, k = complete.shape
    ranks = ranks_of(complete, higher_is_better=metric.higher_is_better).mean(axis=0)
    return Friedman(n, test.statistic, test.p, _by_name(trainers, ranks), critical_difference(k, n))


def _rankings(complete: np.ndarray, metric: Metric, trainers: Sequence[str]) -> tuple[Ranking, ...]:
    """Rank by the means, and by the means of the ranks within each case."""
    of_cases = ranks_of(complete, higher_is_better=metric.higher_is_better)
    rankings = []
    for method, table, higher in (
        ("aggregate then rank", complete, metric.higher_is_better),
        ("rank then aggregate", of_cases, False),
    ):
        ranks = ranks_of(np.round(table.mean(axis=0), 12)[None], higher_is_better=higher)[0]
        drawn = bootstrap_ranks(table, higher_is_better=higher)
        # Tied trainers take the best of the places that they share.
        places = (drawn[:, :, None] > drawn[:, None, :]).sum(axis=2) + 1
        tau = kendall_tau(ranks, drawn)
        low, high = np.quantile(tau, [0.025, 0.975])
        rankings.append(
            Ranking(
                method,
                _by_name(trainers, ranks),
                {
                    trainer: tuple(float((places[:, column] == place + 1).mean()) for place in range(len(trainers)))
                    for column, trainer in enumerate(trainers)
                },
                float(tau.mean()),
                (float(low), float(high)),
            )
        )
    return tuple(rankings)


def _failures(scores: Sequence[Score], dataset: Dataset, metric: Metric, trainer: str, values: np.ndarray) -> Failures:
    cases = set(dataset.cases)
    own = [s for s in scores if s.trainer == trainer and s.case in cases and s.label in dataset.labels]
    known = all(None not in (s.n_reference, s.n_predicted, s.n_both) for s in own)
    there = [score for score in own if score.n_reference]
    absent = [score for score in own if score.n_reference == 0]
    order = np.argsort(values if metric.higher_is_better else -values, kind="stable")  # NaN last
    n = int((~np.isnan(values)).sum())
    worst = order[: math.ceil(n / _WORST_SHARE)]
    return Failures(
        trainer,
        missed=sum(score.n_both == 0 for score in there) if known else None,
        with_reference=len(there) if known else None,
        false_positives=sum(bool(score.n_predicted) for score in absent) if known else None,
        without_reference=len(absent) if known else None,
        worst_decile=float(values[worst].mean()) if n else None,
        worst_cases=tuple(dataset.cases[index] for index in worst),
    )
