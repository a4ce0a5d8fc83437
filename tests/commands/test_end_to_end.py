"""nnU-Net's own commands from raw data to a model elsewhere, in processes of their own with a clean environment."""

from __future__ import annotations

import filecmp
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.planned_data import LABELS, PlannedData, clean_environment, run, script

pytestmark = [pytest.mark.commands, pytest.mark.slow]

TRAINER = "nnUNetTrainerPECANet_2epochs_3iters"
# One trainer and configuration for each dimension.
CONFIGURATIONS = ["3d_fullres", "2d"]


class Commands:
    """nnU-Net's commands on one copy of the data, without workers where a command allows it."""

    def __init__(self, data: PlannedData, folder: Path) -> None:
        self.data = data
        self.folder = folder
        self.environment = clean_environment(**data.folder_variables(), nnUNet_n_proc_DA="0")

    def __call__(self, *command: str, expect: int = 0, **variables: str) -> str:
        return run(*command, environment={**self.environment, **variables}, cwd=self.folder, expect=expect)

    def train(self, configuration: str, fold: str, *options: str, trainer: str = TRAINER, **variables: str) -> str:
        return self(
            "nnUNetv2_train", "801", configuration, fold, "-tr", trainer, "-device", "cpu", *options, **variables
        )

    def predict(self, configuration: str, output: Path, trainer: str = TRAINER, **variables: str) -> Path:
        self(
            *("nnUNetv2_predict", "-d", "801", "-c", configuration, "-f", "all", "-tr", trainer),
            *("-i", str(self.data.raw / LABELS / "imagesTs"), "-o", str(output)),
            *("-device", "cpu", "-npp", "0", "-nps", "0", "--disable_progress_bar"),
            **variables,
        )
        return output

    def model_folder(self, configuration: str, trainer: str = TRAINER) -> Path:
        return self.data.results / LABELS / f"{trainer}__nnUNetPlans__{configuration}"


@pytest.fixture
def commands(planned_data: PlannedData, tmp_path: Path) -> Commands:
    return Commands(planned_data.with_results(tmp_path / "results"), tmp_path)


def stop_in_second_epoch(commands: Commands, configuration: str) -> None:
    """Start a training and stop it, as a cluster does, once the first epoch is through."""
    log = commands.folder / "stopped.log"
    arguments = ["801", configuration, "all", "-tr", TRAINER.replace("3iters", "15iters"), "-device", "cpu"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [script("nnUNetv2_train"), *arguments],
            env=commands.environment,
            cwd=commands.folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 300
        while "Epoch 1" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_train_predict_evaluate_and_move_a_model(configuration: str, commands: Commands) -> None:
    output = commands.train(configuration, "all")
    assert "PECANet: " in output
    first = commands.predict(configuration, commands.folder / "first")
    labels = commands.data.raw / LABELS / "labelsTs"
    commands(
        *("nnUNetv2_evaluate_folder", str(labels), str(first)),
        *("-djfile", str(first / "dataset.json"), "-pfile", str(first / "plans.json"), "-np", "1"),
    )
    assert (first / "summary.json").is_file()
    # A model travels as a zip file to an empty results folder.
    archive = commands.folder / "model.zip"
    commands(
        *("nnUNetv2_export_model_to_zip", "-d", "801", "-o", str(archive), "-c", configuration),
        *("-f", "all", "-tr", TRAINER),
    )
    elsewhere = commands.folder / "elsewhere"
    elsewhere.mkdir()
    commands("nnUNetv2_install_pretrained_model_from_zip", str(archive), nnUNet_results=str(elsewhere))
    second = commands.predict(configuration, commands.folder / "second", nnUNet_results=str(elsewhere))
    segmentations = sorted(path.name for path in first.glob("*.nii.gz"))
    assert segmentations
    assert filecmp.cmpfiles(first, second, segmentations, shallow=False) == (segmentations, [], [])


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_stopped_training_is_continued(configuration: str, commands: Commands) -> None:
    trainer = TRAINER.replace("3iters", "15iters")
    stop_in_second_epoch(commands, configuration)
    fold = commands.model_folder(configuration, trainer) / "fold_all"
    assert not (fold / "checkpoint_final.pth").exists()
    output = commands.train(configuration, "all", "--c", trainer=trainer)
    assert "Epoch 1" in output
    assert "Epoch 0" not in output
    assert (fold / "checkpoint_final.pth").is_file()
    assert "Validation complete" in commands.train(configuration, "all", "--val", trainer=trainer)


def test_cross_validation_and_best_configuration(commands: Commands) -> None:
    """Five folds with `--npz`, the search for the best configuration, and the postprocessing that it writes."""
    trainer = "nnUNetTrainerPECANet_1epoch_1iters"
    for fold in range(5):
        commands.train("2d", str(fold), "--npz", trainer=trainer)
    commands("nnUNetv2_find_best_configuration", "801", "-c", "2d", "-tr", trainer, "-np", "1")
    instructions = (commands.data.results / LABELS / "inference_instructions.txt").read_text()
    assert trainer in instructions
    model = commands.model_folder("2d", trainer)
    merged = model / "crossval_results_folds_0_1_2_3_4"
    commands(
        *("nnUNetv2_apply_postprocessing", "-i", str(merged), "-o", str(commands.folder / "postprocessed")),
        *("-pp_pkl_file", str(merged / "postprocessing.pkl"), "-np", "1", "-plans_json", str(merged / "plans.json")),
    )
    assert len(list((commands.folder / "postprocessed").glob("*.nii.gz"))) == 5


def test_plans_route_needs_no_discovery(planned_data: PlannedData, tmp_path: Path) -> None:
    """A plans file that names our network, trained and predicted by nnU-Net's own trainer."""
    commands = Commands(planned_data.copy(tmp_path / "copy"), tmp_path)
    commands("nnUNetv2_ext", "plans", "-d", "801", "PECANet")
    # The network comes from the plans; from this package's search path comes the short length alone.
    output = commands.train("2d", "all", "-p", "nnUNetPlans_PECANet", trainer="nnUNetTrainer_1epoch_2iters")
    assert "PECANet.from_plans_file" in output
    commands(
        *("nnUNetv2_predict", "-d", "801", "-c", "2d", "-f", "all", "-tr", "nnUNetTrainer_1epoch_2iters"),
        *("-p", "nnUNetPlans_PECANet", "-i", str(commands.data.raw / LABELS / "imagesTs"), "-o", str(tmp_path / "out")),
        *("-device", "cpu", "-npp", "0", "-nps", "0"),
    )
    assert list((tmp_path / "out").glob("*.nii.gz"))


def test_unknown_suffix_is_explained_and_leaves_nothing(commands: Commands) -> None:
    output = commands.train("2d", "all", trainer="nnUNetTrainerPECANet_2epoch", expect=1)
    assert (
        "nnunetv2_ext has no trainer nnUNetTrainerPECANet_2epoch; did you mean nnUNetTrainerPECANet_2epochs?" in output
    )
    assert not any(commands.data.results.iterdir())
