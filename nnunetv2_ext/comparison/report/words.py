"""What can and what cannot be concluded from a comparison, in sentences."""

from __future__ import annotations

import math
from statistics import stdev

from nnunetv2_ext.comparison.model import Comparison, Metric, Pair, Result
from nnunetv2_ext.comparison.report.numbers import format_interval, format_number, format_p, format_signed, with_unit
from nnunetv2_ext.comparison.report.power import cases_needed, smallest_p
from nnunetv2_ext.comparison.report.tables import find_metric

__all__ = ["ALPHA", "conclude", "count", "describe_ranks", "limits", "list_names", "title"]

ALPHA = 0.05
_FEW_CASES, _FEW_DATASETS = 20, 3
_FEW_PAIRS = 3
_POINT = 0.01  # one point of Dice


def title(comparison: Comparison) -> str:
    """Return the heading of the report."""
    where = comparison.datasets[0].name if len(comparison.datasets) == 1 else f"{len(comparison.datasets)} datasets"
    return f"Comparison of {len(comparison.trainers)} trainers on {where}"


def conclude(comparison: Comparison, result: Result) -> list[str]:
    """Return what the numbers of a result show, one sentence per pair with the reference, and one on the others."""
    metric = find_metric(comparison, result)
    against, others = split_pairs(comparison, result)
    sentences = [_verdict(pair, metric, result) for pair in against]
    if len(others) <= _FEW_PAIRS:
        sentences += [_verdict(pair, metric, result) for pair in others]
    else:
        seen = [pair for pair in others if _differs(pair)]
        sentences.append(
            f"Of the {count(len(others), 'pair')} without the reference, {len(seen) or 'none'} "
            f"{'shows' if len(seen) in (0, 1) else 'show'} a difference after Holm's correction; the table of pairs "
            "has them all."
        )
    known = [summary for summary in result.summaries if summary.mean is not None]
    if len(known) > 1:
        best = (max if metric.higher_is_better else min)(known, key=lambda summary: summary.mean or 0.0)
        ties = [summary.trainer for summary in known if summary.mean == best.mean]
        sentence = (
            f"The best mean, {with_unit(format_number(best.mean, metric), metric)}, "
            f"{'has' if len(ties) == 1 else 'have'} {list_names(ties)}"
        )
        if result.rankings and len(ties) == 1 and best.trainer in result.rankings[0].frequencies:
            first = result.rankings[0].frequencies[best.trainer][0]
            sentence += f"; it comes first in {100 * first:.0f} % of the samples drawn again"
        sentences.append(f"{sentence}. A best mean alone is not a difference that was shown.")
    empty = [name for name in comparison.trainers if name not in {summary.trainer for summary in known}]
    if empty:
        sentences.append(f"Nothing can be said about {list_names(empty)}: no scores were found.")
    return sentences


def _verdict(pair: Pair, metric: Metric, result: Result) -> str:
    if pair.difference is None or pair.ci95 is None or pair.p_holm is None:
        return f"{pair.a} and {pair.b} cannot be compared: no {_unit(result)} has a number of both."
    difference = with_unit(format_signed(pair.difference, metric), metric)
    numbers = (
        f"mean difference {difference}, 95 % interval {format_interval(pair.ci95, metric, signed=True)}, "
        f"{_p(pair.p_holm)} after Holm's correction; {count(pair.wins, 'win')}, {count(pair.ties, 'tie')} and "
        f"{count(pair.losses, 'loss')} in {count(pair.n, _unit(result))}"
    )
    if pair.ties == pair.n:
        return f"{pair.a} and {pair.b} have the same {metric.name} in every {_unit(result)} ({numbers})."
    outside = pair.ci95[0] > 0 or pair.ci95[1] < 0
    if _differs(pair):
        better, worse = _better(pair, metric)
        text = f"{better} has the better {metric.name} than {worse} ({numbers})."
        if pair.effect is not None and pair.effect * pair.difference < 0:
            return f"{pair.a} and {pair.b} differ, but the mean and the ranks point opposite ways ({numbers})."
        if not outside:
            text += (
                " But the interval of the mean holds 0: most cases go one way and a few large ones the other, so look "
                "at the cases before you rely on it."
            )
        return text
    reach = with_unit(format_number(max(abs(end) for end in pair.ci95), metric), metric)
    text = f"No difference between {pair.a} and {pair.b} was shown ({numbers})."
    if outside:
        return f"{text} The interval leaves out 0, but it is not corrected for the number of pairs, and the test is."
    return f"{text} That does not show that they are equal: the data allow a difference of up to {reach}."


def limits(comparison: Comparison, result: Result) -> list[str]:
    """Return what the numbers of a result cannot show."""
    metric = find_metric(comparison, result)
    n = max((pair.n for pair in result.pairs), default=len(result.units))
    against, _ = split_pairs(comparison, result)
    sentences = []
    if result.dataset is None and n < _FEW_DATASETS:
        sentences.append(
            f"{n} datasets are too few for a test over datasets, whatever it says: read the answers per dataset."
        )
    least = smallest_p(n, len(result.pairs))
    if n and result.pairs and least > ALPHA:
        sentences.append(
            f"With {count(n, _unit(result))} and {count(len(result.pairs), 'pair')} the smallest p that this test can "
            f"give after the correction is {format_p(least)}: no difference, however large, could have been shown."
        )
    elif result.dataset is not None and n < _FEW_CASES:
        sentences.append(
            f"{count(n, 'case').capitalize()} are few: only large differences can be seen, and one odd case moves the "
            "means."
        )
    if result.dataset is not None and not metric.unit:
        sentences += [sentence for pair in against if (sentence := _plan(pair, metric, result))]
    if any(score.fold is not None for score in comparison.scores):
        sentences.append(
            "The intervals and tests are about other cases of the same kind. How much a network's score changes when "
            "it is trained again, with another seed, is not in them."
        )
        sentences.append(
            "In a cross-validation the trainings share most of their cases, so the cases are not fully independent; "
            "a difference that just passes the test needs a second look on new cases."
        )
    sentences.append("A p value says how surprising a difference is, not how large or how useful: read the interval.")
    return sentences


def _plan(pair: Pair, metric: Metric, result: Result) -> str:
    """Describe how many cases a study would need to see one point, where the pair was not told apart."""
    deviation = _deviation(pair, result)
    if deviation is None or _differs(pair):
        return ""
    needed = cases_needed(deviation, _POINT)
    if needed <= pair.n:
        return ""
    return (
        f"{pair.a} and {pair.b}: with the spread of these differences (standard deviation {deviation:.3f}) a study "
        f"needs about {needed:,} cases to see a true difference of {_POINT:g} {metric.name} four times out of five; "
        f"here are {pair.n}."
    )


def _deviation(pair: Pair, result: Result) -> float | None:
    differences = [
        a - b for a, b in zip(result.values[pair.a], result.values[pair.b], strict=True) if math.isfinite(a - b)
    ]
    return stdev(differences) if len(differences) > 1 and len(set(differences)) > 1 else None


def describe_ranks(result: Result) -> list[str]:
    """Return what the ranks and the test of all trainers at once say."""
    sentences = []
    if result.friedman is not None:
        test = result.friedman
        sentences.append(
            f"Friedman's test of all trainers at once, {count(test.n, _unit(result))}: chi-square "
            f"{test.statistic:.2f}, {_p(test.p)}. Trainers whose mean ranks differ by less than "
            f"{test.critical_difference:.2f} (Nemenyi's critical difference, 5 %) are not told apart by it."
        )
    for ranking in result.rankings:
        low, high = ranking.kendall_tau_ci95
        sentences.append(
            f"By {ranking.method}, the order of the samples drawn again agrees with the one found with Kendall's tau "
            f"{_plain(ranking.kendall_tau)} on average (95 % of the samples from {_plain(low)} to {_plain(high)}; 1 is "
            "the same order)."
        )
    return sentences


def split_pairs(comparison: Comparison, result: Result) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs with the reference, and the others."""
    against = [pair for pair in result.pairs if comparison.reference in (pair.a, pair.b)]
    return against, [pair for pair in result.pairs if pair not in against]


def count(number: int, noun: str) -> str:
    """Return a number with its noun, as in `1 case` and `2 cases`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"


def list_names(names: list[str]) -> str:
    """Return names as in `A, B and C`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _differs(pair: Pair) -> bool:
    return pair.p_holm is not None and pair.p_holm < ALPHA and pair.difference is not None


def _better(pair: Pair, metric: Metric) -> tuple[str, str]:
    """Return the better and the worse trainer of a pair."""
    first = ((pair.difference or 0.0) > 0) == metric.higher_is_better
    return (pair.a, pair.b) if first else (pair.b, pair.a)


def _p(value: float) -> str:
    text = format_p(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _plain(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")


def _unit(result: Result) -> str:
    return "case" if result.dataset is not None else "dataset"
