"""Where images, references and predictions of compared cases lie, for the pictures of a report."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2_ext.comparison.facts import Dataset
from nnunetv2_ext.comparison.model import CaseFiles
from nnunetv2_ext.images.label_maps import case_name, file_ending

__all__ = ["find_files"]

_CHANNEL = re.compile(r"_\d{4}$")


def find_files(dataset: Dataset, predictions: Mapping[str, Sequence[Path]], references: Path | None) -> list[CaseFiles]:
    """Find the files of a dataset's cases, as far as they are there.

    Args:
        dataset: which cases.
        predictions: per trainer the folders that hold its predictions.
        references: folder of the references; by default where nnU-Net keeps them.
    """
    raw, preprocessed = (Path(os.getenv(f"nnUNet_{kind}") or os.devnull) for kind in ("raw", "preprocessed"))
    images: dict[str, list[Path]] = {}
    for folder in (raw / dataset.name / "imagesTr", raw / dataset.name / "imagesTs"):
        for path in _listed(folder).values():
            images.setdefault(_CHANNEL.sub("", case_name(path)), []).append(path)
    places = [preprocessed / dataset.name / "gt_segmentations", raw / dataset.name / "labelsTr"]
    found = next(filter(None, map(_listed, [references] if references else places)), {})
    own: dict[str, dict[str, Path]] = {}
    for name, folders in predictions.items():
        own[name] = {}
        for folder in folders:
            own[name].update(_listed(folder))
    return [
        CaseFiles(
            dataset.name,
            case,
            tuple(images.get(case, ())),
            found.get(case),
            {name: paths[case] for name, paths in own.items() if case in paths},
        )
        for case in dataset.cases
    ]


def _listed(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    paths = sorted(path for path in folder.iterdir() if file_ending(path) and not path.name.startswith("."))
    return {case_name(path): path for path in paths}
