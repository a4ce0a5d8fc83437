"""What `nnUNet_ext_log` writes: each epoch once, also where a training was stopped or has crashed."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.trainers import log_sinks
from nnunetv2_ext.trainers.log_sinks import LOG_VARIABLE
from nnunetv2_ext.trainers.logs import CurvesMixin
from tests.planned_data import LABELS, REGIONS, PlannedData
from tests.trainers.test_contract import make_trainer
from tests.trainers.test_safe_stop import at, resume

EPOCHS = 3
NAMES = [f"{base}_{EPOCHS}epochs_1iters" for base in ("nnUNetTrainerPECANet", "nnUNetTrainer")]


@pytest.fixture
def make(nnunet_folders: PlannedData) -> Callable[..., Any]:
    def make_one(name: str = NAMES[0], dataset: str = LABELS) -> Any:
        torch.manual_seed(0)
        np.random.seed(0)
        trainer = make_trainer(nnunet_folders, name, dataset, "2d")
        trainer.plot_network_architecture = trainer._save_debug_information = lambda: None
        return trainer

    return make_one


def rows(trainer: Any) -> list[dict[str, str]]:
    with (Path(trainer.output_folder) / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def crash(trainer: Any, epoch: int) -> None:
    """Let an epoch be trained and logged, and the process die before its checkpoint is there."""
    at(trainer, "save_checkpoint", epoch, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()


@pytest.mark.parametrize("name", NAMES)
def test_each_epoch_once_in_all_three(
    name: str, make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    mlflow = pytest.importorskip("mlflow")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv(LOG_VARIABLE, "csv, tensorboard,mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "curves")
    monkeypatch.setenv("nnUNet_ext_save_every", "1")
    clip = torch.nn.utils.clip_grad_norm_
    first = make(name)
    crash(first, 1)
    assert torch.nn.utils.clip_grad_norm_ is clip
    assert [row["epoch"] for row in rows(first)] == ["0", "1"]

    again = resume(lambda: make(name))
    assert again.current_epoch == 1
    again.run_training()
    again.logger.log_summary("final_val/foreground_dice", 0.5)
    found = rows(again)
    assert [row["epoch"] for row in found] == ["0", "1", "2"]
    curves = again.logger.get_checkpoint()
    assert [float(row["train_loss"]) for row in found] == pytest.approx(curves["train_losses"], rel=1e-5)
    assert [float(row["learning_rate"]) for row in found] == pytest.approx(curves["lrs"])
    classes = [name for name in again.dataset_json["labels"] if name != "background"]
    for number, one in enumerate(classes):
        logged, kept = [float(row[f"dice/{one}"]) for row in found], curves["dice_per_class_or_region"]
        np.testing.assert_allclose(logged, [float(epoch[number]) for epoch in kept], rtol=1e-6)
    assert all(float(row["gradient_norm_mean"]) > 0 and row["skipped_steps"] == "0" for row in found)
    assert all(float(row["seconds"]) > 0 for row in found)

    events = EventAccumulator(str(Path(again.output_folder) / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [0, 1, 2]
    assert [event.value for event in events.Scalars("val_loss")] == pytest.approx(curves["val_losses"], rel=1e-5)
    assert events.Scalars("final_val/foreground_dice")[0].value == 0.5

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("curves").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["trainer"] == name
    assert run.data.metrics["final_val/foreground_dice"] == 0.5
    assert [one.step for one in client.get_metric_history(run.info.run_id, "train_loss")] == [0, 1, 2]

    make(name).on_train_start()
    assert len(client.search_runs([run.info.experiment_id])) == 2, "a new training is another run"


def test_the_norm_is_the_one_that_clipping_has_computed(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a step that the scaler skips is counted, without its norm; regions have their names."""
    monkeypatch.setenv(LOG_VARIABLE, "csv")
    trainer = make(NAMES[0], REGIONS)
    computed: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def clip_and_note(parameters: Any, *arguments: Any) -> torch.Tensor:
        norm = clip(parameters, *arguments)
        computed.append(norm.item())
        return norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_and_note)
    trainer.num_iterations_per_epoch, trainer.num_epochs = 2, 1
    trainer.run_training()
    (row,) = rows(trainer)
    assert len(computed) == 2
    assert float(row["gradient_norm_mean"]) == pytest.approx(sum(computed) / 2)
    assert float(row["gradient_norm_max"]) == pytest.approx(max(computed))
    regions = [name for name in trainer.dataset_json["labels"] if name != "background"]
    assert [name for name in row if name.startswith("dice/")] == [f"dice/{name}" for name in regions]

    trainer._norms, trainer.grad_scaler = [torch.tensor(2.0), torch.tensor(math.inf), torch.tensor(math.nan)], object()
    values = trainer._epoch_values()
    assert (values["skipped_steps"], values["gradient_norm_mean"]) == (2, 2.0)


def test_nothing_happens_unless_it_is_asked_for(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOG_VARIABLE, raising=False)
    trainer = make()
    trainer.on_train_start()
    assert isinstance(trainer, CurvesMixin)
    assert not trainer._sinks
    assert not trainer.logger.loggers
    trainer.local_rank = 1
    monkeypatch.setenv(LOG_VARIABLE, "csv")
    trainer.was_initialized, trainer.network = True, None
    assert not trainer._sinks, "rank 0 speaks for all"


def test_wrong_names_and_missing_libraries_end_before_data_are_read(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make()
    monkeypatch.setattr(trainer, "get_dataloaders", lambda: pytest.fail("data were loaded"))
    monkeypatch.setenv(LOG_VARIABLE, "csv,wandb")
    with pytest.raises(UserError, match=r"which has 'wandb': it takes csv, tensorboard, mlflow, by commas\.$"):
        trainer.on_train_start()
    monkeypatch.setattr(log_sinks, "find_spec", lambda name: None)
    for name in ("tensorboard", "mlflow"):
        monkeypatch.setenv(LOG_VARIABLE, f"csv,{name}")
        with pytest.raises(UserError, match=rf"run pip install 'nnunetv2_ext\[{name}\]', or leave it out\.$"):
            trainer.on_train_start()
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="mlflow of nnUNet_ext_log cannot be opened"):
        log_sinks.open_sink("mlflow", tmp_path, 0, {})


def test_a_sink_that_fails_does_not_end_the_training(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOG_VARIABLE, "csv")

    def fail(*_arguments: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(log_sinks.CSVSink, "record", fail)
    trainer = make()
    trainer.num_epochs = 1
    trainer.run_training()
    log = Path(trainer.log_file).read_text()
    assert "csv could not log epoch 0 (no route to host); the training goes on." in log
