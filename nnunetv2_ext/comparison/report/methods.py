"""A paragraph for a paper's methods section, and what it cites."""

from __future__ import annotations

from nnunetv2_ext.comparison.model import Comparison
from nnunetv2_ext.comparison.report.words import list_names

__all__ = ["describe_methods", "numbered_references"]


def describe_methods(comparison: Comparison) -> str:
    """Return how was compared, ready to paste, with the numbers of `numbered_references` in square brackets."""
    names, metrics = comparison.trainers, comparison.metrics
    main = comparison.result(metrics[0].name)
    folds = sorted({score.fold for score in comparison.scores if score.fold is not None})
    n_cases = {dataset.name: len(dataset.cases) for dataset in comparison.datasets}
    several = len(n_cases) > 1
    cite = _Citations(comparison)
    where = list_names([f"{name} ({n} cases)" for name, n in n_cases.items()])
    how = "on a separate set of cases"
    if folds:
        how = f"by the validation cases of a cross-validation (folds {', '.join(map(str, folds))})"
    versions = ", ".join(f"{program} {version}" for program, version in comparison.versions.items())
    parts = [
        f"We compared {list_names(list(names))} on {where} {how}{cite('nnu-net')}; {comparison.reference} "
        "was the reference.",
        f"{list_names([metric.name for metric in metrics])} "
        f"{'was' if len(metrics) == 1 else 'were'} computed per case and label "
        f"({'; '.join(f'{metric.name}: {metric.definition}' for metric in metrics)}) and averaged over the labels "
        "within each case, so that the case is the unit of all statistics; "
        "cases that not all trainers have were left out.",
        f"Means and mean paired differences are given with 95 % intervals (bootstrap over the cases, bias-corrected "
        f"and accelerated, {comparison.resamples:,} samples, seed {comparison.seed}{cite('bootstrap')}).",
        f"Pairs were tested by Wilcoxon's signed-rank test, two-sided{cite('signed-rank', 'wilcoxon')}, with zero "
        f"differences treated after Pratt{cite('zeros')}, and p values were corrected by Holm's method over the "
        f"{len(main.pairs)} {'pair' if len(main.pairs) == 1 else 'pairs'} of each question{cite('correction')}; "
        f"the effect size is the matched-pairs rank-biserial correlation{cite('rank-biserial')}.",
    ]
    if any(result.friedman for result in comparison.results):
        parts.append(
            f"All trainers together were tested by Friedman's test{cite('friedman')} with Nemenyi's critical "
            f"difference{cite('critical difference')}."
        )
    if any(result.rankings for result in comparison.results):
        parts.append(
            "The stability of the ranking was examined by ranking bootstrap samples of the cases, summarised by the "
            f"frequencies of the ranks and Kendall's tau{cite('stability')}."
        )
    if several:
        parts.append("Over several datasets the dataset is the unit: each contributes the mean of its cases.")
    parts.append(f"Software: {versions}{cite('scipy')}.")
    return " ".join(parts)


def numbered_references(comparison: Comparison) -> list[str]:
    """Return what to cite, in the order of the numbers in the paragraph."""
    return [f"{reference.key}: {reference.text}" for reference in comparison.references]


class _Citations:
    """Numbers of references by the beginnings of what they stand for."""

    def __init__(self, comparison: Comparison) -> None:
        self._keys = [reference.key.lower() for reference in comparison.references]

    def __call__(self, *words: str) -> str:
        found = [str(number) for number, key in enumerate(self._keys, start=1) if key.startswith(words)]
        return f" [{', '.join(found)}]" if found else ""
