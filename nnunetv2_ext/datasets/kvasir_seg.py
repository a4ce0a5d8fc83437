"""Kvasir-SEG: polyps in colonoscopy, 1000 pictures of many sizes.

    images/cju0qkwl35piu0993l0dewei2.jpg ...
    masks/cju0qkwl35piu0993l0dewei2.jpg ...    JPEG too, so they hold grey noise along the borders

Source: arXiv 1911.07069. DCA's split is random over the order in which a file system lists the files, and so cannot be
rebuilt; here the same function draws from the sorted names.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from nnunetv2_ext.datasets.pictures import THRESHOLD, read_mask, write_case
from nnunetv2_ext.datasets.random_split import DCA_CODE, DCA_PAPER, random_split
from nnunetv2_ext.datasets.source import RGB, Case, Source, find_files, require_folder
from nnunetv2_ext.errors import UserError

__all__ = ["LABELS", "N_PICTURES", "collect"]

NAME = "Kvasir-SEG"
N_PICTURES = 1000
LABELS = {"polyp": 1}


def collect(folder: Path, *, threshold: int | None = None) -> Source:
    """Describe the dataset.

    Args:
        folder: the unpacked download.
        threshold: value from which on a pixel of a mask is foreground, see `pictures.read_mask`; DCA's code takes 1,
            which makes noise a part of the polyp.

    Raises:
        UserError: if a picture or its mask is missing.
    """
    images = find_files(require_folder(folder, "images", NAME), r"(\w+)\.jpe?g")
    masks = find_files(require_folder(folder, "masks", NAME), r"(\w+)\.jpe?g")
    for here, there, where in ((images, masks, "masks"), (masks, images, "images")):
        if missing := sorted(here.keys() - there.keys()):
            raise UserError(
                f"{folder} has no file {where}/{here[missing[0]].name}, which belongs to {NAME}: complete the download."
            )
    if len(images) != N_PICTURES:
        raise UserError(
            f"{folder} has {len(images)} pictures, but {NAME} has {N_PICTURES}: name the unpacked download after -i."
        )
    names = sorted(images)
    return Source(
        name="KvasirSEG",
        description="Polyps in colonoscopy: the 1000 pictures of Kvasir-SEG.",
        reference="https://datasets.simula.no/kvasir-seg",
        licence="see the dataset's page",
        channel_names=RGB,
        labels=LABELS,
        file_ending=".png",
        cases=tuple(Case(name, (images[name],), masks[name]) for name in names),
        write_case=partial(write_case, read_mask=partial(read_mask, threshold=threshold)),
        splits=(
            random_split(
                names,
                0.2,
                "80/20 as in DCA, random over the sorted names, because its own list cannot be rebuilt",
                f"{DCA_CODE}; {DCA_PAPER}",
            ),
        ),
        remarks=(
            f"The masks are JPEG: a value of at least {threshold or THRESHOLD} is foreground"
            + ("." if threshold == 1 else " (DCA's code: at least 1, which needs --threshold 1)."),
        ),
    )
