"""What nnU-Net has planned for a dataset, read for the tools of this package."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.errors import UserError

if TYPE_CHECKING:
    from nnunetv2_ext.plans.configuration import PlannedConfiguration

__all__ = ["PlannedDataset", "read_planned_dataset"]


@dataclass(frozen=True)
class PlannedDataset:
    """Plans of one dataset.

    Attributes:
        folder: the dataset's folder among the preprocessed ones.
        plans: content of the plans file.
        dataset_json: content of dataset.json.
    """

    folder: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]

    def settings(self, name: str) -> dict[str, Any]:
        """Return the entries of a configuration, with those that it inherits.

        Raises:
            KeyError: if the plans hold none of this name.
        """
        own = self.plans["configurations"][name]
        parent = own.get("inherits_from")
        return {**self.settings(parent), **own} if parent else dict(own)

    def configuration(self, name: str) -> PlannedConfiguration:
        """Read a configuration.

        Raises:
            UserError: if the plans hold none of this name; names those that exist.
        """
        if name not in self.plans["configurations"]:
            raise UserError(
                f"The plans of {self.folder.name} have no configuration {name!r}; there are "
                f"{', '.join(self.plans['configurations'])}."
            )
        # Commands import this module to build the command line, and nnU-Net takes seconds.
        from nnunetv2_ext.plans.configuration import read_configuration

        return read_configuration(self.plans, self.dataset_json, name)


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"There is no file {path}: {remedy}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file ({error}): {remedy}.") from error


def read_planned_dataset(dataset: str, plans_name: str = "nnUNetPlans") -> PlannedDataset:
    """Read the plans of a dataset.

    Args:
        dataset: number or name, as nnU-Net's commands take it.
        plans_name: the plans' identifier (`-p`).

    Raises:
        UserError: if nnU-Net's folder is not set, or there is no such dataset, or it has no such plans.
    """
    preprocessed = os.environ.get("nnUNet_preprocessed")
    if not preprocessed:
        raise UserError(
            "The environment variable nnUNet_preprocessed is not set: export nnU-Net's three folders (nnUNet_raw, "
            "nnUNet_preprocessed, nnUNet_results) first; `nnUNetv2_ext doctor` checks them."
        )
    root = Path(preprocessed)
    prefix = f"Dataset{int(dataset):03d}_" if dataset.isdigit() else dataset
    found = sorted(
        path for path in root.glob(f"{prefix}*") if path.is_dir() and (dataset.isdigit() or path.name == dataset)
    )
    if len(found) != 1:
        many = f"{len(found)} folders" if found else "no folder"
        raise UserError(
            f"There is {many} for dataset {dataset} in {root}: plan it with `nnUNetv2_plan_and_preprocess -d ID`, "
            "or name it in full (Dataset000_Name)."
        )
    remedy = f"plan the dataset with `nnUNetv2_plan_and_preprocess`, or name plans that exist in {found[0]} after -p"
    return PlannedDataset(
        folder=found[0],
        plans=_read_json(found[0] / f"{plans_name}.json", remedy),
        dataset_json=_read_json(found[0] / "dataset.json", remedy),
    )
