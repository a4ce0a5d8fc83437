"""Models as nnU-Net leaves them, without their training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.planned_data import LABELS, PlannedData
from tests.trainers.test_contract import make_trainer

# Its widths are those of the plans, which are narrow.
TRAINER = "nnUNetTrainerDCA_2epochs"


@pytest.fixture
def make_model(nnunet_folders: PlannedData, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a model's folder."""

    def make(
        dataset: str = LABELS,
        configuration: str = "3d_fullres",
        *,
        trainer: str = TRAINER,
        folds: tuple[str, ...] = ("0",),
    ) -> Path:
        folder = tmp_path / "models" / dataset / f"{trainer}__nnUNetPlans__{configuration}"
        for seed, fold in enumerate(folds):
            torch.manual_seed(seed)
            made = make_trainer(nnunet_folders, trainer, dataset, configuration)
            made.initialize()
            # Training sets it when it makes its dataloaders.
            made.inference_allowed_mirroring_axes = tuple(range(len(made.configuration_manager.patch_size)))
            (folder / f"fold_{fold}").mkdir(parents=True)
            made.save_checkpoint(str(folder / f"fold_{fold}" / "checkpoint_final.pth"))
        (folder / "plans.json").write_text(json.dumps(nnunet_folders.plans(dataset)))
        (folder / "dataset.json").write_text(json.dumps(nnunet_folders.dataset_json(dataset)))
        return folder

    return make


@pytest.fixture
def inputs(planned_data: PlannedData, tmp_path: Path) -> Path:
    """Return two images as the challenge hands them over."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    for case, image in enumerate(sorted((planned_data.raw / LABELS / "imagesTr").glob("*_0000.nii.gz"))[:2]):
        shutil.copyfile(image, folder / f"FLARETs_{case:04d}_0000.nii.gz")
    return folder
