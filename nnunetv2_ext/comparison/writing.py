"""What a comparison leaves behind for programs: comparison.json, and tables of scores as CSV."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunetv2_ext.comparison.facts import Metric
from nnunetv2_ext.comparison.model import Comparison, Result, Summary

__all__ = ["describe", "write_tables"]


def write_tables(comparison: Comparison, folder: Path) -> None:
    """Write comparison.json, cases.csv and labels.csv into an existing folder."""
    text = json.dumps(describe(comparison), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "comparison.json").write_text(text + "\n", encoding="utf-8")
    metrics = [metric.name for metric in comparison.metrics]
    folds = {(score.dataset, score.case, score.trainer): score.fold for score in comparison.scores}
    by_dataset = {dataset.name: dataset for dataset in comparison.datasets}
    rows: list[list[Any]] = []
    for dataset in comparison.datasets:
        results = [comparison.result(metric, dataset.name) for metric in metrics]
        for index, case in enumerate(dataset.cases):
            for trainer in comparison.trainers:
                if (dataset.name, case, trainer) in folds:
                    numbers = [_cell(result.values[trainer][index]) for result in results]
                    rows.append([dataset.name, case, trainer, folds[dataset.name, case, trainer], *numbers])
    _write_csv(folder / "cases.csv", ["dataset", "case", "trainer", "fold", *metrics], rows)
    rows = []
    for score in sorted(comparison.scores, key=lambda score: (score.dataset, score.case)):
        dataset = by_dataset[score.dataset]
        numbers = [_cell(score.values.get(metric, math.nan)) for metric in metrics]
        compared = score.case in dataset.cases and score.label in dataset.labels
        rows.append(
            [score.dataset, score.case, score.trainer, score.fold, score.label, dataset.labels.get(score.label, ""),
             *numbers, score.n_reference, score.n_predicted, "yes" if compared else "no"]
        )  # fmt: skip
    header = ["dataset", "case", "trainer", "fold", "label", "name", *metrics, "n_reference", "n_predicted", "compared"]
    _write_csv(folder / "labels.csv", header, rows)


def describe(comparison: Comparison) -> dict[str, Any]:
    """Return the content of comparison.json: the main result at the top, then all results, costs and what to know."""
    main = comparison.main
    return {
        "reference": comparison.reference,
        "metric": main.metric,
        **_describe_result(main, comparison.metrics[0]),
        "findings": [finding.sentence for finding in comparison.findings],
        "missing": [asdict(missing) for missing in comparison.missing],
        "metrics": [asdict(metric) for metric in comparison.metrics],
        "datasets": [
            {"name": dataset.name, "labels": dict(dataset.labels), "cases": list(dataset.cases)}
            for dataset in comparison.datasets
        ],
        "results": [
            {
                "metric": result.metric,
                "dataset": result.dataset,
                **_describe_result(result, next(m for m in comparison.metrics if m.name == result.metric)),
            }
            for result in comparison.results
        ],
        "setups": [asdict(setup) for setup in comparison.setups],
        "costs": [asdict(cost) for cost in comparison.costs],
        "kinds_of_findings": [finding.kind for finding in comparison.findings],
        "bootstrap": {"resamples": comparison.resamples, "seed": comparison.seed, "confidence": 0.95},
        "versions": dict(comparison.versions),
        "references": [asdict(reference) for reference in comparison.references],
    }


def _describe_result(result: Result, metric: Metric) -> dict[str, Any]:
    return {
        "unit": "case" if result.dataset else "dataset",
        "higher_is_better": metric.higher_is_better,
        "trainers": _describe_summaries(result.summaries),
        "pairs": [asdict(pair) for pair in result.pairs],
        "friedman": asdict(result.friedman) if result.friedman else None,
        "rankings": [asdict(ranking) for ranking in result.rankings],
        "labels": {table.label: _describe_summaries(table.summaries) for table in result.labels},
        "failures": {failures.trainer: _without_trainer(asdict(failures)) for failures in result.failures},
    }


def _describe_summaries(summaries: Sequence[Summary]) -> dict[str, Any]:
    return {summary.trainer: _without_trainer(asdict(summary)) for summary in summaries}


def _without_trainer(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != "trainer"}


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
