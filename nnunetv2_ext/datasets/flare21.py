"""FLARE21: abdominal CT, 4 organs, 361 labelled cases.

Source: flare.grand-challenge.org, github.com/JunMa11/FLARE.

    TrainingImg/train_000_0000.nii.gz ... train_360_0000.nii.gz
    TrainingMask/train_000.nii.gz     ... train_360.nii.gz
    ValidationImg/*_0000.nii.gz       50 images, their labels are not public

3D UX-Net, and with it RecA, hold 20 of the labelled cases out as a test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from nnunetv2_ext.datasets.source import Case, Source, find_files, incomplete_remark, require_numbers
from nnunetv2_ext.datasets.volumes import require_all_labels, require_largest, write_case
from nnunetv2_ext.images.labels import FLARE21

__all__ = ["CASES", "LABELS", "TEST", "collect"]

NAME = "FLARE21"
CASES = range(361)
N_VALIDATION = 50
# The order in which the organisers list the organs. 3D UX-Net's list names 1 spleen, 2 kidney, 3 liver, 4 pancreas:
# `examine` finds out, because the liver is the largest of them.
LABELS = FLARE21
# `dataset_FLARE.json` of github.com/MASILab/3DUX-Net.
TEST = (36, 39, 44, 54, 80, 125, 135, 157, 158, 183, 193, 220, 230, 242, 286, 296, 299, 323, 341, 351)


def examine(sizes: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Check the labels' numbers: each occurs, and the liver is the largest organ."""
    require_all_labels(sizes, LABELS, NAME)
    require_largest(sizes, LABELS, "liver", NAME)
    return []


def collect(folder: Path, *, split: str = "3duxnet") -> Source:
    """Describe the dataset.

    Args:
        folder: the unpacked download.
        split: `3duxnet` makes the 20 cases of `TEST` test cases; `challenge` trains on all labelled cases and makes
            the challenge's validation images test images.

    Raises:
        UserError: if a case is not complete.
    """
    images = require_numbers(
        find_files(folder, r"train_(\d{3})_0000\.nii(?:\.gz)?"),
        CASES,
        lambda number: f"train_{number:03d}_0000.nii.gz",
        folder,
        NAME,
    )
    labels = require_numbers(
        find_files(folder, r"train_(\d{3})\.nii(?:\.gz)?"),
        CASES,
        lambda number: f"train_{number:03d}.nii.gz",
        folder,
        NAME,
    )
    held_out = TEST if split == "3duxnet" else ()
    cases = [
        Case(f"train_{number:03d}", (images[number],), labels[number], test=number in held_out) for number in CASES
    ]
    if split == "challenge":
        validation = find_files(folder, r"(.+)_0000\.nii(?:\.gz)?", parent="ValidationImg")
        cases += [Case(name, (path,), None, test=True) for name, path in validation.items()]
        tests = "test images are those of ValidationImg" if validation else "there is no ValidationImg with test images"
        remarks = (
            f"All labelled cases are training cases; {tests}.",
            *incomplete_remark(len(validation), N_VALIDATION, "validation images"),
        )
    else:
        remarks = (
            "3D UX-Net and RecA took the other 341 cases for cross-validation, but did not publish the folds, so the "
            "printed numbers cannot be repeated case by case.",
        )
    return Source(
        name=NAME if split == "3duxnet" else f"{NAME}Challenge",
        description="Abdominal CT with 4 organs: the labelled cases of FLARE 2021.",
        reference="https://flare.grand-challenge.org",
        licence="see the challenge's page",
        channel_names=("CT",),
        labels=LABELS,
        file_ending=".nii.gz",
        cases=tuple(cases),
        write_case=partial(write_case, labels=LABELS),
        remarks=remarks,
        examine=examine,
    )
