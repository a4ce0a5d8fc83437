"""ISIC 2018, task 1: skin lesions in dermoscopy, the 2594 training pictures in BCDU-Net's three parts.

Source: challenge.isic-archive.com, github.com/rezazad68/BCDU-Net (`Prepare_ISIC2018.py`).

    ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg
    ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png

BCDU-Net takes the files in the order in which a file system lists them; here they are sorted by name.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from nnunetv2_ext.datasets.isic import LABELS, collect_part
from nnunetv2_ext.datasets.pictures import black_and_white_mask, write_case
from nnunetv2_ext.datasets.source import RGB, Source, Split

__all__ = ["N_TEST", "N_TRAIN", "N_VALIDATION", "collect"]

NAME = "ISIC2018"
N_TRAIN, N_VALIDATION, N_TEST = 1815, 259, 520


def collect(folder: Path, *, threshold: int | None = None) -> Source:
    """Say what the dataset is made of.

    Args:
        folder: the unpacked download.
        threshold: takes masks with values between black and white; foreground is a value of at least this.

    Raises:
        UserError: if a folder, a picture or a mask is missing.
    """
    cases = collect_part(
        folder,
        "ISIC2018_Task1-2_Training_Input",
        "ISIC2018_Task1_Training_GroundTruth",
        N_TRAIN + N_VALIDATION + N_TEST,
        NAME,
    )
    train = cases[:N_TRAIN]
    validation = cases[N_TRAIN : N_TRAIN + N_VALIDATION]
    test = [replace(case, test=True) for case in cases[N_TRAIN + N_VALIDATION :]]
    return Source(
        name=NAME,
        description="Skin lesions in dermoscopy: the training pictures of ISIC 2018, task 1, as BCDU-Net parts them.",
        reference="https://challenge.isic-archive.com/landing/2018",
        licence="see the challenge's page",
        channel_names=RGB,
        labels=LABELS,
        file_ending=".png",
        cases=(*train, *validation, *test),
        write_case=partial(write_case, read_mask=partial(black_and_white_mask, threshold=threshold)),
        splits=(
            Split(
                tuple(case.name for case in train),
                tuple(case.name for case in validation),
                "BCDU-Net, and DANIE after it, in the order of the sorted names",
            ),
        ),
        remarks=(
            "BCDU-Net's own order is that of a file system's listing and differs between machines; the parts have its "
            "sizes, and its cases where the listing was sorted.",
        ),
    )
