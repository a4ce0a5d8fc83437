"""ISIC 2018, task 1: skin lesions in dermoscopy, the 2594 training pictures in BCDU-Net's three parts.

Source: challenge.isic-archive.com, github.com/rezazad68/BCDU-Net (`Prepare_ISIC2018.py`).

    ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg
    ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png

BCDU-Net takes the files in the order in which a file system lists them; here they are sorted by name.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nnunetv2_ext.datasets.isic import collect_part, make_source
from nnunetv2_ext.datasets.source import Source

__all__ = ["N_TEST", "N_TRAIN", "N_VALIDATION", "collect"]

NAME = "ISIC2018"
N_TRAIN, N_VALIDATION, N_TEST = 1815, 259, 520


def collect(folder: Path, *, threshold: int | None = None) -> Source:
    """Describe the dataset.

    Args:
        folder: the unpacked download.
        threshold: value from which on a pixel of a mask is foreground, see `pictures.read_mask`.

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
    return make_source(
        *(train, validation, test),
        name=NAME,
        description="Skin lesions in dermoscopy: the training pictures of ISIC 2018, task 1, as BCDU-Net parts them.",
        year=2018,
        used_by="BCDU-Net, and DANIE after it, in the order of the sorted names",
        source="rezazad68/BCDU-Net: Prepare_ISIC2018.py; DANIE's paper refers to it",
        threshold=threshold,
        remarks=(
            "BCDU-Net's own order is that of a file system's listing and differs between machines; the parts have its "
            "sizes, and its cases where the listing was sorted.",
        ),
    )
