"""What ISIC 2017 and 2018 share: pictures as JPEG, masks as png with 0 and 255, and how their names belong together."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_ext.datasets.source import Case, find_files, require_folder
from nnunetv2_ext.errors import UserError

__all__ = ["LABELS", "collect_part"]

LABELS = {"lesion": 1}


def collect_part(
    folder: Path, images_folder: str, masks_folder: str, count: int, dataset: str, *, test: bool = False
) -> list[Case]:
    """Give the cases of one part of a download, sorted by name.

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
