"""ISIC 2017, part 1: skin lesions in dermoscopy, 2000 training, 150 validation and 600 test pictures.

Source: challenge.isic-archive.com.

    ISIC-2017_Training_Data/ISIC_0000000.jpg, ISIC-2017_Training_Part1_GroundTruth/ISIC_0000000_segmentation.png
    ISIC-2017_Validation_Data,                ISIC-2017_Validation_Part1_GroundTruth
    ISIC-2017_Test_v2_Data,                   ISIC-2017_Test_v2_Part1_GroundTruth
"""

from __future__ import annotations

from pathlib import Path

from nnunetv2_ext.datasets.isic import collect_part, make_source
from nnunetv2_ext.datasets.source import Source

__all__ = ["PARTS", "collect"]

NAME = "ISIC2017"
# The official split.
PARTS = {"Training": 2000, "Validation": 150, "Test_v2": 600}


def collect(folder: Path, *, threshold: int | None = None) -> Source:
    """Describe the dataset.

    Args:
        folder: the unpacked download.
        threshold: value from which on a pixel of a mask is foreground, see `pictures.read_mask`.

    Raises:
        UserError: if a folder, a picture or a mask is missing.
    """
    train, validation, test = (
        collect_part(
            folder,
            f"ISIC-2017_{part}_Data",
            f"ISIC-2017_{part}_Part1_GroundTruth",
            count,
            NAME,
            test=part == "Test_v2",
        )
        for part, count in PARTS.items()
    )
    return make_source(
        *(train, validation, test),
        name=NAME,
        description="Skin lesions in dermoscopy: ISIC 2017, part 1, with the official split.",
        year=2017,
        used_by="the challenge and DANIE",
        source="challenge.isic-archive.com: the archives of ISIC 2017, part 1; DANIE's paper",
        threshold=threshold,
    )
