"""ACDC: cardiac cine MRI, two frames of each of 100 patients, with the papers' split of the training patients.

Source: the challenge's pages at creatis.insa-lyon.fr.

    training/patient001/Info.cfg                        lines `ED: n` and `ES: n` name the two annotated frames
    training/patient001/patient001_frame01.nii.gz
    training/patient001/patient001_frame01_gt.nii.gz
    training/patient001/patient001_4d.nii.gz            not used

Files that some program has unpacked, `patient001_frame01.nii`, are taken as well, here and in the other datasets.

The patients of `testing` (101 to 150) take no part in the papers.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from nnunetv2_ext.datasets.source import Case, Source, Split, find_files, require_numbers
from nnunetv2_ext.datasets.volumes import write_case
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.labels import ACDC

__all__ = ["LABELS", "PATIENTS", "TEST", "VALIDATION_2D", "VALIDATION_3D", "collect"]

NAME = "ACDC"
PATIENTS = range(1, 101)
LABELS = ACDC
# The test patients of both lists and of UNETR++, which trains on all other 80 patients and validates on these 20
# (Amshaker/unetr_plus_plus: unetr_pp/training/network_training/unetr_pp_trainer_acdc.py).
TEST = (2, 3, 8, 9, 12, 14, 17, 24, 42, 48, 49, 53, 55, 64, 67, 79, 81, 88, 92, 95)
VALIDATION_3D = (89, 90, 91, 93, 94, 96, 97, 98, 99, 100)
VALIDATION_2D = (19, 21, 29, 33, 41, 50, 61, 71, 76, 80)


def annotated_frames(info: Path) -> list[int]:
    """Read the numbers of the frames at end-diastole and end-systole from a patient's `Info.cfg`.

    Raises:
        UserError: if one is missing.
    """
    entries = {}
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        entries[key.strip()] = value.strip()
    for key in ("ED", "ES"):
        if not entries.get(key, "").isdigit():
            raise UserError(f"{info} has no line `{key}: number`: download or unpack it again.")
    return [int(entries["ED"]), int(entries["ES"])]


def collect(folder: Path) -> Source:
    """Describe the dataset.

    Fold 0 is the 3D papers' split, fold 1 the 2D papers'; the test patients of both are the same.

    Args:
        folder: the unpacked download.

    Raises:
        UserError: if a patient is not complete.
    """
    files = find_files(folder, r"(patient\d{3}_frame\d{2}(?:_gt)?)\.nii(?:\.gz)?")
    # The name of the patient's folder is the only thing that tells the files `Info.cfg` apart.
    patients = require_numbers(
        find_files(folder, r"patient(\d{3})/Info\.cfg"),
        PATIENTS,
        lambda number: f"training/patient{number:03d}/Info.cfg",
        folder,
        NAME,
    )
    cases, names = [], {}
    for number, info in patients.items():
        names[number] = [f"patient{number:03d}_frame{frame:02d}" for frame in annotated_frames(info)]
        for name in names[number]:
            for needed in (name, f"{name}_gt"):
                if needed not in files:
                    raise UserError(
                        f"{info.parent} has no file {needed}.nii.gz, though Info.cfg names its frame: complete the "
                        "download."
                    )
            cases.append(Case(name, (files[name],), files[f"{name}_gt"], test=number in TEST))

    def split(validation: tuple[int, ...], used_by: str, source: str) -> Split:
        train = [number for number in names if number not in TEST and number not in validation]
        return Split(
            tuple(name for number in train for name in names[number]),
            tuple(name for number in names if number in validation for name in names[number]),
            used_by,
            source,
        )

    return Source(
        name=NAME,
        description="Cardiac cine MRI at end-diastole and end-systole: the 100 training patients of ACDC.",
        reference="https://www.creatis.insa-lyon.fr/Challenge/acdc",
        licence="see the challenge's page",
        channel_names=("cine MRI",),
        labels=LABELS,
        file_ending=".nii.gz",
        cases=tuple(cases),
        write_case=partial(write_case, labels=LABELS),
        splits=(
            split(
                VALIDATION_3D,
                "the 3D papers nnFormer and PECA-Net",
                "282857341/nnFormer: nnformer/training/network_training/nnFormerTrainerV2_nnformer_acdc.py; "
                "ChenTong999/PECA-Net, commit 2ccb41d: the lists in its trainer for ACDC",
            ),
            split(
                VALIDATION_2D,
                "the 2D papers (TransUNet and its descendants, DANIE)",
                "sotiraslab/AgileFormer: lists/lists_ACDC",
            ),
        ),
        remarks=(
            "Test cases are the 20 patients on which the papers report; the challenge's testing set is not used.",
            "UNETR++ trains on all other 80 patients (fold `all`) and validates on those 20, so that its best epoch is "
            "chosen on the test patients.",
        ),
    )
