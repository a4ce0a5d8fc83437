"""Synapse multi-organ segmentation, which is BTCV's abdomen ("Beyond the Cranial Vault"): 30 labelled CTs.

Source: the challenge's page on synapse.org.

    RawData/Training/img/img0001.nii.gz, RawData/Training/label/label0001.nii.gz   0001-0010 and 0021-0040
    Testing/img/img0061.nii.gz ... img0080.nii.gz, or Test/img/...                 labels are not public

The 12 test cases of the papers are part of the 30; the papers validate on them too, so they are fold 0's validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from nnunetv2_ext.datasets.random_split import DCA_CODE
from nnunetv2_ext.datasets.source import Case, Source, Split, find_files, incomplete_remark, require_numbers
from nnunetv2_ext.datasets.volumes import require_all_labels, require_largest, write_case
from nnunetv2_ext.images.labels import BTCV, TRANSUNET

__all__ = ["BTCV", "TEST", "TRAIN", "TRANSUNET", "collect"]

NAME = "Synapse"
# Lists of github.com/Beckschen/TransUNet; the same in Swin-Unet, RecA, nnFormer, UNETR++ and PECA-Net.
TRAIN = (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40)
TEST = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)
CHALLENGE_TEST = range(61, 81)


def _examine_raw(sizes: Mapping[str, Mapping[int, float]]) -> list[str]:
    require_all_labels(sizes, BTCV, NAME)
    require_largest(sizes, BTCV, "liver", NAME)
    return []


def _examine_transunet(sizes: Mapping[str, Mapping[int, float]]) -> list[str]:
    require_all_labels(sizes, TRANSUNET, NAME)
    require_largest(sizes, TRANSUNET, "liver", NAME)
    return []


def collect(folder: Path, *, organs: str = "13") -> Source:
    """Describe the dataset.

    Args:
        folder: the unpacked download.
        organs: `13` keeps the raw labels, as nnFormer, UNETR++ and PECA-Net do, which report eight of them; `8` keeps
            the eight in TransUNet's order, and turns the others into background.

    Raises:
        UserError: if a case is not complete.
    """
    numbers = sorted(TRAIN + TEST)
    all_images = find_files(folder, r"img(\d{4})\.nii(?:\.gz)?")
    images = require_numbers(all_images, numbers, lambda number: f"img{number:04d}.nii.gz", folder, NAME)
    labels = require_numbers(
        find_files(folder, r"label(\d{4})\.nii(?:\.gz)?"),
        numbers,
        lambda number: f"label{number:04d}.nii.gz",
        folder,
        NAME,
    )
    cases = [Case(f"img{number:04d}", (images[number],), labels[number]) for number in numbers]
    tests = {number: path for number, path in all_images.items() if int(number) in CHALLENGE_TEST}
    cases += [Case(f"img{number}", (path,), None, test=True) for number, path in tests.items()]
    raw = organs == "13"
    label_map = None if raw else {BTCV[name]: number for name, number in TRANSUNET.items()}
    return Source(
        name=NAME if raw else f"{NAME}8TransUNet",
        description=(
            "Abdominal CT of Synapse multi-organ segmentation (BTCV), "
            + ("all 13 organs." if raw else "the 8 organs of TransUNet in its order.")
        ),
        reference="https://www.synapse.org/#!Synapse:syn3193805",
        licence="see the challenge's page",
        channel_names=("CT",),
        labels=BTCV if raw else TRANSUNET,
        file_ending=".nii.gz",
        cases=tuple(cases),
        write_case=partial(write_case, labels=BTCV, label_map=label_map),
        splits=(
            Split(
                tuple(f"img{number:04d}" for number in TRAIN),
                tuple(f"img{number:04d}" for number in TEST),
                "TransUNet, Swin-Unet, RecA, nnFormer, UNETR++, PECA-Net, DANIE; these 12 are their test set",
                "Beckschen/TransUNet: lists/lists_Synapse; 282857341/nnFormer: nnformer/training/network_training/"
                "nnFormerTrainerV2_nnformer_synapse.py; Amshaker/unetr_plus_plus: unetr_pp/training/network_training/"
                "unetr_pp_trainer_synapse.py; HuCaoFighting/Swin-Unet: its lists for Synapse; "
                "CAU-COE-VEICLab/Recurrent-Attention: its lists for Synapse; ChenTong999/PECA-Net, commit 2ccb41d: the "
                "lists in its trainer for Synapse",
            ),
        ),
        remarks=(
            "nnU-Net plans on all 30 labelled cases, so the 12 take part in the choice of spacing, patch size and "
            "intensity range.",
            f"DCA splits at random instead ({DCA_CODE}), and its list cannot be rebuilt.",
            *incomplete_remark(len(tests), len(CHALLENGE_TEST), "test images of BTCV"),
        ),
        examine=_examine_raw if raw else _examine_transunet,
    )
