"""Reading what trainings left behind: scores of nnU-Net's summary.json, fold by fold. Nothing of it is executed."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2_ext.comparison.facts import Missing
from nnunetv2_ext.comparison.model import Score
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.label_maps import case_name

__all__ = ["Fold", "Training", "dataset_folders", "find_fold", "label_key", "read_scores", "results_folder"]

_COUNTS = {"n_reference": "n_ref", "n_predicted": "n_pred", "n_both": "TP"}
_KEY = re.compile(r"\d+|\(\s*\d+(\s*,\s*\d+)*\s*,?\s*\)")


@dataclass(frozen=True)
class Training:
    """One trainer on one dataset, as it was asked for.

    Attributes:
        name: name in the comparison.
        trainer: class name, as after `-tr`.
        dataset: name of the dataset's folder.
        plans: identifier of the plans.
        configuration: such as "3d_fullres".
        folder: folder of the model, which need not exist.
    """

    name: str
    trainer: str
    dataset: str
    plans: str
    configuration: str
    folder: Path

    def command(self, fold: int, *options: str) -> str:
        """Return the shell line that trains or validates a fold."""
        words = ["nnUNetv2_train", self.dataset, self.configuration, str(fold), "-tr", self.trainer]
        if self.plans != "nnUNetPlans":
            words += ["-p", self.plans]
        return shlex.join([*words, *options])


@dataclass(frozen=True)
class Fold:
    """What one fold of a training left behind.

    Attributes:
        training: whose it is.
        number: number of the fold.
        folder: its folder.
        scores: one per case and label.
        twice: cases that its summary.json holds more than once; the first entry counts.
    """

    training: Training
    number: int
    folder: Path
    scores: tuple[Score, ...]
    twice: tuple[str, ...] = field(default=())

    @property
    def validation(self) -> Path:
        """The folder of its validation."""
        return self.folder / "validation"


def results_folder() -> Path:
    """Return nnU-Net's folder of results.

    Raises:
        UserError: if its variable is not set, or it does not exist.
    """
    value = os.environ.get("nnUNet_results")
    if not value:
        raise UserError(
            "The environment variable nnUNet_results is not set: export the folder of the trainings, or compare "
            "folders of predictions with --predictions and -ref."
        )
    if not Path(value).is_dir():
        raise UserError(f"There is no folder {value}, which nnUNet_results names: export the one with the trainings.")
    return Path(value)


def dataset_folders(datasets: Sequence[str], results: Path) -> list[str]:
    """Return the names of datasets' folders from their numbers or names, each once.

    They are looked for among the results, and then where the other variables of nnU-Net point to, since a dataset
    without any training is to be listed as missing.

    Raises:
        UserError: if there is none, or several.
    """
    roots = [results, *(Path(os.environ[name]) for name in ("nnUNet_preprocessed", "nnUNet_raw") if os.getenv(name))]
    names: list[str] = []
    for dataset in datasets:
        by_number = dataset.isdecimal()
        prefix = f"Dataset{int(dataset):03d}_" if by_number else dataset
        found: list[str] = []
        for root in roots:
            if not found and root.is_dir():
                folders = sorted(path.name for path in root.iterdir() if path.is_dir())
                found = [
                    name for name in folders if name == dataset or (name.startswith(prefix) and dataset.isdecimal())
                ]
        if len(found) != 1:
            which = f"{len(found)} folders ({', '.join(found)})" if found else "no folder"
            raise UserError(f"There is {which} for dataset {dataset} in {results}: name it in full (Dataset000_Name).")
        if found[0] not in names:
            names.append(found[0])
    return names


def find_fold(training: Training, number: int) -> Fold | Missing:
    """Read a fold, or say what is missing and which command makes it."""
    folder = training.folder / f"fold_{number}"
    summary = folder / "validation" / "summary.json"
    final = (folder / "checkpoint_final.pth").is_file()
    started = any((folder / f"checkpoint_{name}.pth").is_file() for name in ("latest", "best"))

    def missing(what: str, *options: str) -> Missing:
        return Missing(training.name, training.dataset, number, what, training.command(number, *options))

    who = f"{training.name} on {training.dataset}, fold {number}"
    if not final and (folder / "checkpoint_latest.pth").is_file():
        also = ", and the validation that is there is not its end's" if summary.is_file() else ""
        return missing(f"{who}: the training has not come to its end{also}.", "--c")
    if not summary.is_file():
        if final:
            return missing(f"{who}: trained, but not validated.", "--val")
        if started:
            return missing(f"{who}: the training has not come to its end.", "--c")
        return missing(f"{who}: not trained.")
    try:
        scores, twice = read_scores(summary, training, number)
    except UserError as error:
        return missing(f"{who}: {error}", *(["--val"] if final else []))
    return Fold(training, number, folder, tuple(scores), tuple(twice))


def read_scores(summary: Path, training: Training, fold: int) -> tuple[list[Score], list[str]]:
    """Read the scores of a summary.json of nnU-Net.

    Returns:
        The scores, one per case and label without the background, and the cases that occur more than once.

    Raises:
        UserError: if the file cannot be read as one.
    """
    try:
        entries = json.loads(summary.read_text(encoding="utf-8"))["metric_per_case"]
        found: dict[str, list[Score]] = {}
        twice = []
        for entry in entries:
            case = _case_of(entry)
            scores = [
                _score(training, fold, case, label, values)
                for key, values in entry["metrics"].items()
                if (label := label_key(key)) != "0"
            ]
            if case in found:
                twice.append(case)
            else:
                found[case] = scores
    except OSError as error:
        raise UserError(f"{summary.name} cannot be read ({error.strerror}): see to its permissions.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{summary.name} cannot be read as nnU-Net's ({error!r}): validate again with --val."
        ) from error
    if not any(found.values()):
        raise UserError(f"{summary.name} holds no scores of a case: validate again with --val.")
    return [score for scores in found.values() for score in scores], sorted(set(twice))


def label_key(key: str) -> str:
    """Return a label or region as nnU-Net writes it: "1", or "(1, 2)" with the labels in order.

    Raises:
        ValueError: if it is neither.
    """
    if not _KEY.fullmatch(key.strip()):
        raise ValueError(f"{key!r} is neither a label nor a region")
    labels = sorted({int(number) for number in re.findall(r"\d+", key)})
    return str(labels[0]) if len(labels) == 1 else str(tuple(labels))


def _case_of(entry: Mapping[str, Any]) -> str:
    """Return the name of the case; the files were written on any system."""
    file = entry.get("prediction_file") or entry["reference_file"]
    return case_name(Path(re.split(r"[/\\]", file)[-1]))


def _score(training: Training, fold: int, case: str, label: str, values: Mapping[str, Any]) -> Score:
    numbers = {name: math.nan if value is None else float(value) for name, value in values.items()}
    # nnU-Net's Dice is a share, so that another number is of another file; NaN passes.
    if "Dice" not in numbers or numbers["Dice"] < 0 or numbers["Dice"] > 1:
        raise ValueError(f"the Dice of label {label} in {case} is {values.get('Dice')!r}")
    counts = {ours: int(numbers[theirs]) if theirs in numbers else None for ours, theirs in _COUNTS.items()}
    scores = {name: value for name, value in numbers.items() if name in ("Dice", "IoU")}
    return Score(training.dataset, case, fold, training.name, label, scores, **counts)
