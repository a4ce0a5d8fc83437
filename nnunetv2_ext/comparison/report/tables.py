"""The tables of a report, as text that every format writes in its own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nnunetv2_ext.comparison.model import Comparison, Costs, Metric, Result, Setup
from nnunetv2_ext.comparison.report.numbers import (
    NONE,
    format_amount,
    format_interval,
    format_number,
    format_p,
    format_signed,
)

__all__ = [
    "Table",
    "costs_table",
    "frequencies_table",
    "label_intervals_table",
    "labels_table",
    "pairs_table",
    "ranks_table",
    "setup_table",
    "trainers_table",
]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: identifier, of lower-case letters, digits and hyphens.
        caption: what it holds, in a sentence.
        header: names of the columns.
        rows: one text per column.
        n_names: columns at the left that hold names, the first of which names the row; the others hold numbers.
    """

    name: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_names: int = 1


def trainers_table(comparison: Comparison, result: Result, name: str) -> Table:
    """Return a trainer per row: its mean with interval, its median, and where it failed."""
    metric = find_metric(comparison, result)
    failures = {failure.trainer: failure for failure in result.failures}
    rows = []
    for summary in result.summaries:
        row = [
            summary.trainer, str(comparison.trainers.index(summary.trainer) + 1), str(summary.n),
            format_number(summary.mean, metric), format_interval(summary.ci95, metric),
            format_number(summary.median, metric),
        ]  # fmt: skip
        if failures:
            failure = failures.get(summary.trainer)
            row += (
                [NONE] * 3
                if failure is None
                else [
                    format_number(failure.worst_decile, metric),
                    _of(failure.missed, failure.with_reference),
                    _of(failure.false_positives, failure.without_reference),
                ]
            )
        rows.append(tuple(row))
    header = ["trainer", "no.", _units(result), "mean", "95 % interval", "median"]
    header += ["worst tenth, mean", "missed", "false positives"] if failures else []
    unit = f" in {metric.unit}" if metric.unit else ""
    caption = f"{metric.name}{unit} of each trainer{_on(result)}."
    if failures:
        caption += (
            " Missed: masks of the reference of which the prediction hits no voxel; false positives: masks that are "
            "predicted where the reference has none."
        )
    return Table(name, caption, tuple(header), tuple(rows))


def pairs_table(comparison: Comparison, result: Result, name: str) -> Table:
    """Return a pair of trainers per row: the difference of the first minus the second, and what the test says."""
    metric = find_metric(comparison, result)
    rows = tuple(
        (
            pair.a, pair.b, str(pair.n), format_signed(pair.difference, metric),
            format_interval(pair.ci95, metric, signed=True), format_p(pair.p), format_p(pair.p_holm),
            NONE if pair.effect is None else _effect(pair.effect), f"{pair.wins} / {pair.ties} / {pair.losses}",
        )
        for pair in result.pairs
    )  # fmt: skip
    header = (
        "first", "second", _units(result), "difference", "95 % interval", "p", "p (Holm)", "effect",
        "wins / ties / losses",
    )  # fmt: skip
    unit = f" in {metric.unit}" if metric.unit else ""
    better = "above" if metric.higher_is_better else "below"
    caption = (
        f"Paired differences of {metric.name}{unit}, first minus second{_on(result)}; {better} 0 the first is better. "
        "Wilcoxon's signed-rank test, corrected by Holm over the rows of this table; effect: matched-pairs "
        "rank-biserial correlation, from \N{MINUS SIGN}1 to 1."
    )
    return Table(name, caption, header, rows, n_names=2)


def labels_table(comparison: Comparison, result: Result, name: str) -> Table:
    """Return a trainer per row and a label per column, with means over the cases in which the label is defined."""
    metric, names = find_metric(comparison, result), _label_names(comparison, result)
    rows = []
    for index, summary in enumerate(result.summaries):
        cells = [of_label.summaries[index] for of_label in result.labels]
        rows.append((summary.trainer, *(_with_count(format_number(c.mean, metric), c.n, summary.n) for c in cells)))
    header = ("trainer", *(names[of_label.label] for of_label in result.labels))
    caption = (
        f"Mean {metric.name} per label{_on(result)}; the number of cases stands in brackets where it is not that of "
        "the averages over the labels."
    )
    return Table(name, caption, header, tuple(rows))


def label_intervals_table(comparison: Comparison, result: Result, name: str) -> Table:
    """Return a row per label and trainer, with mean, interval and median."""
    metric, names = find_metric(comparison, result), _label_names(comparison, result)
    rows = tuple(
        (
            names[of_label.label], summary.trainer, str(summary.n), format_number(summary.mean, metric),
            format_interval(summary.ci95, metric), format_number(summary.median, metric),
        )
        for of_label in result.labels
        for summary in of_label.summaries
    )  # fmt: skip
    header = ("label", "trainer", "cases", "mean", "95 % interval", "median")
    return Table(name, f"{metric.name} per label and trainer{_on(result)}.", header, rows, n_names=2)


def ranks_table(result: Result, name: str) -> Table:
    """Return a trainer per row: its rank by both methods, its mean rank, and how often it came first."""
    names = [summary.trainer for summary in result.summaries]
    rankings = result.rankings
    rows = []
    for trainer in names:
        row = [trainer]
        for ranking in rankings:
            known = trainer in ranking.ranks
            row.append(f"{ranking.ranks[trainer]:g}" if known else NONE)
            row.append(f"{100 * ranking.frequencies[trainer][0]:.0f} %" if known else NONE)
        if result.friedman is not None:
            mean_rank = result.friedman.mean_ranks.get(trainer)
            row.append(NONE if mean_rank is None else f"{mean_rank:.2f}")
        rows.append(tuple(row))
    header = ["trainer"]
    for ranking in rankings:
        header += [f"rank, {ranking.method}", "first in"]
    header += ["mean rank"] if result.friedman is not None else []
    caption = (
        f"Ranks by both methods{_on(result)}, and the share of the samples drawn again in which a trainer came first."
    )
    return Table(name, caption, tuple(header), tuple(rows))


def frequencies_table(result: Result, name: str) -> Table:
    """Return a trainer per row and a rank per column: the share of the samples drawn again, means ranked."""
    ranking = result.rankings[0]
    places = range(1, len(ranking.frequencies) + 1)
    rows = tuple(
        (trainer, *(f"{100 * share:.1f} %" for share in shares)) for trainer, shares in ranking.frequencies.items()
    )
    caption = f"Share of the samples drawn again in which a trainer had a rank, by {ranking.method}{_on(result)}."
    return Table(name, caption, ("trainer", *(f"rank {place}" for place in places)), rows)


_COSTS: tuple[tuple[str, Callable[[Costs], str | None]], ...] = (
    ("parameters, millions", lambda cost: _scaled(cost.parameters, 1e-6)),
    ("multiply-adds, billions", lambda cost: _scaled(cost.multiply_adds, 1e-9)),
    ("memory measured, GiB", lambda cost: _scaled(cost.memory_measured_mib, 1 / 1024)),
    ("memory reserved, GiB", lambda cost: _scaled(cost.memory_reserved_mib, 1 / 1024)),
    ("memory predicted, GiB", lambda cost: _scaled(cost.memory_predicted_mib, 1 / 1024)),
    ("seconds per epoch", lambda cost: format_amount(cost.seconds_per_epoch)),
    ("GPU hours", lambda cost: format_amount(cost.gpu_hours)),
    ("inference, seconds per case", lambda cost: format_amount(cost.inference_seconds)),
    ("card", lambda cost: cost.card),
)


def costs_table(comparison: Comparison, dataset: str, name: str) -> Table:
    """Return a trainer per row and a cost per column; costs that no trainer has are left out and named."""
    costs = [cost for cost in comparison.costs if cost.dataset == dataset]
    known = [(title, write) for title, write in _COSTS if any(write(cost) is not None for cost in costs)]
    unknown = [title for title, _ in _COSTS if title not in dict(known)]
    rows = tuple((cost.trainer, *(write(cost) or NONE for _, write in known)) for cost in costs)
    caption = (
        f"What each trainer takes{_on_dataset(comparison, dataset)}. Multiply-adds are of a forward pass of one "
        "sample, memory is the largest of a training step, seconds per epoch are the median, GPU hours are of all "
        "folds together."
    )
    if unknown:
        caption += f" Not known: {'; '.join(unknown)}."
    return Table(name, caption, ("trainer", *(title for title, _ in known)), rows)


_SETTINGS: tuple[tuple[str, Callable[[Setup], str | None]], ...] = (
    ("plans", lambda setup: setup.plans),
    ("configuration", lambda setup: setup.configuration),
    ("folds", lambda setup: ", ".join(map(str, setup.folds)) or None),
    ("epochs", lambda setup: _whole(setup.epochs)),
    ("iterations per epoch", lambda setup: _whole(setup.iterations)),
    ("batch", lambda setup: _whole(setup.batch_size)),
    ("patch", lambda setup: " x ".join(map(str, setup.patch_size)) if setup.patch_size else None),
    ("mirroring along", lambda setup: setup.mirroring),
    ("pretrained weights", lambda setup: setup.pretrained),
    ("checkpoint", lambda setup: setup.checkpoint),
    ("torch", lambda setup: setup.torch),
    ("machine", lambda setup: setup.host),
)


def setup_table(comparison: Comparison, dataset: str, name: str) -> tuple[str, Table | None]:
    """Return what all trainers of a dataset have in common, as a sentence, and what differs, as a table."""
    setups = [setup for setup in comparison.setups if setup.dataset == dataset]
    written = {title: [write(setup) for setup in setups] for title, write in _SETTINGS}
    same = [f"{title} {cells[0]}" for title, cells in written.items() if len(set(cells)) == 1 and cells[0] is not None]
    unknown = [title for title, cells in written.items() if set(cells) <= {None}]
    other = {title: cells for title, cells in written.items() if len(set(cells)) > 1}
    sentence = f"All have in common: {'; '.join(same)}." if same else "They have no known setting in common."
    if unknown:
        sentence += f" Not known of any: {', '.join(unknown)}."
    if not other:
        return sentence, None
    rows = tuple(
        (setup.trainer, *(cells[number] or NONE for cells in other.values())) for number, setup in enumerate(setups)
    )
    caption = f"Settings in which the trainings differ{_on_dataset(comparison, dataset)}."
    return sentence, Table(name, caption, ("trainer", *other), rows)


def find_metric(comparison: Comparison, result: Result) -> Metric:
    """Return the metric of a result."""
    return next(metric for metric in comparison.metrics if metric.name == result.metric)


def _label_names(comparison: Comparison, result: Result) -> dict[str, str]:
    return next(dict(dataset.labels) for dataset in comparison.datasets if dataset.name == result.dataset)


def _units(result: Result) -> str:
    return "cases" if result.dataset is not None else "datasets"


def _on(result: Result) -> str:
    return f" on {result.dataset}" if result.dataset is not None else " over all datasets"


def _on_dataset(comparison: Comparison, dataset: str) -> str:
    return f" on {dataset}" if len(comparison.datasets) > 1 else ""


def _of(count: int | None, total: int | None) -> str:
    return NONE if count is None or total is None else f"{count} of {total}"


def _with_count(text: str, count: int, usual: int) -> str:
    return text if count == usual else f"{text} ({count})"


def _effect(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}").replace("+0.00", "0.00")


def _whole(value: int | None) -> str | None:
    return None if value is None else str(value)


def _scaled(value: float | None, scale: float) -> str | None:
    return format_amount(None if value is None else value * scale)


def all_tables(blocks: Sequence[object]) -> list[Table]:
    """Return the tables among the blocks of a report."""
    return [block for block in blocks if isinstance(block, Table)]
