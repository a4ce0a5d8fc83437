"""Pan-cancer CT: lesions of any organ, as one label. FLARE 2024 task 1, and PancancerCTSeg of 2025 and 2026.

Source: the challenge's pages, and the names of FLARE's files, which follow nnU-Net's:

    ANY/FOLDER/CASE_0000.nii.gz     images
    ANY/OTHER/FOLDER/CASE.nii.gz    labels, 0 and 1

Not confirmed: how the folders of these downloads are called, and how many cases they hold; the data are given out on
registration, and were not seen. So files are paired by their names alone, and nothing is said to be missing but the
image of a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from nnunetv2_ext.datasets.source import Case, Source, count_phrase, find_files
from nnunetv2_ext.datasets.volumes import cases_with_label, write_case
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.labels import LESION

__all__ = ["collect"]

NAME = "PancancerCT"


def examine(sizes: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Check that there are lesions, and count the cases without one."""
    with_lesion = cases_with_label(sizes, LESION["lesion"])
    if not with_lesion:
        raise UserError(f"No label of {NAME} has a lesion: it is another dataset, or the labels are not filled in.")
    without = len(sizes) - with_lesion
    return [f"{count_phrase(without, 'label')} without a lesion: protocol lesion counts false positives there."] * (
        without > 0
    )


def collect(folder: Path) -> Source:
    """Describe the dataset.

    Args:
        folder: the unpacked download.

    Raises:
        UserError: if there is no label, or a label has no image.
    """
    images = find_files(folder, r"(.+)_0000\.nii(?:\.gz)?")
    labels = find_files(folder, r"(.+)(?<!_0000)\.nii(?:\.gz)?")
    if not labels:
        raise UserError(f"{folder} has no label CASE.nii.gz beside images CASE_0000.nii.gz: complete the download.")
    alone = [path for name, path in labels.items() if name not in images]
    if alone:
        raise UserError(
            f"{alone[0]} has no image {alone[0].name.partition('.nii')[0]}_0000.nii.gz in {folder}: complete the "
            "download."
        )
    unlabelled = len(images) - len(labels)
    return Source(
        name=NAME,
        description="CT of any region with lesions of any organ: FLARE 2024 task 1, PancancerCTSeg of 2025 and 2026.",
        reference="https://huggingface.co/datasets/FLARE-MedFM/PancancerCTSeg",
        licence="CC BY-NC 4.0 (PancancerCTSeg); of FLARE 2024: see the challenge's page",
        channel_names=("CT",),
        labels=LESION,
        file_ending=".nii.gz",
        cases=tuple(Case(name, (images[name],), label) for name, label in labels.items()),
        write_case=partial(write_case, labels=LESION),
        remarks=(
            "The layout of this download is not confirmed: images and labels were paired by their names.",
            *([f"{count_phrase(unlabelled, 'image')} without a label: not used."] if unlabelled else []),
        ),
        examine=examine,
    )
