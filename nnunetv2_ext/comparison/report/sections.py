"""What is in a report, in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from nnunetv2_ext.comparison.model import Comparison, Metric, Result
from nnunetv2_ext.comparison.report.cost_figure import cost_measures, draw_costs
from nnunetv2_ext.comparison.report.document import Block, Code, Drawing, Gallery, Grid, Heading, Points, Section, Text
from nnunetv2_ext.comparison.report.figures import (
    describe_differences,
    describe_means,
    draw_cases,
    draw_differences,
    draw_ranks,
)
from nnunetv2_ext.comparison.report.methods import describe_methods, numbered_references
from nnunetv2_ext.comparison.report.pictures import draw_worst_cases
from nnunetv2_ext.comparison.report.tables import (
    costs_table,
    frequencies_table,
    label_intervals_table,
    labels_table,
    pairs_table,
    ranks_table,
    setup_table,
    trainers_table,
)
from nnunetv2_ext.comparison.report.words import conclude, count, describe_ranks, limits, list_names

__all__ = ["make_sections"]

_LISTED_CASES = 5
_ROOM_FOR_PICTURES = 1_100_000  # bytes, of the two million that the page may have


def make_sections(comparison: Comparison) -> list[Section]:
    """Return all sections that have something to say."""
    makers: list[tuple[str, str, Callable[[Comparison], Iterator[Block]]]] = [
        ("summary", "Summary", _summary),
        ("findings", "Is the comparison fair?", _findings),
        ("missing", "Missing runs", _missing),
        ("differences", "Paired differences", _differences),
        ("trainers", "Trainers", _trainers),
        ("cases", "Case by case", _cases),
        ("labels", "Per label", _labels),
        ("ranks", "Ranks", _ranks),
        ("costs", "Costs", _costs),
        ("worst", "Worst cases", _worst),
        ("other", "Other metrics", _other_metrics),
        ("methods", "Methods", _methods),
    ]
    made = [Section(name, title, tuple(make(comparison))) for name, title, make in makers]
    return [section for section in made if section.blocks]


def _views(comparison: Comparison, metric: Metric) -> list[tuple[str, Result]]:
    """Return the results of a metric, the one over all datasets first, each with an identifier."""
    found = [result for result in comparison.results if result.metric == metric.name]
    numbers = {dataset.name: str(number) for number, dataset in enumerate(comparison.datasets, start=1)}
    found.sort(key=lambda result: -1 if result.dataset is None else list(numbers).index(result.dataset))
    return [("all" if result.dataset is None else numbers[result.dataset], result) for result in found]


def _per_view(
    comparison: Comparison, name: str, make: Callable[[Result, str], Iterator[Block]], *, over_all: bool = True
) -> Iterator[Block]:
    """Yield the blocks of each result of the main metric, under a heading each where there are several."""
    for number, result in _views(comparison, comparison.metrics[0]):
        if result.dataset is None and not over_all:
            continue
        blocks = list(make(result, number))
        if blocks and len(comparison.datasets) > 1:
            yield Heading(f"{name}-{number}-heading", result.dataset or "Over all datasets")
        yield from blocks


def _summary(comparison: Comparison) -> Iterator[Block]:
    metric = comparison.metrics[0]
    direction = "higher" if metric.higher_is_better else "lower"
    unit = f" in {metric.unit}" if metric.unit else ", from 0 to 1"
    where = list_names([f"{count(len(d.cases), 'case')} of {d.name}" for d in comparison.datasets])
    yield Text(
        f"By {metric.name}{unit} ({direction} is better), on {where} that all trainers have. The reference, against "
        f"which the others are held, is {comparison.reference}."
    )
    several = len(comparison.datasets) > 1
    yield Heading("can", "What the numbers show")
    for _, result in _views(comparison, metric):
        if several:
            yield Text(f"{result.dataset or 'Over all datasets, where the dataset is the unit'}:")
        yield Points(tuple(conclude(comparison, result)))
    yield Heading("cannot", "What they cannot show")
    for _, result in _views(comparison, metric)[:1]:
        yield Points(tuple(limits(comparison, result)))
    n, missing = len(comparison.findings), len(comparison.missing)
    fair = f"{count(n, 'finding')} on whether the comparison is fair" if n else "no finding against its fairness"
    runs = f"{count(missing, 'run')} missing" if missing else "no run missing"
    yield Text(f"Read with it, before any number is quoted: {fair}; {runs}.")


def _findings(comparison: Comparison) -> Iterator[Block]:
    if comparison.findings:
        yield Points(tuple(finding.sentence for finding in comparison.findings))
    else:
        yield Text("Nothing was found in which the trainings differ but the trainer, as far as their files tell.")
    for number, dataset in enumerate(comparison.datasets, start=1):
        if not any(setup.dataset == dataset.name for setup in comparison.setups):
            continue
        if len(comparison.datasets) > 1:
            yield Heading(f"setup-{number}-heading", dataset.name)
        sentence, table = setup_table(comparison, dataset.name, f"setup-{number}")
        yield Text(sentence)
        if table is not None:
            yield Grid(table)


def _missing(comparison: Comparison) -> Iterator[Block]:
    if not comparison.missing:
        return
    yield Text("These were asked for and are not in the numbers. The commands make them.")
    yield Points(tuple(missing.what for missing in comparison.missing))
    commands = "\n".join(dict.fromkeys(missing.command for missing in comparison.missing if missing.command))
    if commands:
        yield Code(commands)


def _differences(comparison: Comparison) -> Iterator[Block]:
    metric = comparison.metrics[0]

    def make(result: Result, number: str) -> Iterator[Block]:
        if not result.pairs:
            return
        yield Drawing(
            f"differences-{number}", "Paired differences with their intervals",
            describe_differences(result.pairs, metric),
            "Each row is a pair, first minus second: the diamond is the mean of the differences case by case, the bar "
            "its 95 % interval. Filled and coloured: p below 0.05 after Holm's correction (green: the first is better, "
            "red: the second). Hollow and grey: no difference was shown.",
            partial(draw_differences, result.pairs, metric),
        )  # fmt: skip
        yield Grid(pairs_table(comparison, result, f"pairs-{number}"))

    return _per_view(comparison, "differences", make)


def _trainers(comparison: Comparison) -> Iterator[Block]:
    def make(result: Result, number: str) -> Iterator[Block]:
        if result.summaries:
            yield Grid(trainers_table(comparison, result, f"trainers-{number}"))

    return _per_view(comparison, "trainers", make)


def _cases(comparison: Comparison) -> Iterator[Block]:
    metric = comparison.metrics[0]

    def make(result: Result, number: str) -> Iterator[Block]:
        if not result.units or len(result.values) < 2:
            return
        unit = "case" if result.dataset is not None else "dataset"
        yield Drawing(
            f"cases-{number}", f"{metric.name} of each {unit}", describe_means(result, metric),
            f"Each dot is a {unit}, and a line joins its dots. Lines that all lean one way are a difference; lines "
            "that cross are none, however the means lie. Diamonds below the dots are the means with their 95 % "
            "intervals.",
            partial(draw_cases, result, comparison.trainers, metric),
        )  # fmt: skip

    return _per_view(comparison, "cases", make)


def _labels(comparison: Comparison) -> Iterator[Block]:
    def make(result: Result, number: str) -> Iterator[Block]:
        if result.labels:
            yield Grid(labels_table(comparison, result, f"labels-{number}"))
            yield Grid(label_intervals_table(comparison, result, f"label-intervals-{number}"), folded=True)

    return _per_view(comparison, "labels", make, over_all=False)


def _ranks(comparison: Comparison) -> Iterator[Block]:
    def make(result: Result, number: str) -> Iterator[Block]:
        if not result.rankings:
            return
        yield Points(tuple(describe_ranks(result)))
        yield Drawing(
            f"ranks-{number}", "Frequencies of the ranks",
            "How often each trainer had which rank when the cases were drawn again; the table below has the numbers.",
            f"How often each trainer had which rank when the cases were drawn again, by {result.rankings[0].method}. "
            "One large disc per row is a stable order; a row of small ones is an order that other cases would have "
            "changed.",
            partial(draw_ranks, result.rankings[0], comparison.trainers),
        )  # fmt: skip
        yield Grid(ranks_table(result, f"ranks-table-{number}"))
        yield Grid(frequencies_table(result, f"frequencies-{number}"), folded=True)

    return _per_view(comparison, "ranks", make)


def _costs(comparison: Comparison) -> Iterator[Block]:
    metric = comparison.metrics[0]

    def make(result: Result, number: str) -> Iterator[Block]:
        costs = [cost for cost in comparison.costs if cost.dataset == result.dataset]
        if not costs or result.dataset is None:
            return
        measures = cost_measures([cost for cost in costs if _has_mean(result, cost.trainer)])
        if measures:
            yield Drawing(
                f"costs-{number}", f"{metric.name} against cost",
                f"{describe_means(result, metric)} What each costs is in the table below.",
                "Numbers are trainers, bars the 95 % intervals of their means. Up is better, left is cheaper."
                if metric.higher_is_better
                else "Numbers are trainers, bars the 95 % intervals of their means. Down is better, left is cheaper.",
                partial(draw_costs, measures, result, comparison.trainers, metric),
            )  # fmt: skip
        yield Grid(costs_table(comparison, result.dataset, f"costs-table-{number}"))

    return _per_view(comparison, "costs", make, over_all=False)


def _has_mean(result: Result, trainer: str) -> bool:
    return any(summary.trainer == trainer and summary.mean is not None for summary in result.summaries)


def _worst(comparison: Comparison) -> Iterator[Block]:
    room = _ROOM_FOR_PICTURES // len(comparison.datasets)

    def make(result: Result, number: str) -> Iterator[Block]:
        listed = [
            f"{failure.trainer}: {_first(failure.worst_cases)}" for failure in result.failures if failure.worst_cases
        ]
        if not listed:
            return
        yield Text("The worst tenth of the cases of each trainer, the worst first:")
        yield Points(tuple(listed))
        pictures, remarks = draw_worst_cases(comparison, result, room)
        if pictures:
            yield Gallery(tuple(pictures))
        if remarks:
            yield Points(tuple(remarks))

    return _per_view(comparison, "worst", make, over_all=False)


def _first(cases: tuple[str, ...]) -> str:
    more = len(cases) - _LISTED_CASES
    return ", ".join(cases[:_LISTED_CASES]) + (f" and {more} more" if more > 0 else "")


def _other_metrics(comparison: Comparison) -> Iterator[Block]:
    for place, metric in enumerate(comparison.metrics[1:], start=2):
        for number, result in _views(comparison, metric):
            where = f", {result.dataset or 'over all datasets'}" if len(comparison.datasets) > 1 else ""
            yield Heading(f"metric-{place}-{number}", f"{metric.name}{where}")
            yield Points(tuple(conclude(comparison, result)))
            yield Grid(trainers_table(comparison, result, f"trainers-{place}-{number}"))
            if result.pairs:
                yield Grid(pairs_table(comparison, result, f"pairs-{place}-{number}"))
            if result.labels:
                yield Grid(labels_table(comparison, result, f"labels-{place}-{number}"))


def _methods(comparison: Comparison) -> Iterator[Block]:
    yield Text("To paste into a paper:")
    yield Text(describe_methods(comparison), quoted=True)
    if comparison.references:
        yield Heading("references", "References")
        yield Points(tuple(numbered_references(comparison)), numbered=True)
