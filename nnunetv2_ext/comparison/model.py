"""What a comparison found, as data: everything that is written, and nothing that computes.

A number that is not known or not defined is None where it stands alone, and NaN among the scores of cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.comparison.facts import Costs, Dataset, Finding, Metric, Missing, Reference, Setup

__all__ = [
    "CaseFiles",
    "Comparison",
    "Costs",
    "Dataset",
    "Failures",
    "Finding",
    "Friedman",
    "Interval",
    "LabelSummary",
    "Metric",
    "Missing",
    "Pair",
    "Ranking",
    "Reference",
    "Result",
    "Score",
    "Setup",
    "Summary",
]

Interval = tuple[float, float]


@dataclass(frozen=True)
class Score:
    """How one trainer did on one label of one case.

    Attributes:
        dataset: name of the dataset.
        case: name of the case.
        fold: fold that validated it; None for folders of predictions.
        trainer: name of the trainer.
        label: a key of the dataset's labels.
        values: value of each metric, by its name; NaN where it is not defined.
        n_reference: voxels of the label in the reference; None where not known.
        n_predicted: voxels of the label in the prediction; None where not known.
        n_both: voxels that both have; None where not known.
    """

    dataset: str
    case: str
    fold: int | None
    trainer: str
    label: str
    values: Mapping[str, float]
    n_reference: int | None
    n_predicted: int | None
    n_both: int | None = None


@dataclass(frozen=True)
class CaseFiles:
    """Where the files of a case lie, as far as they exist.

    Attributes:
        dataset: name of the dataset.
        case: name of the case.
        images: one per channel; empty where they are not there.
        reference: label map; None where it is not there.
        predictions: label maps, by the names of trainers.
    """

    dataset: str
    case: str
    images: tuple[Path, ...]
    reference: Path | None
    predictions: Mapping[str, Path]


@dataclass(frozen=True)
class Summary:
    """One trainer's numbers.

    Attributes:
        trainer: name of the trainer.
        n: number of cases (or datasets) in which the metric is defined.
        mean: over these; None without any.
        median: over these; None without any.
        ci95: 95 % interval of the mean (BCa bootstrap over the cases); None without any.
    """

    trainer: str
    n: int
    mean: float | None
    median: float | None
    ci95: Interval | None


@dataclass(frozen=True)
class LabelSummary:
    """The trainers' numbers for one label, in the trainers' order."""

    label: str
    summaries: tuple[Summary, ...]


@dataclass(frozen=True)
class Failures:
    """Where one trainer failed.

    Attributes:
        trainer: name of the trainer.
        missed: masks that are in the reference, and of which the prediction hits no voxel.
        with_reference: masks that are in the reference.
        false_positives: masks that are predicted where the reference has none.
        without_reference: masks that the reference does not have.
        worst_decile: mean of the worst tenth of the cases; None without any.
        worst_cases: these cases, the worst first.

    The four counts are of pairs of case and label, and None where the files do not say how many voxels there are.
    """

    trainer: str
    missed: int | None
    with_reference: int | None
    false_positives: int | None
    without_reference: int | None
    worst_decile: float | None
    worst_cases: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """Two trainers on the same cases; where one of them is the reference, it is `b`.

    Attributes:
        a: name of a trainer.
        b: name of a trainer.
        n: number of cases (or datasets) in which both have a number.
        difference: mean of a minus b; None without cases.
        ci95: 95 % interval of the difference (BCa bootstrap over the cases); None without cases.
        p: p-value of Wilcoxon's signed-rank test (Pratt's zeros); None without cases.
        p_holm: the same after Holm's correction over the pairs of this table.
        effect: matched-pairs rank-biserial correlation, from -1 to 1; its sign is the difference's.
        wins: cases in which a is better.
        ties: cases in which both are equal.
        losses: cases in which b is better.
    """

    a: str
    b: str
    n: int
    difference: float | None
    ci95: Interval | None
    p: float | None
    p_holm: float | None
    effect: float | None
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Friedman:
    """Friedman's test of all trainers at once, and Nemenyi's critical difference.

    Attributes:
        n: number of cases (or datasets) in which all trainers have a number.
        statistic: chi-square.
        p: its p value.
        mean_ranks: mean rank of each trainer; 1 is best.
        critical_difference: trainers whose mean ranks differ by less are not told apart (5 %).
    """

    n: int
    statistic: float
    p: float
    mean_ranks: Mapping[str, float]
    critical_difference: float


@dataclass(frozen=True)
class Ranking:
    """An order of the trainers, and how stable it is when the cases are drawn again.

    Attributes:
        method: "aggregate then rank" (of the means) or "rank then aggregate" (mean of the ranks in each case).
        ranks: rank of each trainer; 1 is best, ties share the mean of their ranks.
        frequencies: per trainer, shares of the drawn samples in which it came first, second, ...; tied
            trainers take the better of their places, so that a place's shares need not add up to 1.
        kendall_tau: mean over the samples of the agreement with `ranks`, from -1 to 1.
        kendall_tau_ci95: 2.5 % and 97.5 % quantiles of the same.
    """

    method: str
    ranks: Mapping[str, float]
    frequencies: Mapping[str, tuple[float, ...]]
    kendall_tau: float
    kendall_tau_ci95: Interval


@dataclass(frozen=True)
class Result:
    """The answer to one question: by one metric, on one dataset or over all.

    Attributes:
        metric: name of the metric.
        dataset: name of the dataset; None over several datasets, where the datasets are the unit.
        units: the cases of the dataset (or the datasets).
        values: per trainer, a number for each unit: labels averaged within a case (or cases within a dataset).
        summaries: one per trainer, in the trainers' order.
        labels: the same for each label; empty over several datasets.
        pairs: each two trainers; those with the reference come first.
        friedman: None for fewer than three trainers or two units.
        rankings: both ways to rank; empty where there is nothing to rank.
        failures: one per trainer; empty over several datasets.
    """

    metric: str
    dataset: str | None
    units: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]
    summaries: tuple[Summary, ...]
    labels: tuple[LabelSummary, ...]
    pairs: tuple[Pair, ...]
    friedman: Friedman | None
    rankings: tuple[Ranking, ...]
    failures: tuple[Failures, ...]


@dataclass(frozen=True)
class Comparison:
    """All that a comparison found.

    Attributes:
        reference: name of the trainer against which the others are held.
        trainers: names, in the order given; those without any result are among them.
        metrics: the first one is the main one.
        datasets: at least one.
        scores: one per dataset, trainer, case and label, of all cases that were read.
        files: one per case, for pictures.
        results: per metric one per dataset, and with several datasets one over all.
        setups: one per trainer and dataset of which something was found.
        costs: one per trainer and dataset of which something was found.
        findings: findings in the order of their weight.
        missing: runs that were asked for and are not there.
        versions: version of each program, by its name.
        references: what to cite.
        resamples: number of bootstrap samples behind the intervals.
        seed: seed of their random numbers.
    """

    reference: str
    trainers: tuple[str, ...]
    metrics: tuple[Metric, ...]
    datasets: tuple[Dataset, ...]
    scores: tuple[Score, ...]
    files: tuple[CaseFiles, ...]
    results: tuple[Result, ...]
    setups: tuple[Setup, ...]
    costs: tuple[Costs, ...]
    findings: tuple[Finding, ...]
    missing: tuple[Missing, ...]
    versions: Mapping[str, str]
    references: tuple[Reference, ...]
    resamples: int
    seed: int

    def result(self, metric: str, dataset: str | None = None) -> Result:
        """Return the result of a metric on a dataset; over all of them without one.

        Raises:
            KeyError: if there is none.
        """
        if dataset is None and len(self.datasets) == 1:
            dataset = self.datasets[0].name
        for result in self.results:
            if (result.metric, result.dataset) == (metric, dataset):
                return result
        raise KeyError((metric, dataset))

    @property
    def main(self) -> Result:
        """The result of the main metric, over all datasets if there are several."""
        return self.result(self.metrics[0].name)
