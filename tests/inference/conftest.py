"""Models as nnU-Net leaves them, and what `nnUNetv2_ext export` makes of one of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import pytest
import torch

from nnunetv2_ext import cli
from tests.planned_data import LABELS, PlannedData
from tests.submission.conftest import TRAINER, make_model
from tests.trainers.test_contract import make_trainer

__all__ = ["TRAINER", "Exported", "cascade", "exported", "make_model"]


@dataclass(frozen=True)
class Exported:
    """A 2D model of two folds, and its files.

    Attributes:
        model: its folder.
        graphs: folder of its files, for onnxruntime and OpenVINO.
        images: two images.
        printed: by the export.
    """

    model: Path
    graphs: Path
    images: Path
    printed: str


def write_model(folder: Path, data: PlannedData, configuration: str, folds: tuple[str, ...], **changes: object) -> Path:
    """Write a model that was not trained; its norms and biases are not at rest."""
    for seed, fold in enumerate(folds):
        torch.manual_seed(seed)
        made = make_trainer(data, TRAINER, LABELS, configuration, **changes)
        made.initialize()
        for parameter in made.network.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 1, 0.1)
        made.inference_allowed_mirroring_axes = tuple(range(len(made.configuration_manager.patch_size)))
        (folder / f"fold_{fold}").mkdir(parents=True)
        made.save_checkpoint(str(folder / f"fold_{fold}" / "checkpoint_final.pth"))
    (folder / "plans.json").write_text(json.dumps({**data.plans(LABELS), **changes}))
    (folder / "dataset.json").write_text(json.dumps(data.dataset_json(LABELS)))
    return folder


@pytest.fixture(scope="session")
def exported(planned_data: PlannedData, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export a model of two folds once, by the command."""
    root = tmp_path_factory.mktemp("exported")
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        for name, value in planned_data.with_results(root / "results").folder_variables().items():
            patched.setenv(name, value)
        model = write_model(root / "results" / LABELS / f"{TRAINER}__nnUNetPlans__2d", planned_data, "2d", ("0", "1"))
        patched.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        cli.main(["export", "-d", "801", "-c", "2d", "-tr", TRAINER, "-o", str(root / "graphs"), "--openvino"])
    images = root / "images"
    images.mkdir()
    for path in sorted((planned_data.raw / LABELS / "imagesTr").glob("*_0000.nii.gz"))[:2]:
        # A few slices are enough, and take a fourth of the time.
        nibabel.save(nibabel.load(path).slicer[:, :, 6:10], images / path.name)
    return Exported(model, root / "graphs", images, "\n".join(printed))


@pytest.fixture
def cascade(nnunet_folders: PlannedData, tmp_path: Path) -> Callable[[], tuple[Path, Path]]:
    """Return a function that writes the models of both stages of a cascade."""

    def make() -> tuple[Path, Path]:
        configurations = copy.deepcopy(nnunet_folders.plans(LABELS)["configurations"])
        configurations["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
        configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
        first, second = (
            write_model(tmp_path / name, nnunet_folders, name, ("0",), configurations=configurations)
            for name in ("3d_lowres", "3d_cascade_fullres")
        )
        return first, second

    return make
