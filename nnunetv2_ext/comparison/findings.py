"""What a reader has to know of the cases and labels of a comparison, each in a plain sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nnunetv2_ext.comparison.facts import Dataset, Finding, Metric
from nnunetv2_ext.comparison.model import Score

__all__ = ["find_case_findings", "find_size_findings", "list_names", "list_values"]

FEW_CASES = 20
FEW_DATASETS = 3


def list_names(names: Iterable[Any], kind: str = "", limit: int = 5) -> str:
    """List names, the first few of many, after the word for what they are."""
    words = [str(name) for name in names]
    if len(words) > limit:
        listed = f"{', '.join(words[:limit])} and {len(words) - limit} more"
    else:
        listed = " and ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "none"
    return f"{kind}{'s' if len(words) > 1 else ''} {listed}" if kind else listed


def list_values(values: Mapping[str, Any]) -> str:
    """List values with those who have them, as in `1000 (A, B), 250 (C)`."""
    groups: dict[Any, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    return ", ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())


def find_case_findings(
    scores: Sequence[Score], dataset: Dataset, metrics: Sequence[Metric], trainers: Sequence[str]
) -> list[Finding]:
    """Describe which cases and labels of a dataset are compared, and which are not.

    Args:
        scores: all of the dataset.
        dataset: what is compared.
        metrics: by which is compared.
        trainers: those of which there are scores.
    """
    findings = []
    cases = {name: {s.case for s in scores if s.trainer == name} for name in trainers}
    everyone = set().union(*cases.values())
    for name in trainers:
        lacking = sorted(everyone - cases[name])
        if lacking:
            findings.append(
                Finding(
                    "cases",
                    f"{name} has no score of {list_names(lacking)} on {dataset.name}, which others have: "
                    f"{len(dataset.cases)} cases, which all have, are compared.",
                )
            )
    labels = {name: {s.label for s in scores if s.trainer == name} for name in trainers}
    if len({frozenset(found) for found in labels.values()}) > 1:
        sets = {name: "labels " + ", ".join(sorted(found)) for name, found in labels.items()}
        findings.append(
            Finding(
                "labels",
                f"The labels on {dataset.name} differ: {list_values(sets)}. Compared are those that all "
                f"have: {list_names(dataset.labels)}.",
            )
        )
    if len(dataset.labels) == 1:
        only = f"There is one label on {dataset.name}, so the tables by case and by label say the same."
        findings.append(Finding("labels", only))
    if any("," in label for label in dataset.labels):
        findings.append(
            Finding(
                "regions",
                f"{dataset.name} is scored by regions, which overlap: their scores within a case are not independent.",
            )
        )
    findings += _splits(scores, dataset, trainers)
    return findings + [finding for metric in metrics for finding in _undefined(scores, dataset, metric)]


def _splits(scores: Sequence[Score], dataset: Dataset, trainers: Sequence[str]) -> list[Finding]:
    folds: dict[str, dict[str, int | None]] = {name: {} for name in trainers}
    for score in scores:
        folds[score.trainer][score.case] = score.fold
    moved = [case for case in dataset.cases if len({folds[name].get(case) for name in trainers}) > 1]
    if not moved:
        return []
    return [
        Finding(
            "splits",
            f"The splits of {dataset.name} differ: {len(moved)} cases were validated in different folds "
            f"({list_names(moved)}), so that the trainers saw different training data.",
        )
    ]


def _undefined(scores: Sequence[Score], dataset: Dataset, metric: Metric) -> list[Finding]:
    """Describe where a score is not defined, and for whom."""
    cases = set(dataset.cases)
    nowhere: dict[tuple[str, str], list[bool]] = {}
    for score in scores:
        if score.case in cases and score.label in dataset.labels:
            undefined = math.isnan(score.values.get(metric.name, math.nan))
            nowhere.setdefault((score.case, score.label), []).append(undefined)
    absent = [place for place, flags in nowhere.items() if all(flags)]
    partly = [place for place, flags in nowhere.items() if any(flags) and not all(flags)]
    findings = []
    if absent:
        findings.append(
            Finding(
                "undefined",
                f"{metric.name} on {dataset.name} is not defined for {len(absent)} masks in any "
                f"trainer ({list_names(f'{case}, label {label}' for case, label in absent)}): they are left out.",
            )
        )
    if partly:
        where = list_names(f"{case}, label {label}" for case, label in partly)
        why = (
            "where the reference has no such mask, who rightly predicts nothing gets no score, and others get the worst"
            if metric.higher_is_better
            else "a missed mask has no distance, so these masks are left out for all"
        )
        findings.append(
            Finding(
                "undefined",
                f"{metric.name} on {dataset.name} is not defined for {len(partly)} masks in some trainers only "
                f"({where}): {why}; the table of failures counts them.",
            )
        )
    return findings


def find_size_findings(datasets: Sequence[Dataset]) -> list[Finding]:
    """Describe where numbers are few."""
    findings = []
    for dataset in datasets:
        if len(dataset.cases) < FEW_CASES:
            findings.append(
                Finding(
                    "few",
                    f"Compared on {dataset.name}: n = {len(dataset.cases)}, fewer than {FEW_CASES} cases: "
                    "only large differences can show.",
                )
            )
    if 1 < len(datasets) < FEW_DATASETS:
        findings.append(
            Finding(
                "datasets",
                f"Over datasets, the datasets are the unit; {len(datasets)} are fewer than "
                f"{FEW_DATASETS}, so that nothing can be said about further ones: read the results of each.",
            )
        )
    return findings
