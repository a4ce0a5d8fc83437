"""FLARE23: abdominal CT, 13 organs and tumour, 2200 partially labelled cases.

Source: github.com/JunMa11/FLARE, folder FLARE23.

    imagesTr2200/FLARE23_0001_0000.nii.gz ... FLARE23_2200_0000.nii.gz
    labelsTr2200/FLARE23_0001.nii.gz      ... FLARE23_2200.nii.gz
    validation/*_0000.nii.gz              100 images
    unlabeledTr1800/                      not used

An organ that is in an image may be missing in its label: 0 does not mean background there. Which organs were annotated
is not published for each case, so the labels are taken as they are and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from nnunetv2_ext.datasets import flare22, volumes
from nnunetv2_ext.datasets.source import Case, Source, count_phrase, find_files, incomplete_remark, require_numbers
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.labels import FLARE23

__all__ = ["CASES", "LABELS", "collect"]

NAME = "FLARE23"
CASES = range(1, 2201)
N_VALIDATION = 100
LABELS = FLARE23


def examine(sizes: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Check that the liver is the largest organ, and count the cases in which organs are missing."""
    if not sizes:
        raise UserError(f"No label of {NAME} has all 13 organs: leave out --cases complete.")
    volumes.require_largest(sizes, flare22.ORGANS, "liver", NAME)
    organs = set(flare22.ORGANS.values())
    partly = sum(not organs <= found.keys() for found in sizes.values())
    if not partly:
        return []
    rarest = min(flare22.ORGANS, key=lambda name: volumes.cases_with_label(sizes, flare22.ORGANS[name]))
    return [
        f"{partly} of {count_phrase(len(sizes), 'label')} lack organs (the rarest, {rarest}, is in "
        f"{volumes.cases_with_label(sizes, flare22.ORGANS[rarest])}): an organ that was not annotated is 0 there, and "
        "nnU-Net learns it as background; --cases complete keeps only labels with all 13 organs."
    ]


def write_complete_case(
    case: Case, images: Sequence[Path], label: Path | None, *, link: bool
) -> dict[int, float] | None:
    """Write a case unless organs are missing in its label; see `CaseWriter`."""
    if (
        case.label is not None
        and label is not None
        and not set(flare22.ORGANS.values()) <= set(volumes.labels_of(case.label))
    ):
        return None
    return volumes.write_case(case, images, label, link=link, labels=LABELS)


def collect(folder: Path, *, cases: str = "all") -> Source:
    """Describe the dataset.

    Args:
        folder: the unpacked download.
        cases: `all`, or `complete` for those in whose labels all 13 organs occur.

    Raises:
        UserError: if a file of a case is missing.
    """
    images = require_numbers(
        find_files(folder, r"FLARE23_(\d{4})_0000\.nii(?:\.gz)?", parent="imagesTr2200"),
        CASES,
        lambda number: f"imagesTr2200/FLARE23_{number:04d}_0000.nii.gz",
        folder,
        NAME,
    )
    labels = require_numbers(
        find_files(folder, r"FLARE23_(\d{4})\.nii(?:\.gz)?", parent="labelsTr2200"),
        CASES,
        lambda number: f"labelsTr2200/FLARE23_{number:04d}.nii.gz",
        folder,
        NAME,
    )
    found = [Case(f"FLARE23_{number:04d}", (images[number],), labels[number]) for number in CASES]
    validation = find_files(folder, r"(.+)_0000\.nii(?:\.gz)?", parent="validation")
    found += [Case(name, (path,), None, test=True) for name, path in validation.items()]
    return Source(
        name=NAME if cases == "all" else f"{NAME}Complete",
        description="Abdominal CT with 13 organs and tumour, partially labelled: the training cases of FLARE 2023.",
        reference="https://github.com/JunMa11/FLARE",
        licence="see the challenge's page",
        channel_names=("CT",),
        labels=LABELS,
        file_ending=".nii.gz",
        cases=tuple(found),
        write_case=write_complete_case if cases == "complete" else partial(volumes.write_case, labels=LABELS),
        remarks=(
            "A tumour may be annotated in some cases only, also in those that have all organs.",
            *incomplete_remark(len(validation), N_VALIDATION, "validation images"),
        ),
        examine=examine,
    )
