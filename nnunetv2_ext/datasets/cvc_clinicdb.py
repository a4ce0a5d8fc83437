"""CVC-ClinicDB: polyps in colonoscopy, 612 frames of 29 sequences.

    Original/1.tif ... 612.tif         pictures, three samples that call themselves black and white
    Ground Truth/1.tif ... 612.tif     masks, white on black; 138 of them with nearly black noise (values 8 to 11)

Mirrors hold png files with the same numbers.

Source: openmedlab/Awesome-Medical-Dataset. DCA's split (see `random_split.DCA_CODE`) is random over the order in which
a file system lists the files, and so cannot be rebuilt; here the same function draws from the files in the order of
their numbers.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from nnunetv2_ext.datasets.pictures import read_mask, write_case
from nnunetv2_ext.datasets.random_split import DCA_CODE, DCA_PAPER, random_split
from nnunetv2_ext.datasets.source import RGB, Case, Source, find_files, require_folder, require_numbers

__all__ = ["FRAMES", "LABELS", "collect"]

NAME = "CVC-ClinicDB"
FRAMES = range(1, 613)
LABELS = {"polyp": 1}


def collect(folder: Path, *, threshold: int | None = None) -> Source:
    """Describe the dataset.

    Args:
        folder: the unpacked download.
        threshold: value from which on a pixel of a mask is foreground, see `pictures.read_mask`.

    Raises:
        UserError: if a frame or its mask is missing.
    """
    pattern = r"(\d+)\.(?:tif|tiff|png)"
    images = require_numbers(
        find_files(require_folder(folder, "Original", NAME), pattern),
        FRAMES,
        lambda number: f"Original/{number}.tif",
        folder,
        NAME,
    )
    masks = require_numbers(
        find_files(require_folder(folder, "Ground Truth", NAME), pattern),
        FRAMES,
        lambda number: f"Ground Truth/{number}.tif",
        folder,
        NAME,
    )
    names = {number: f"cvc_{number:03d}" for number in FRAMES}
    rule = "random over the files in the order of their numbers, because its own list cannot be rebuilt"
    return Source(
        name="CVCClinicDB",
        description="Polyps in colonoscopy: the 612 frames of CVC-ClinicDB.",
        reference="https://polyp.grand-challenge.org/CVCClinicDB",
        licence="see the dataset's page",
        channel_names=RGB,
        labels=LABELS,
        file_ending=".png",
        cases=tuple(Case(name, (images[number],), masks[number]) for number, name in names.items()),
        write_case=partial(write_case, read_mask=partial(read_mask, threshold=threshold)),
        splits=(
            random_split(list(names.values()), 0.2, f"80/20 as in DCA's paper, {rule}", DCA_PAPER),
            random_split(list(names.values()), 0.25, f"75/25 as in DCA's code, {rule}", DCA_CODE),
        ),
        remarks=(
            "Frames of one sequence are nearly the same, and both folds part them at random as the papers do: the "
            "scores are optimistic.",
        ),
    )
