"""BrainTumour: task 1 of the Medical Segmentation Decathlon (MSD), as nnFormer, UNETR++ and PECA-Net use it ("Tumor").

Source: medicaldecathlon.com, Task01_BrainTumour.

    imagesTr/BRATS_001.nii.gz ... BRATS_484.nii.gz   4D: FLAIR, T1w, T1gd, T2w
    labelsTr/BRATS_001.nii.gz ...
    dataset.json

The unlabelled images of `imagesTs` take no part in the papers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import SimpleITK as sitk

from nnunetv2_ext.datasets.source import Case, Source, Split, find_files, require_folder, require_numbers
from nnunetv2_ext.datasets.volumes import write_label
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.labels import BRAIN_TUMOUR
from nnunetv2_ext.images.volumes import read_volume, set_grid, write_volume

__all__ = ["CASES", "CHANNELS", "LABELS", "TEST", "VALIDATION", "collect"]

NAME = "BrainTumour"
CASES = range(1, 485)
CHANNELS = ("FLAIR", "T1w", "T1gd", "T2w")
LABELS = BRAIN_TUMOUR
# `tumor_dataset.json` and the tumour trainer of github.com/282857341/nnFormer; PECA-Net's lists are the same.
TEST = (
    *(58, 59, 76, 77, 99, 113, 114, 124, 139, 151, 152, 157, 190, 240, 242, 295, 305, 325, 331, 362, 389, 425, 432),
    450,
)
VALIDATION = (
    *(11, 12, 18, 20, 21, 28, 29, 32, 34, 36, 41, 47, 49, 53, 56, 57, 69, 71, 89, 90, 92, 95, 103, 105, 106, 107),
    *(109, 118, 145, 147, 156, 161, 172, 176, 181, 194, 196, 198, 204, 205, 209, 220, 221, 227, 234, 235, 245, 250),
    *(256, 257, 260, 269, 270, 271, 281, 282, 287, 289, 291, 292, 310, 314, 323, 327, 330, 333, 337, 346, 350, 352),
    *(361, 382, 397),
)


def write_case(case: Case, images: Sequence[Path], label: Path | None, *, link: bool) -> dict[int, float]:
    """Write the channels of a 4D image as one file each; see `CaseWriter`. Only the label can be linked."""
    (source,) = case.images
    image = read_volume(source, dimension=4)
    if image.GetSize()[3] != len(CHANNELS):
        raise UserError(
            f"{source} has {image.GetSize()[3]} channels instead of {len(CHANNELS)} ({', '.join(CHANNELS)}): it is "
            "another file."
        )
    array = sitk.GetArrayViewFromImage(image)
    for channel, target in zip(array, images, strict=True):
        volume = sitk.GetImageFromArray(channel)
        set_grid(volume, image)
        write_volume(volume, target)
    if label is None or case.label is None:
        return {}
    return write_label(case.label, label, image, source, labels=LABELS, label_map=None, link=link)


def _require_channel_order(path: Path) -> None:
    """Raise if the dataset's own description names other channels; there are copies without one."""
    if not path.is_file():
        return
    try:
        modality = json.loads(path.read_text(encoding="utf-8"))["modality"]
        found = [str(modality[str(number)]) for number in range(len(modality))]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not list the channels after `modality`: download or unpack it again.") from error
    if [name.lower() for name in found] != [name.lower() for name in CHANNELS]:
        raise UserError(
            f"{path} lists the channels {', '.join(found)} instead of {', '.join(CHANNELS)}: it is another dataset."
        )


def collect(folder: Path) -> Source:
    """Describe the dataset.

    Args:
        folder: the unpacked download.

    Raises:
        UserError: if a case is not complete, or the dataset's own description names other channels.
    """
    images_folder = require_folder(folder, "imagesTr", NAME)
    _require_channel_order(images_folder.parent / "dataset.json")
    pattern, file_name = r"BRATS_(\d{3})\.nii(?:\.gz)?", "{}/BRATS_{:03d}.nii.gz".format
    images = require_numbers(
        find_files(images_folder, pattern), CASES, lambda number: file_name("imagesTr", number), folder, NAME
    )
    labels = require_numbers(
        find_files(require_folder(folder, "labelsTr", NAME), pattern),
        CASES,
        lambda number: file_name("labelsTr", number),
        folder,
        NAME,
    )
    names = {number: f"BRATS_{number:03d}" for number in CASES}
    return Source(
        name=NAME,
        description="Brain tumours in MRI: task 1 of the Medical Segmentation Decathlon, with nnFormer's split.",
        reference="http://medicaldecathlon.com",
        licence="see the challenge's page",
        channel_names=CHANNELS,
        labels=LABELS,
        file_ending=".nii.gz",
        cases=tuple(
            Case(name, (images[number],), labels[number], test=number in TEST) for number, name in names.items()
        ),
        write_case=write_case,
        n_image_files=len(CHANNELS),
        splits=(
            Split(
                tuple(name for number, name in names.items() if number not in TEST and number not in VALIDATION),
                tuple(name for number, name in names.items() if number in VALIDATION),
                "nnFormer and PECA-Net",
                "282857341/nnFormer: tumor_dataset.json and nnformer/training/network_training/"
                "nnFormerTrainerV2_nnformer_tumor.py; ChenTong999/PECA-Net, commit 2ccb41d: the lists in its trainer "
                "for the tumours, which are the same",
            ),
        ),
        remarks=(
            "The papers report the regions ET (label 3), TC (2, 3) and WT (1, 2, 3), on the 24 test cases; the "
            "networks learn the three labels.",
        ),
    )
