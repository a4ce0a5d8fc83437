"""Writes a dataset into nnU-Net's raw folder: in parallel, and complete or not at all.

Everything goes into a hidden folder beside the result first, which nnU-Net does not see. nnU-Net's own check of the
dataset runs there; then the folder gets its name, see `io.files`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from nnunetv2_ext.datasets.registry import check_options, find_dataset
from nnunetv2_ext.datasets.source import Case, CaseWriter, Source, count_phrase
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.files import whole_file, whole_folder
from nnunetv2_ext.io.workers import call_in_process, default_processes, map_in_processes

__all__ = ["Report", "collect_dataset", "convert", "format_report", "write_source"]

SPLITS_FILE = "splits_final.json"


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        folder: the dataset in nnU-Net's raw folder.
        source: what it is made of.
        remarks: what its user should know, one sentence each.
    """

    folder: Path
    source: Source
    remarks: tuple[str, ...]


def _folder_from(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def collect_dataset(name: str, folder: Path, **options: Any) -> Source:
    """Describe a dataset from the names of its files; reads and writes nothing else.

    Args:
        name: name of the dataset, see `registry`.
        folder: the unpacked download.
        options: options of this dataset; None leaves one at its default.

    Raises:
        UserError: for an unknown dataset or option, or a missing file.
    """
    dataset = find_dataset(name)
    settings = check_options(dataset, options)
    return import_module(f"nnunetv2_ext.datasets.{dataset.module}").collect(Path(folder), **settings)


def convert(
    name: str,
    folder: Path,
    *,
    dataset_id: int | None = None,
    raw_folder: Path | None = None,
    preprocessed_folder: Path | None = None,
    processes: int | None = None,
    link: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> Report:
    """Convert a dataset into nnU-Net's raw format.

    Args:
        name: name of the dataset, see `registry`.
        folder: the unpacked download.
        dataset_id: number in nnU-Net; by default the dataset's own.
        raw_folder: nnU-Net's raw folder, by default what `nnUNet_raw` says.
        preprocessed_folder: the one with the preprocessed data, where training reads the split; by default what
            `nnUNet_preprocessed` says. Without it the split lies with the raw data, from where planning copies it.
        processes: how many work at the same time, see `io.workers`.
        link: make symbolic links to files of the download where they can serve as they are.
        overwrite: replace a dataset of that number.
        progress: show a bar.
        options: options of this dataset, see `registry`.

    Returns:
        What was done.

    Raises:
        UserError: naming the file that is not as described, or what is in the way.
        OSError: if the dataset could not be written.
    """
    raw = raw_folder or _folder_from("nnUNet_raw")
    if raw is None:
        raise UserError("The environment variable nnUNet_raw is not set: set it to nnU-Net's folder of raw datasets.")
    source = collect_dataset(name, folder, **options)
    return write_source(
        source,
        dataset_id=find_dataset(name).number if dataset_id is None else dataset_id,
        raw_folder=raw,
        preprocessed_folder=preprocessed_folder or _folder_from("nnUNet_preprocessed"),
        processes=default_processes() if processes is None else processes,
        link=link,
        overwrite=overwrite,
        progress=progress,
    )


def write_source(
    source: Source,
    *,
    dataset_id: int,
    raw_folder: Path,
    preprocessed_folder: Path | None,
    processes: int,
    link: bool,
    overwrite: bool,
    progress: bool,
) -> Report:
    """Write a dataset; see `convert`."""
    if not 1 <= dataset_id <= 999:
        raise UserError(f"The dataset's number is {dataset_id}, but nnU-Net's have three digits: choose 1 to 999.")
    target = raw_folder / f"Dataset{dataset_id:03d}_{source.name}"
    splits = [{"train": list(split.train), "val": list(split.val)} for split in source.splits]
    preprocessed = preprocessed_folder / target.name if preprocessed_folder is not None else None
    _require_free_number(target, preprocessed_folder)
    _require_no_other_dataset(target, overwrite=overwrite)
    _require_source_elsewhere(source, target)
    if preprocessed is not None and not overwrite:
        _require_no_other_splits(preprocessed / SPLITS_FILE, splits)
    with whole_folder(target) as folder:
        # Again, because a dataset that a killed run had put aside is back now, or another run has just ended.
        _require_no_other_dataset(target, overwrite=overwrite)
        source, sizes = _write_cases(source, folder, processes, link=link, progress=progress)
        remarks = [*source.remarks, *source.examine(sizes)]
        _write_json(folder / "dataset.json", _dataset_json(source))
        if splits:
            _write_json(folder / SPLITS_FILE, splits)
        call_in_process(_check_integrity, folder, processes)
        # The dataset appears last: a run that was killed before it is to be repeated.
        if preprocessed is not None:
            remarks += _place_splits(preprocessed, splits)
    return Report(target, source, tuple(remarks))


def _require_free_number(target: Path, preprocessed_folder: Path | None) -> None:
    """Raise if another dataset has this number: nnU-Net could not tell them apart."""
    prefix = target.name.partition("_")[0]
    for root in (target.parent, preprocessed_folder, _folder_from("nnUNet_results")):
        for other in sorted(root.glob(f"{prefix}_*")) if root is not None else []:
            if other.name != target.name:
                raise UserError(f"{other} has the same number: choose another with -d.")


def _require_no_other_dataset(target: Path, *, overwrite: bool) -> None:
    """Raise if there is a dataset that would be replaced unasked."""
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists: choose another number with -d, or replace it with --overwrite.")


def _require_source_elsewhere(source: Source, target: Path) -> None:
    """Raise if a file to convert lies in the dataset that is to be replaced: it would be removed, and links lead to it.

    Raises:
        UserError: naming the first such file.
    """
    replaced = target.resolve()
    for case in source.cases:
        for path in (*case.images, *([] if case.label is None else [case.label])):
            if replaced in path.resolve().parents:
                raise UserError(
                    f"{path} lies in {target}, which would be replaced: move the download elsewhere, or choose another "
                    "number with -d."
                )


def _require_no_other_splits(path: Path, splits: list[dict[str, list[str]]]) -> None:
    """Raise if training would read other folds than those that are to be written."""
    if splits and path.is_file() and path.read_text(encoding="utf-8") != _to_json(splits):
        raise UserError(f"{path} has another split: choose another number with -d, or replace it with --overwrite.")


# Cases


def _write_one(
    case: Case, write_case: CaseWriter, folder: Path, file_ending: str, n_image_files: int, link: bool
) -> dict[int, float] | None:
    part = "Ts" if case.test else "Tr"
    images = [folder / f"images{part}" / f"{case.name}_{channel:04d}{file_ending}" for channel in range(n_image_files)]
    label = folder / f"labels{part}" / f"{case.name}{file_ending}" if case.label is not None else None
    return write_case(case, images, label, link=link)


def _write_cases(
    source: Source, folder: Path, processes: int, *, link: bool, progress: bool
) -> tuple[Source, dict[str, dict[int, float]]]:
    """Write all cases; return the dataset with those that belong to it, and the sizes of their labels."""
    for case in source.cases:
        part = "Ts" if case.test else "Tr"
        (folder / f"images{part}").mkdir(exist_ok=True)
        if case.label is not None:
            (folder / f"labels{part}").mkdir(exist_ok=True)
    write_one = partial(
        _write_one,
        write_case=source.write_case,
        folder=folder,
        file_ending=source.file_ending,
        n_image_files=source.n_image_files,
        link=link,
    )
    calls = [(case,) for case in source.cases]
    sizes = map_in_processes(write_one, calls, processes, description=source.name, progress=progress)
    written = [(case, found) for case, found in zip(source.cases, sizes, strict=True) if found is not None]
    return (
        replace(source, cases=tuple(case for case, _ in written)),
        {case.name: found for case, found in written if case.label is not None},
    )


# What goes beside the cases


def _to_json(content: Any) -> str:
    return json.dumps(content, indent=4) + "\n"


def _write_json(path: Path, content: Any) -> None:
    path.write_text(_to_json(content), encoding="utf-8")


def _dataset_json(source: Source) -> dict[str, Any]:
    description = {
        "name": source.name,
        "description": source.description,
        "reference": source.reference,
        "licence": source.licence,
        "channel_names": {str(number): name for number, name in enumerate(source.channel_names)},
        "labels": {"background": 0, **source.labels},
        "numTraining": len(source.training_cases),
        "file_ending": source.file_ending,
    }
    if source.splits:
        description["folds"] = {str(number): split.used_by for number, split in enumerate(source.splits)}
    return description


def _check_integrity(folder: Path, processes: int) -> None:
    """Run nnU-Net's own check of a raw dataset.

    Raises:
        UserError: if it finds something; it has printed the details.
    """
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    try:
        verify_dataset_integrity(str(folder), processes)
    except (AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"nnU-Net's check refuses the converted dataset ({reason}): repair the file that it names above."
        ) from error


def _place_splits(preprocessed: Path, splits: list[dict[str, list[str]]]) -> list[str]:
    """Write the split where training reads it, and tell whether data of a replaced dataset are there."""
    remarks = []
    if (preprocessed / "dataset_fingerprint.json").is_file():
        remarks.append(
            f"{preprocessed} holds the preprocessed data of the dataset that was replaced: remove it, or plan again "
            "with --clean."
        )
    path = preprocessed / SPLITS_FILE
    if splits:
        with whole_file(path) as partial_file:
            _write_json(partial_file, splits)
    elif path.is_file():
        remarks.append(f"{path} has folds of the dataset that was replaced; this one has none: remove the file.")
    return remarks


def format_report(report: Report) -> str:
    """Describe what was written, what the folds are, what to know, and how to go on."""
    source = report.source
    tests = len(source.test_cases)
    lines = [f"Wrote {report.folder}: {count_phrase(len(source.training_cases), 'training case')}"]
    lines[0] += f", {count_phrase(tests, 'test case')}." if tests else "."
    for number, split in enumerate(source.splits):
        lines.append(f"Fold {number} trains on {len(split.train)} and validates on {len(split.val)}: {split.used_by}.")
    if not source.splits:
        lines.append("No paper's split: nnU-Net makes five random folds, and the fold `all` takes all training cases.")
    lines += [*report.remarks, f"Plan with: nnUNetv2_plan_and_preprocess -d {int(report.folder.name[7:10])}"]
    return "\n".join(lines)
