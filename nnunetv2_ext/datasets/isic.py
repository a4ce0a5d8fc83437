"""What ISIC 2017 and 2018 share: pictures as JPEG, masks as png with 0 and 255, and how their names belong together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nnunetv2_ext.datasets.pictures import read_mask, write_case
from nnunetv2_ext.datasets.source import RGB, Case, Source, Split, find_files, require_folder
from nnunetv2_ext.errors import UserError

__all__ = ["LABELS", "collect_part", "make_source"]

LABELS = {"lesion": 1}


def collect_part(
    folder: Path, images_folder: str, masks_folder: str, count: int, dataset: str, *, test: bool = False
) -> list[Case]:
    """Return the cases of one part of a download, sorted by name.

    Args:
        folder: the unpacked download.
        images_folder: name of the folder with `ISIC_<7 digits>.jpg`; other pictures in it are not looked at.
        masks_folder: name of the folder with `ISIC_<7 digits>_segmentation.png`, also spelled `_Segmentation`.
        count: pictures that the part has.
        dataset: its name, for messages.
        test: whether they are test cases.

    Raises:
        UserError: if a folder, a picture or a mask is missing.
    """
    images = find_files(require_folder(folder, images_folder, dataset), r"(ISIC_\d{7})\.jpg")
    masks = find_files(require_folder(folder, masks_folder, dataset), r"(ISIC_\d{7})_segmentation\.png")
    for here, there, missing_name in (
        (images, masks, f"{masks_folder}/{{}}_segmentation.png"),
        (masks, images, f"{images_folder}/{{}}.jpg"),
    ):
        if missing := sorted(here.keys() - there.keys()):
            raise UserError(
                f"{folder} has no file {missing_name.format(missing[0])}, which belongs to {dataset}: complete the "
                "download."
            )
    if len(images) != count:
        raise UserError(
            f"{folder} has {len(images)} pictures in {images_folder}, but {dataset} has {count} there: complete the "
            "download."
        )
    return [Case(name, (images[name],), masks[name], test=test) for name in images]


def make_source(
    train: Sequence[Case],
    validation: Sequence[Case],
    test: Sequence[Case],
    *,
    name: str,
    description: str,
    year: int,
    used_by: str,
    source: str,
    threshold: int | None,
    remarks: tuple[str, ...] = (),
) -> Source:
    """Put the parts of one edition together.

    Args:
        train, validation, test: the cases; the first two are fold 0.
        name, description, remarks: of the dataset.
        year: year of the challenge.
        used_by, source: whose split it is, see `Split`.
        threshold: value from which on a pixel of a mask is foreground, see `pictures.read_mask`.
    """
    split = Split(tuple(case.name for case in train), tuple(case.name for case in validation), used_by, source)
    return Source(
        name=name,
        description=description,
        reference=f"https://challenge.isic-archive.com/landing/{year}",
        licence="see the challenge's page",
        channel_names=RGB,
        labels=LABELS,
        file_ending=".png",
        cases=(*train, *validation, *test),
        write_case=partial(write_case, read_mask=partial(read_mask, threshold=threshold)),
        splits=(split,),
        remarks=remarks,
    )
