"""Result folders as nnU-Net leaves them, made without training, for tests of what is read from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DATASET = "Dataset001_Heart"


def entry(case: str, dice: dict[str, float | None]) -> dict[str, Any]:
    """Return the entry of a case in summary.json, for the Dice of each label (None: absent on both sides)."""
    metrics = {}
    for label, value in dice.items():
        tp = 0 if value is None else round(1000 * value)
        rest = 0 if value is None else 1000 - tp
        metrics[label] = {
            "Dice": float("nan") if value is None else value,
            "IoU": float("nan") if value is None else value / (2 - value),
            **{"TP": tp, "FP": rest, "FN": rest, "TN": 5000, "n_pred": tp + rest, "n_ref": tp + rest},
        }
    return {
        "metrics": metrics,
        "prediction_file": f"/elsewhere/validation/{case}.nii.gz",
        "reference_file": f"/elsewhere/gt_segmentations/{case}.nii.gz",
    }


def write_summary(
    results: Path,
    trainer: str,
    fold: int,
    entries: list[dict[str, Any]],
    plans: str = "nnUNetPlans",
    dataset: str = DATASET,
) -> Path:
    """Write the summary.json of a fold, and give its path."""
    folder = results / dataset / f"{trainer}__{plans}__3d_fullres" / f"fold_{fold}" / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "summary.json"
    path.write_text(json.dumps({"metric_per_case": entries, "mean": {}, "foreground_mean": {}}))
    return path


def write_trainings(
    results: Path,
    trainers: Sequence[str],
    folds: Sequence[int] = (0, 1),
    per_fold: int = 12,
    labels: Sequence[str] = ("1", "2"),
    gain: float = 0.01,
    change: Callable[[str, int, list[dict[str, Any]]], list[dict[str, Any]]] = lambda trainer, fold, entries: entries,
    **more: str,
) -> None:
    """Write trainings whose Dice grows by `gain` from each trainer to the next.

    Args:
        results: nnU-Net's folder of results.
        trainers: names.
        folds: numbers.
        per_fold: cases.
        labels: keys.
        gain: difference of two neighbours.
        change: what to do to the entries of a trainer's fold.
        more: plans and dataset of `write_summary`.
    """
    rng = np.random.default_rng(0)
    for fold in folds:
        base = rng.beta(8, 2, (per_fold, len(labels)))
        for number, trainer in enumerate(trainers):
            dice = np.clip(base + gain * number + rng.normal(0, 0.02, base.shape), 0, 1)
            entries = [
                entry(f"heart_{fold}{case:03d}", dict(zip(labels, map(float, row), strict=True)))
                for case, row in enumerate(dice)
            ]
            write_summary(results, trainer, fold, change(trainer, fold, entries), **more)
