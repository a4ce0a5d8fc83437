"""From two folders of label maps to a report: pairs files, scores cases in parallel, and writes all or nothing."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.evaluation.cases import score_files
from nnunetv2_ext.evaluation.labels import find_labels
from nnunetv2_ext.evaluation.protocols import find_protocol, score_masks
from nnunetv2_ext.evaluation.renumbered import add_tables, describe_renumbering, find_renumbering
from nnunetv2_ext.evaluation.report import Evaluation, collect_remarks, write_files
from nnunetv2_ext.evaluation.rules import Protocol
from nnunetv2_ext.images.label_maps import FILE_ENDINGS, case_name, file_ending
from nnunetv2_ext.images.labels import LabelMap
from nnunetv2_ext.io.files import prepare_output, whole_folder
from nnunetv2_ext.io.workers import map_in_processes

__all__ = ["evaluate_folders", "pair_files", "score_folders"]

# Endings that are written otherwise but mean the same format.
_FORMATS = {".nii": ".nii.gz", ".tiff": ".tif"}


def evaluate_folders(
    reference: Path,
    prediction: Path,
    protocol_name: str,
    *,
    labels: str | None = None,
    tolerance: float | None = None,
    output: Path | None = None,
    only_predicted: bool = False,
    processes: int | None = None,
    overwrite: bool = False,
) -> tuple[Evaluation, Path]:
    """Score a folder of predictions, and write summary.json, metrics.csv and report.md.

    Args:
        reference: folder of the references, `CASE.ENDING`.
        prediction: folder of the predictions, with the same names.
        protocol_name: a key of `protocols.PROTOCOLS`.
        labels: a key of `labels.LABEL_MAPS` or the path of a dataset.json; by default the protocol's own map, or for
            one without a map the dataset.json in or above the folder of the references, or by the predictions.
        tolerance: tolerance of the NSD, in mm; only for a protocol that leaves it to the user.
        output: folder to write; by default `evaluation_<protocol>` in the folder of the predictions.
        only_predicted: leave out references without a prediction instead of refusing.
        processes: how many work at a time, see `io.workers`.
        overwrite: replace an earlier evaluation.

    Returns:
        What was found, and the folder that was written.

    Raises:
        UserError: in one sentence, for whatever does not fit together. Nothing is written then.
    """
    protocol = find_protocol(protocol_name)
    output = prediction / f"evaluation_{protocol.name}" if output is None else output
    prepare_output(output, kind="an earlier evaluation", holds=("summary.json",), overwrite=overwrite)
    evaluation = score_folders(
        reference,
        prediction,
        protocol_name,
        labels=labels,
        tolerance=tolerance,
        only_predicted=only_predicted,
        processes=processes,
    )
    with whole_folder(output) as folder:
        write_files(evaluation, folder)
    return evaluation, output


def score_folders(
    reference: Path,
    prediction: Path,
    protocol_name: str,
    *,
    labels: str | None = None,
    tolerance: float | None = None,
    only_predicted: bool = False,
    processes: int | None = None,
) -> Evaluation:
    """Score a folder of predictions, and write nothing; see `evaluate_folders` for arguments and errors."""
    protocol = find_protocol(protocol_name)
    pairs = pair_files(reference, prediction, only_predicted=only_predicted)
    label_map = find_labels(labels, protocol.labels, _find_dataset_json(reference, prediction))
    tolerance, tolerances = _resolve_tolerances(protocol, label_map, tolerance)
    score = partial(
        score_files,
        labels=label_map,
        score=partial(score_masks, protocol=protocol.name),
        tolerances=tolerances,
        needs_spacing=protocol.needs_spacing,
    )
    cases = map_in_processes(score, pairs, processes, description="evaluate")
    renumbered = find_renumbering(add_tables([case.meetings for case in cases]))
    remarks = collect_remarks(cases)
    if renumbered:
        remarks.insert(0, f"Beware: {describe_renumbering(renumbered, label_map)}.")
    if len({case.has_spacing for case in cases}) > 1:
        odd = next(case for case in cases if not case.has_spacing)
        raise UserError(f"{odd.reference} does not say how large a voxel is, other references do: write them alike.")
    return Evaluation(protocol, label_map, tolerance, tuple(cases), tuple(remarks))


def pair_files(reference: Path, prediction: Path, *, only_predicted: bool = False) -> list[tuple[Path, Path]]:
    """Find the pairs (reference, prediction) of two folders, in the order of their names.

    Raises:
        UserError: naming a file, if one lacks its counterpart.
    """
    for folder in (reference, prediction):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}: name one after -ref and one after -pred.")
    found = _label_files(reference)
    if len(found) != 1:
        held = f"files of several formats ({', '.join(found)})" if found else f"no files ({', '.join(FILE_ENDINGS)})"
        raise UserError(f"{reference} holds {held}; references of one format are needed, move others elsewhere.")
    ((ending, references),) = found.items()
    others = _label_files(prediction)
    predictions = others.get(ending, {})
    if not predictions:
        held = f" but {', '.join(others)}" if others else ""
        raise UserError(f"{prediction} holds no {ending} files, the format of the references,{held}: write them alike.")
    surplus = sorted(predictions.keys() - references.keys())
    if surplus:
        raise UserError(
            f"{predictions[surplus[0]]} has no reference in {reference}{_others(surplus)}: move it elsewhere, or add "
            "its reference."
        )
    missing = sorted(references.keys() - predictions.keys())
    if missing and not only_predicted:
        raise UserError(
            f"{references[missing[0]]} has no prediction in {prediction}{_others(missing)}; "
            "leave such references out with --chill."
        )
    return [(references[case], predictions[case]) for case in sorted(predictions)]


def _label_files(folder: Path) -> dict[str, dict[str, Path]]:
    """Return the image files of a folder by format and case; hidden ones are what macOS leaves beside them.

    Raises:
        UserError: if two files of one format are the same case.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        ending = file_ending(path)
        if path.name.startswith(".") or ending is None or not path.is_file():
            continue
        of_format = found.setdefault(_FORMATS.get(ending, ending), {})
        if case_name(path) in of_format:
            raise UserError(f"{of_format[case_name(path)]} and {path} are the same case: move one of them elsewhere.")
        of_format[case_name(path)] = path
    return found


def _others(names: list[str]) -> str:
    return f" (nor have {len(names) - 1} others)" if len(names) > 1 else ""


def _find_dataset_json(reference: Path, prediction: Path) -> Path | None:
    """Look where nnU-Net keeps it: above labelsTr and gt_segmentations, and by its predictions."""
    places = (reference, reference.resolve().parent, prediction)
    return next((place / "dataset.json" for place in places if (place / "dataset.json").is_file()), None)


def _resolve_tolerances(
    protocol: Protocol, labels: LabelMap, tolerance: float | None
) -> tuple[float | None, dict[str, float]]:
    """Return the tolerance that holds for all classes, if there is one, and that of each class."""
    if protocol.default_tolerance is None:
        if tolerance is not None:
            raise UserError(f"The protocol {protocol.name} leaves no tolerance to choose: leave out --tolerance.")
        unknown = [name for name in labels.classes if protocol.tolerances and name not in protocol.tolerances]
        if unknown:
            raise UserError(
                f"The protocol {protocol.name} has no tolerance for {unknown[0]}; its classes are "
                f"{', '.join(protocol.tolerances)}."
            )
        return None, dict(protocol.tolerances)
    tolerance = protocol.default_tolerance if tolerance is None else tolerance
    if not 0 <= tolerance < math.inf:
        raise UserError(f"The tolerance {tolerance} is not a distance in mm; give a number from 0 on.")
    return tolerance, dict.fromkeys(labels.classes, tolerance)
