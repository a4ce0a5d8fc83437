"""GlaS (Warwick-QU, MICCAI 2015): glands in histology, 85 training and 80 test pictures.

Source: glas.grand-challenge.org. All in one folder:

    train_1.bmp ... train_85.bmp, testA_1.bmp ... testA_60.bmp, testB_1.bmp ... testB_20.bmp
    train_1_anno.bmp ...          maps with one number for each gland
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from nnunetv2_ext.datasets.pictures import instance_mask, write_case
from nnunetv2_ext.datasets.source import RGB, Case, Source, find_files, require_numbers

__all__ = ["LABELS", "PARTS", "collect"]

NAME = "GlaS"
LABELS = {"gland": 1}
# The official split; the papers take both test parts together.
PARTS = {"train": 85, "testA": 60, "testB": 20}


def collect(folder: Path) -> Source:
    """Describe the dataset.

    Args:
        folder: the unpacked download.

    Raises:
        UserError: if a picture or its map is missing.
    """
    cases = []
    for part, count in PARTS.items():
        numbers = range(1, count + 1)

        def name(number: int, part: str = part) -> str:
            return f"{part}_{number}.bmp"

        def mask_name(number: int, part: str = part) -> str:
            return f"{part}_{number}_anno.bmp"

        images = require_numbers(find_files(folder, rf"{part}_(\d+)\.bmp"), numbers, name, folder, NAME)
        masks = require_numbers(find_files(folder, rf"{part}_(\d+)_anno\.bmp"), numbers, mask_name, folder, NAME)
        cases += [
            Case(f"{part}_{number}", (images[number],), masks[number], test=part != "train") for number in numbers
        ]
    return Source(
        name=NAME,
        description="Glands in histology (Warwick-QU, MICCAI 2015): the official 85 training and 80 test pictures.",
        reference="https://glas.grand-challenge.org",
        licence="research use only, no commercial use; publications must cite Warwick's two papers",
        channel_names=RGB,
        labels=LABELS,
        file_ending=".png",
        cases=tuple(cases),
        write_case=partial(write_case, read_mask=instance_mask),
        remarks=("The papers train on all 85 pictures (fold `all`) and take the tests A and B together.",),
    )
