"""A 3D and a 2D dataset from the miniature download to predictions, with the stock commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.datasets import trees
from tests.planned_data import clean_environment, run

pytestmark = [pytest.mark.commands, pytest.mark.slow]

TRAINER = "nnUNetTrainerPECANet_1epoch_1iters"


def synapse(folder: Path) -> Path:
    return trees.synapse(folder, (12, 40, 40))


def glas(folder: Path) -> Path:
    return trees.glas(folder, {"train": 85, "testA": 60, "testB": 20})


GLAS_TEST = [*(f"testA_{number}" for number in range(1, 61)), *(f"testB_{number}" for number in range(1, 21))]


@pytest.mark.parametrize(
    ("dataset", "make", "number", "configuration", "fold", "test", "ending"),
    [
        ("Synapse", synapse, "617", "3d_fullres", "0", ["img0061"], ".nii.gz"),
        ("GlaS", glas, "631", "2d", "all", GLAS_TEST, ".png"),
    ],
    ids=["Synapse", "GlaS"],
)
def test_convert_plan_train_predict(
    tmp_path: Path,
    folders: SimpleNamespace,
    dataset: str,
    make: Callable[[Path], Path],
    number: str,
    configuration: str,
    fold: str,
    test: list[str],
    ending: str,
) -> None:
    source = make(tmp_path / "source")
    environment = clean_environment(**{f"nnUNet_{kind}": str(path) for kind, path in vars(folders).items()})

    def command(*words: str, **variables: str) -> str:
        return run(*words, environment={**environment, **variables}, cwd=tmp_path)

    assert "Wrote" in command("nnUNetv2_ext", "convert", dataset, "-i", str(source), "-np", "1")
    command(
        *("nnUNetv2_plan_and_preprocess", "-d", number, "-c", configuration, "-np", "1", "-npfp", "1", "--no_pbar"),
    )
    (planned,) = folders.preprocessed.iterdir()
    command("nnUNetv2_train", number, configuration, fold, "-tr", TRAINER, "-device", "cpu", nnUNet_n_proc_DA="0")
    (model,) = (folders.results / planned.name).iterdir()
    if dataset == "Synapse":
        log = next((model / "fold_0").glob("training_log*.txt")).read_text()
        assert "18 training and 12 validation cases" in log
        validated = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
        assert len(validated["metric_per_case"]) == 12
    images, output = folders.raw / planned.name / "imagesTs", tmp_path / "predictions"
    command(
        *("nnUNetv2_predict", "-d", number, "-c", configuration, "-f", fold, "-tr", TRAINER, "-device", "cpu"),
        *("-i", str(images), "-o", str(output), "-npp", "0", "-nps", "0", "--disable_tta"),
    )
    assert sorted(path.name for path in output.glob(f"*{ending}")) == sorted(f"{name}{ending}" for name in test)
