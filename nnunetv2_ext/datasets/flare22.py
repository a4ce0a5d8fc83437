"""FLARE22: abdominal CT, 13 organs; of the training set the 50 labelled cases, and the tuning set as test images.

Source: flare22.grand-challenge.org, github.com/JunMa11/FLARE. The folders' names differ between mirrors, and task 2 of
FLARE 2024 and 2025 has the same cases in `train_gt_label` and `validation`, so files are found by name:

    FLARE22_Tr_0001_0000.nii.gz ... FLARE22_Tr_0050_0000.nii.gz   images
    FLARE22_Tr_0001.nii.gz      ... FLARE22_Tr_0050.nii.gz        labels
    FLARETs_0001_0000.nii.gz    ...                               images of the tuning set; FLARETs_0001.nii.gz labels
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from nnunetv2_ext.datasets.source import Case, Source, find_files, incomplete_remark, require_numbers
from nnunetv2_ext.datasets.volumes import require_all_labels, require_largest, write_case
from nnunetv2_ext.images.labels import FLARE22

__all__ = ["CASES", "ORGANS", "collect", "collect_labelled", "examine"]

NAME = "FLARE22"
CASES = range(1, 51)
N_TUNING = 50
ORGANS = FLARE22


def examine(sizes: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Check the labels' numbers: each occurs, and the liver is the largest organ."""
    require_all_labels(sizes, ORGANS, NAME)
    require_largest(sizes, ORGANS, "liver", NAME)
    return []


def collect_labelled(folder: Path, dataset: str) -> list[Case]:
    """Find the 50 labelled cases, which later editions have too.

    Args:
        folder: the unpacked download.
        dataset: its name, for the message.

    Raises:
        UserError: if one is not complete.
    """
    images = require_numbers(
        find_files(folder, r"FLARE22_Tr_(\d{4})_0000\.nii(?:\.gz)?"),
        CASES,
        lambda number: f"FLARE22_Tr_{number:04d}_0000.nii.gz",
        folder,
        dataset,
    )
    labels = require_numbers(
        find_files(folder, r"FLARE22_Tr_(\d{4})\.nii(?:\.gz)?"),
        CASES,
        lambda number: f"FLARE22_Tr_{number:04d}.nii.gz",
        folder,
        dataset,
    )
    return [Case(f"FLARE22_Tr_{number:04d}", (images[number],), labels[number]) for number in CASES]


def collect(folder: Path) -> Source:
    """Describe the dataset.

    Args:
        folder: the unpacked download.

    Raises:
        UserError: if a labelled case is not complete.
    """
    cases = collect_labelled(folder, NAME)
    tuning_labels = find_files(folder, r"FLARETs_(\d{4})\.nii(?:\.gz)?")
    tuning = find_files(folder, r"FLARETs_(\d{4})_0000\.nii(?:\.gz)?")
    cases += [
        Case(f"FLARETs_{number}", (path,), tuning_labels.get(number), test=True) for number, path in tuning.items()
    ]
    return Source(
        name=NAME,
        description="Abdominal CT with 13 organs: the labelled cases of FLARE 2022; test images are the tuning set.",
        reference="https://flare22.grand-challenge.org",
        licence="see the challenge's page",
        channel_names=("CT",),
        labels=ORGANS,
        file_ending=".nii.gz",
        cases=tuple(cases),
        write_case=partial(write_case, labels=ORGANS),
        remarks=(
            "The unlabelled training cases are not used: nnU-Net trains on labelled ones alone.",
            *incomplete_remark(len(tuning), N_TUNING, "tuning images"),
        ),
        examine=examine,
    )
