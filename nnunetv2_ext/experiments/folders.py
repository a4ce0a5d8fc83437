"""nnU-Net's three folders, and what the jobs must know of a dataset in them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nnunetv2_ext.errors import UserError

__all__ = ["DEFAULT_FOLDS", "FOLDERS", "dataset_number", "nnunet_folder", "training_cases"]

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
# nnU-Net makes this many folds where nobody made others.
DEFAULT_FOLDS = 5


def nnunet_folder(variable: str) -> Path:
    """Return one of the three folders.

    Raises:
        UserError: if its variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise UserError(
            f"The environment variable {variable} is not set: export nnU-Net's three folders ({', '.join(FOLDERS)}) "
            "first; `nnUNetv2_ext doctor` checks them."
        )
    return Path(value).absolute()


def dataset_number(dataset: str) -> str:
    """Return the number of a dataset, which some of nnU-Net's commands take alone."""
    return str(int(dataset[len("Dataset") :].split("_")[0]))


def training_cases(raw: Path, preprocessed: Path, ending: str) -> list[str]:
    """List the training cases of a dataset; where the raw data is gone, those whose labels were kept."""
    try:
        listed = json.loads((raw / "dataset.json").read_text(encoding="utf-8")).get("dataset")
    except (OSError, ValueError):
        listed = None
    if listed:
        return list(listed)
    folder = raw / "labelsTr" if (raw / "labelsTr").is_dir() else preprocessed / "gt_segmentations"
    return [path.name.removesuffix(ending) for path in sorted(folder.glob(f"*{ending}"))]
