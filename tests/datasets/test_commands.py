"""A 3D and a 2D dataset from the miniature download to predictions, trained and predicted by the stock commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunetv2_ext import cli
from tests.datasets import trees
from tests.planned_data import clean_environment, run

pytestmark = [pytest.mark.commands, pytest.mark.slow]

TRAINER = "nnUNetTrainerPECANet_1epoch_1iters_NoMirroring"


def synapse(folder: Path) -> Path:
    return trees.synapse(folder, (12, 40, 40))


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(
    ("dataset", "number", "configuration", "fold", "test"),
    [
        ("Synapse", "617", "3d_fullres", "0", ["img0061.nii.gz"]),
        ("GlaS", "631", "2d", "all", ["testA_1.png", "testA_2.png", "testB_1.png"]),
    ],
    ids=["Synapse", "GlaS"],
)
def test_convert_plan_train_predict(
    tmp_path: Path,
    folders: SimpleNamespace,
    make_source: Callable[[str], Path],
    plan_and_preprocess: Callable[[int, str], None],
    dataset: str,
    number: str,
    configuration: str,
    fold: str,
    test: list[str],
) -> None:
    source = synapse(tmp_path / "source") if dataset == "Synapse" else make_source(dataset)
    environment = clean_environment(**{f"nnUNet_{kind}": str(path) for kind, path in vars(folders).items()})

    def command(*words: str, **variables: str) -> str:
        return run(*words, environment={**environment, **variables}, cwd=tmp_path)

    cli.main(["convert", dataset, "-i", str(source), "-np", "1"])
    plan_and_preprocess(int(number), configuration)
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
        *("-i", str(images), "-o", str(output), "-npp", "0", "-nps", "0"),
    )
    assert sorted(path.name for path in output.iterdir() if path.suffix != ".json") == test
