"""FLARE 2024 task 3: the organs of FLARE22 in MRI, to be learnt from labelled CT.

Source: the folders of the download FLARE-MedFM/FLARE-Task3-DomainAdaption (huggingface.co), as public code of several
participants reads them; the data are given out on registration and were not seen:

    train_CT_gt_label/imagesTr, labelsTr                 the 50 labelled cases of FLARE22
    validation/MRI_imagesVal, MRI_labelsVal              110 MRI and their labels, CASE_0000.nii.gz or CASE.nii.gz
    train_CT_pseudolabel, train_MRI_unlabeled, PET...    not used

Not confirmed: how the MRI's files are called. They are paired by their names.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from nnunetv2_ext.datasets.flare22 import ORGANS, collect_labelled, examine
from nnunetv2_ext.datasets.source import Case, Source, find_files, incomplete_remark
from nnunetv2_ext.datasets.volumes import write_case
from nnunetv2_ext.errors import UserError

__all__ = ["collect"]

NAME = "FLARE24T3"
N_VALIDATION = 110
# With and without the number of the channel.
_FILE = r"(.+?)(?:_0000)?\.nii(?:\.gz)?"


def collect(folder: Path) -> Source:
    """Describe the dataset.

    Args:
        folder: the unpacked download.

    Raises:
        UserError: if a labelled CT is not complete, or the label of an MRI has no image.
    """
    images = find_files(folder, _FILE, parent="MRI_imagesVal")
    labels = find_files(folder, _FILE, parent="MRI_labelsVal")
    alone = next((path for name, path in labels.items() if name not in images), None)
    if alone is not None:
        raise UserError(f"{alone} has no image in a folder MRI_imagesVal: complete the download.")
    cases = collect_labelled(folder, NAME)
    cases += [Case(name, (path,), labels.get(name), test=True) for name, path in images.items()]
    return Source(
        name=NAME,
        description="13 organs: labelled CT of FLARE 2022 for training, and MRI as test images (FLARE 2024 task 3).",
        reference="https://huggingface.co/datasets/FLARE-MedFM/FLARE-Task3-DomainAdaption",
        licence="see the challenge's page",
        # Not CT: nnU-Net would scale the intensities of MRI by those of the CTs.
        channel_names=("CT or MRI",),
        labels=ORGANS,
        file_ending=".nii.gz",
        cases=tuple(cases),
        write_case=partial(write_case, labels=ORGANS),
        remarks=(
            "The layout of this download is not confirmed: MRI and their labels were paired by their names.",
            "The MRI and PET without labels are not used: nnU-Net trains on labelled cases alone.",
            *incomplete_remark(len(images), N_VALIDATION, "MRI of the validation set"),
        ),
        examine=examine,
    )
