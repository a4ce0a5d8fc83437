"""What an evaluation leaves behind: summary.json in nnU-Net's form, metrics.csv, and report.md."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path

from nnunetv2_ext.evaluation.cases import CaseScores
from nnunetv2_ext.evaluation.rules import Metric, Protocol
from nnunetv2_ext.images.label_maps import case_name
from nnunetv2_ext.images.labels import LabelMap
from nnunetv2_ext.io.tables import format_table

__all__ = ["Evaluation", "definitions_table", "format_report", "means_table", "summarize", "write_files"]


@dataclass(frozen=True)
class Evaluation:
    """All scores of a set of cases.

    Attributes:
        protocol: how they were scored.
        labels: what was scored.
        tolerance: tolerance of the NSD, where the user chooses it.
        cases: the scores, in the order of the files' names.
        remarks: what was assumed or looks wrong, one sentence each.
    """

    protocol: Protocol
    labels: LabelMap
    tolerance: float | None
    cases: tuple[CaseScores, ...]
    remarks: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The protocol's metrics, with the units that these files allow."""
        return tuple(self._with_unit(metric) for metric in self.protocol.metrics)

    def _with_unit(self, metric: Metric) -> Metric:
        unit, definition = metric.unit, metric.definition
        length = "mm" if self.cases[0].has_spacing else "voxel"
        if unit == "mm":
            unit = length
        if metric.name == "NSD" and self.tolerance is not None:
            definition = f"{definition}: {self.tolerance:g} {length}"
        return replace(metric, definition=definition, unit=unit)

    def mean(self, name: str, metric: str) -> float:
        """Average a class over the cases in which the metric is defined; NaN if there is none."""
        values = self._defined(name, metric)
        return math.fsum(values) / len(values) if values else math.nan

    def _defined(self, name: str, metric: str) -> list[float]:
        values = [case.metrics[name][metric] for case in self.cases]
        return [value for value in values if not math.isnan(value)]

    def count(self, name: str, metric: str) -> int:
        """Count the cases in which a metric of a class is defined."""
        return len(self._defined(name, metric))

    def foreground_mean(self, metric: str) -> float:
        """Average the means of the classes; NaN if one of them is."""
        means = [self.mean(name, metric) for name in self.labels.classes]
        return math.fsum(means) / len(means)

    def pooled(self, name: str) -> dict[str, float]:
        """Return the metrics of the counts of all cases together, for the metrics that the protocol pools."""
        overlap = reduce(add, (case.overlaps[name] for case in self.cases))
        return {metric: function(overlap) for metric, function in self.protocol.pooled.items()}


def collect_remarks(cases: Sequence[CaseScores]) -> list[str]:
    """Return what was assumed for any case, once each, with the cases that it holds for."""
    found: dict[str, list[str]] = {}
    for case in cases:
        for remark in case.remarks:
            found.setdefault(remark, []).append(case_name(case.prediction))
    others = {remark: f" and {len(names) - 1} others" if len(names) > 1 else "" for remark, names in found.items()}
    return [f"{remark} ({names[0]}{others[remark]})." for remark, names in found.items()]


def summarize(evaluation: Evaluation) -> dict:
    """Return the content of summary.json: nnU-Net's keys, and what the numbers mean."""
    keys = {name: str(value) for name, value in evaluation.labels.classes.items()}
    metrics = evaluation.metrics
    summary = {
        "foreground_mean": {metric.name: evaluation.foreground_mean(metric.name) for metric in metrics},
        "mean": {
            key: {metric.name: evaluation.mean(name, metric.name) for metric in metrics} for name, key in keys.items()
        },
        "metric_per_case": [
            {
                "reference_file": str(case.reference),
                "prediction_file": str(case.prediction),
                "metrics": {key: dict(case.metrics[name]) for name, key in keys.items()},
            }
            for case in evaluation.cases
        ],
        "labels": {key: name for name, key in keys.items()},
        "remarks": list(evaluation.remarks),
        "label_map": {"name": evaluation.labels.name, "source": evaluation.labels.source},
        "protocol": {
            "name": evaluation.protocol.name,
            "source": evaluation.protocol.source,
            "notes": list(evaluation.protocol.notes),
            "metrics": {
                metric.name: {"definition": metric.definition, "unit": metric.unit, "empty_masks": metric.empty}
                for metric in metrics
            },
        },
    }
    if evaluation.protocol.pooled:
        summary["pooled"] = {key: evaluation.pooled(name) for name, key in keys.items()}
    return summary


def means_table(evaluation: Evaluation, *, definitions: bool = True) -> str:
    """Lay out the means as a markdown table: one row per metric, with its definition, unit and rule for empty masks.

    Args:
        evaluation: what was found.
        definitions: whether to have the columns of definitions and rules, which are wide.
    """
    names, n_cases = list(evaluation.labels.classes), len(evaluation.cases)
    rows = []
    for metric in evaluation.metrics:
        if not metric.shown:
            continue
        cells = [_number(evaluation.foreground_mean(metric.name))]
        for name in names:
            count = evaluation.count(name, metric.name)
            left_out = "" if count == n_cases else f" ({count} of {n_cases})"
            cells.append(_number(evaluation.mean(name, metric.name)) + left_out)
        rows.append([metric.name, metric.unit or "-", *cells, metric.definition, metric.empty])
    if evaluation.protocol.pooled:
        pooled = {name: evaluation.pooled(name) for name in names}
        for pooled_metric in evaluation.protocol.pooled:
            values = [pooled[name][pooled_metric] for name in names]
            cells = [_number(value) for value in (math.fsum(values) / len(values), *values)]
            rows.append(
                [f"{pooled_metric}, pooled", "-", *cells, "the same, of the counts of all cases together", "as above"]
            )
    header = ["metric", "unit", "mean", *names, "definition", "empty masks"]
    if not definitions:
        header, rows = header[:-2], [row[:-2] for row in rows]
    return format_table(header, rows, markdown=True)


def definitions_table(metrics: Sequence[Metric]) -> str:
    """Lay out what metrics mean, without numbers, as a markdown table."""
    rows = [[metric.name, metric.unit or "-", metric.definition, metric.empty] for metric in metrics]
    return format_table(["metric", "unit", "definition", "empty masks"], rows, markdown=True)


def format_report(evaluation: Evaluation) -> str:
    """Write the report in markdown."""
    protocol, labels = evaluation.protocol, evaluation.labels
    return "\n".join([
        f"# Scores by the protocol `{protocol.name}`",
        "",
        f"{protocol.title}. {len(evaluation.cases)} cases; mean over the cases of each class, then over the classes. "
        "Where a metric is not defined for all cases, the number of cases behind its mean is given.",
        "",
        means_table(evaluation),
        "",
        f"- References: `{evaluation.cases[0].reference.parent}`",
        f"- Predictions: `{evaluation.cases[0].prediction.parent}`",
        f"- Labels: {labels.describe()} (`{labels.name}`: {labels.source})",
        f"- Source of the definitions: {protocol.source}",
        *(f"- {remark}" for remark in evaluation.remarks),
        *(f"- {note}" for note in protocol.notes),
        "",
    ])  # fmt: skip


def write_files(evaluation: Evaluation, folder: Path) -> None:
    """Write summary.json, metrics.csv and report.md into an existing folder."""
    # NaN as in nnU-Net's own file, which the same tools read.
    (folder / "summary.json").write_text(json.dumps(summarize(evaluation), indent=4) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(format_report(evaluation), encoding="utf-8")
    names = [metric.name for metric in evaluation.metrics]
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "class", "label", *names])
        for case in evaluation.cases:
            for name, value in evaluation.labels.classes.items():
                scores = case.metrics[name]
                cells = ("" if math.isnan(scores[metric]) else scores[metric] for metric in names)
                writer.writerow([case_name(case.prediction), name, value, *cells])


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
