"""Scores that nnU-Net's summary.json does not hold: the label maps themselves, by the package's `evaluation`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext.comparison.facts import Metric
from nnunetv2_ext.comparison.model import Score
from nnunetv2_ext.comparison.results import Fold, label_key
from nnunetv2_ext.errors import UserError

if TYPE_CHECKING:
    from nnunetv2_ext.evaluation.cases import CaseScores
    from nnunetv2_ext.evaluation.report import Evaluation

__all__ = ["IN_SUMMARIES", "Scoring", "find_references", "metrics_of", "score_fold", "score_predictions"]

_WHERE_EMPTY = "both masks empty: not defined; one empty: 0"
IN_SUMMARIES = {
    "Dice": Metric("Dice", "", True, f"2TP / (2TP + FP + FN); {_WHERE_EMPTY}"),
    "IoU": Metric("IoU", "", True, f"TP / (TP + FP + FN); {_WHERE_EMPTY}"),
}


@dataclass(frozen=True)
class Scoring:
    """How label maps are scored.

    Attributes:
        protocol: name of a protocol of `evaluation`; None is nnunet, and only for what summary.json does not hold.
        labels: what the values mean, see `evaluation.runner`.
        tolerance: tolerance of the NSD in mm.
        processes: how many work at a time.
    """

    protocol: str | None = None
    labels: str | None = None
    tolerance: float | None = None
    processes: int | None = None

    @property
    def name(self) -> str:
        """Name of the protocol that is computed."""
        return self.protocol or "nnunet"

    @property
    def anew(self) -> bool:
        """Whether what summary.json holds does not count."""
        return self.protocol is not None or self.labels is not None


def metrics_of(names: Sequence[str], scoring: Scoring) -> tuple[Metric, ...]:
    """Return metrics of a protocol by their names; the protocol's first one without a name.

    Raises:
        UserError: for a metric that the protocol does not have, or that is named twice.
    """
    from nnunetv2_ext.evaluation.protocols import find_protocol

    protocol = find_protocol(scoring.name)
    known = {metric.name: metric for metric in protocol.metrics if metric.shown}
    found = []
    for name in dict.fromkeys(names or [next(iter(known))]):
        if name not in known:
            raise UserError(f"The protocol {scoring.name} has no metric {name!r}; it has {', '.join(known)}.")
        metric = known[name]
        tolerance = protocol.default_tolerance if scoring.tolerance is None else scoring.tolerance
        at = f": {tolerance:g} mm" if name == "NSD" and tolerance is not None else ""
        # Lengths are errors; all others are shares of what is right.
        found.append(Metric(name, metric.unit, not metric.unit, f"{metric.definition}{at}; {metric.empty}"))
    return tuple(found)


def find_references(dataset: str, fold: Fold) -> Path:
    """Return the folder of a dataset's references, as nnU-Net validates against.

    Raises:
        UserError: if there is none.
    """
    places = [(os.getenv("nnUNet_preprocessed"), "gt_segmentations"), (os.getenv("nnUNet_raw"), "labelsTr")]
    for root, name in places:
        if root and (Path(root) / dataset / name).is_dir():
            return Path(root) / dataset / name
    raise UserError(
        f"There are no references of {dataset}, against which {fold.validation} could be scored: export "
        "nnUNet_preprocessed (with its gt_segmentations) or nnUNet_raw (with its labelsTr)."
    )


def score_fold(fold: Fold, scoring: Scoring, wanted: Sequence[str]) -> Fold:
    """Score the label maps of a fold's validation, and add what was found to its scores.

    Args:
        fold: fold as it was read.
        scoring: how.
        wanted: names of metrics. Where one is in the summary.json too, the new value counts.

    Raises:
        UserError: naming a file, if it is missing, damaged or does not fit.
    """
    from nnunetv2_ext.evaluation.runner import score_folders

    labels = scoring.labels
    own = fold.training.folder / "dataset.json"
    if labels is None and own.is_file() and scoring.name == "nnunet":
        labels = str(own)
    found = score_folders(
        find_references(fold.training.dataset, fold),
        fold.validation,
        scoring.name,
        labels=labels,
        tolerance=scoring.tolerance,
        only_predicted=True,
        processes=scoring.processes,
    )
    scores = _scores(found, fold.training.dataset, fold.training.name, fold.number)
    known = {(score.case, score.label): score for score in fold.scores}
    there = {score.case for score in fold.scores}
    lacking = sorted(there - {score.case for score in scores})
    if lacking:
        raise UserError(
            f"{fold.validation} lacks the prediction of {lacking[0]}, which its summary.json names: copy the label "
            "maps too, or compare by Dice and IoU alone."
        )
    merged = [_merge(known.get((score.case, score.label)), score, wanted) for score in scores if score.case in there]
    return replace(fold, scores=tuple(merged))


def _merge(old: Score | None, new: Score, wanted: Sequence[str]) -> Score:
    values = {**(old.values if old else {}), **{name: new.values[name] for name in wanted}}
    return replace(new, values=values)


def score_predictions(name: str, folder: Path, references: Path, scoring: Scoring) -> tuple[list[Score], list[str]]:
    """Score a folder of predictions.

    Returns:
        The scores, and what was assumed or looks wrong, one sentence each.

    Raises:
        UserError: naming a file, if it is damaged or does not fit.
    """
    from nnunetv2_ext.evaluation.runner import score_folders

    for place, option in ((folder, f"--predictions {name}="), (references, "-ref ")):
        if not place.is_dir():
            raise UserError(f"There is no folder {place}, which {option}{place} names: name one with label maps.")
    found = score_folders(
        references,
        folder,
        scoring.name,
        labels=scoring.labels,
        tolerance=scoring.tolerance,
        only_predicted=True,
        processes=scoring.processes,
    )
    resolved = references.resolve()
    dataset = resolved.parent.name if resolved.parent.name.startswith("Dataset") else resolved.name
    return _scores(found, dataset, name, None), list(found.remarks)


def _scores(evaluation: Evaluation, dataset: str, trainer: str, fold: int | None) -> list[Score]:
    from nnunetv2_ext.images.label_maps import case_name

    keys = {name: label_key(str(value)) for name, value in evaluation.labels.classes.items()}
    shown = [metric.name for metric in evaluation.metrics if metric.shown]

    def score(case: CaseScores, name: str) -> Score:
        counts, values = case.overlaps[name], case.metrics[name]
        return Score(
            dataset, case_name(case.prediction), fold, trainer, keys[name],
            {metric: float(values.get(metric, math.nan)) for metric in shown},
            counts.referenced, counts.predicted, counts.tp,
        )  # fmt: skip

    return [score(case, name) for case in evaluation.cases for name in keys]
