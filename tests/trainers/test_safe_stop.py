"""A training that is stopped, killed or diverges: what it leaves behind, and how it goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.trainers import safe_stop
from nnunetv2_ext.trainers.safe_stop import EPOCHS_FILE, SAVE_EVERY_VARIABLE, SafeStopMixin, _handled
from tests.planned_data import LABELS, PlannedData
from tests.trainers.test_contract import make_trainer

EPOCHS = 4
# One of ours, and nnU-Net's own, whose variants stop in the same way.
NAMES = [f"{base}_{EPOCHS}epochs_1iters" for base in ("nnUNetTrainerPECANet", "nnUNetTrainer")]


@pytest.fixture(params=NAMES)
def make(request: pytest.FixtureRequest, nnunet_folders: PlannedData) -> Callable[[], Any]:
    """Return a function that makes the same training again, with the same random numbers, as a new process would."""

    def make_one() -> Any:
        torch.manual_seed(0)
        np.random.seed(0)
        trainer = make_trainer(nnunet_folders, request.param, LABELS, "2d")
        trainer.plot_network_architecture = trainer._save_debug_information = lambda: None
        return trainer

    return make_one


def at(trainer: Any, method: str, epoch: int, act: Callable[[], None]) -> None:
    """Let something happen in a method of the trainer, before its own work, in one epoch."""
    original = getattr(trainer, method)

    def wrapped(*arguments: Any) -> Any:
        if trainer.current_epoch == epoch:
            act()
        return original(*arguments)

    setattr(trainer, method, wrapped)


def send(number: int, times: int = 1) -> Callable[[], None]:
    def act() -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    return act


def run_until_stopped(trainer: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        trainer.run_training()
    assert stopped.value.code == 75


def checkpoint(trainer: Any, name: str) -> dict[str, Any]:
    return torch.load(Path(trainer.output_folder) / f"checkpoint_{name}.pth", weights_only=False)


def resume(make: Callable[[], Any]) -> Any:
    """Continue as `nnUNetv2_train --c` does."""
    from nnunetv2.run.run_training import maybe_load_checkpoint

    trainer = make()
    maybe_load_checkpoint(trainer, True, False)
    return trainer


def logged_epochs(trainer: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(trainer.output_folder) / EPOCHS_FILE).read_text().splitlines()]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_ends_the_training_after_the_epoch(make: Callable[[], Any], number: int) -> None:
    before = signal.getsignal(number)
    trainer = make()
    at(trainer, "train_step", 1, send(number))
    run_until_stopped(trainer)
    assert signal.getsignal(number) is before
    assert checkpoint(trainer, "latest")["current_epoch"] == 2

    again = resume(make)
    assert again.current_epoch == 2
    again.run_training()
    curves = checkpoint(again, "final")["logging"]
    assert {len(curves[key]) for key in ("train_losses", "val_losses", "lrs", "epoch_end_timestamps")} == {EPOCHS}
    unbroken = [again.initial_lr * (1 - epoch / EPOCHS) ** 0.9 for epoch in range(EPOCHS)]
    assert curves["lrs"] == pytest.approx(unbroken, abs=1e-5)
    epochs = logged_epochs(again)
    assert [record["epoch"] for record in epochs] == list(range(EPOCHS))
    assert all(record["seconds"] > 0 and record["device"] == "cpu" for record in epochs)
    assert [record["train_loss"] for record in epochs] == pytest.approx(curves["train_losses"], rel=1e-5)


def test_a_signal_during_start_up_ends_before_the_first_epoch(make: Callable[[], Any]) -> None:
    trainer = make()
    at(trainer, "get_dataloaders", 0, send(signal.SIGUSR1))
    run_until_stopped(trainer)
    assert not list(Path(trainer.output_folder).glob("*.pth"))


def test_one_request_that_arrives_twice_loses_no_epoch(make: Callable[[], Any]) -> None:
    trainer = make()
    at(trainer, "train_step", 1, send(signal.SIGTERM, times=3))
    run_until_stopped(trainer)
    assert checkpoint(trainer, "latest")["current_epoch"] == 2


def test_a_second_signal_ends_at_once(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_stop, "SAME_REQUEST_SECONDS", 0)
    trainer = make()
    at(trainer, "train_step", 1, send(signal.SIGUSR1, times=2))
    run_until_stopped(trainer)
    assert trainer.current_epoch == 1
    assert not (Path(trainer.output_folder) / "checkpoint_latest.pth").exists()


def test_the_last_epoch_is_finished_as_always(make: Callable[[], Any]) -> None:
    trainer = make()
    at(trainer, "train_step", EPOCHS - 1, send(signal.SIGUSR1))
    trainer.run_training()
    assert checkpoint(trainer, "final")["current_epoch"] == EPOCHS


def test_a_signal_ends_the_final_validation(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make()
    trainer.set_deep_supervision_enabled = lambda enabled: send(signal.SIGTERM)()
    with pytest.raises(SystemExit) as stopped:
        trainer.perform_actual_validation()
    assert stopped.value.code == 75


def test_continues_from_the_newer_checkpoint(make: Callable[[], Any]) -> None:
    trainer = make()
    trainer.initialize()
    folder = Path(trainer.output_folder)
    for latest, best, expected in ((2, 5, 5), (5, 2, 5), (3, 3, 3)):
        for name, epoch in (("latest", latest), ("best", best)):
            trainer.current_epoch, trainer._best_ema = epoch - 1, name
            trainer.save_checkpoint(str(folder / f"checkpoint_{name}.pth"))
        again = resume(make)
        assert again.current_epoch == expected
        assert again._best_ema == ("latest" if latest > best else "best")
    # A file that an earlier version was killed in the middle of.
    (folder / "checkpoint_latest.pth").write_bytes((folder / "checkpoint_latest.pth").read_bytes()[:1000])
    assert resume(make).current_epoch == 3


def test_saves_as_often_as_asked(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SAVE_EVERY_VARIABLE, "2")
    trainer = make()
    at(trainer, "train_step", 3, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    assert checkpoint(trainer, "latest")["current_epoch"] == 2
    for wrong in ("0", "-1", "ten", ""):
        monkeypatch.setenv(SAVE_EVERY_VARIABLE, wrong)
        with pytest.raises(UserError, match=f"{SAVE_EVERY_VARIABLE} is '{wrong}': set it to a whole number"):
            make().run_training()


def test_stops_when_the_loss_is_not_finite(make: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make()
    original = trainer.train_step
    trainer.train_step = lambda batch: {"loss": np.array(np.nan)} if trainer.current_epoch == 2 else original(batch)
    with pytest.raises(SystemExit, match="loss of epoch 2 is nan") as stopped:
        trainer.run_training()
    assert "checkpoint_best.pth of the epochs before are kept" in str(stopped.value)
    assert "_noAMP" in str(stopped.value)
    kept = checkpoint(trainer, "best")
    assert kept["current_epoch"] <= 2
    assert np.isfinite(kept["logging"]["train_losses"]).all()


def test_a_failed_save_keeps_the_checkpoint_before(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make()
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()

    def full_disk(content: Any, file: str) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device", file)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.glob("*.pth")] == [path.name]


def _sleep(ready: Any) -> None:
    ready.set()
    time.sleep(60)


def test_workers_survive_the_signals_until_the_training_is_over() -> None:
    """nnU-Net forks its data loaders while the handlers are there, and a cluster signals all processes of a job."""
    context = multiprocessing.get_context("fork")
    asked: list[int] = []
    with _handled(lambda: asked.append(1)):
        ready = context.Event()
        worker = context.Process(target=_sleep, args=(ready,), daemon=True)
        worker.start()
        assert ready.wait(30)
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(worker.pid, number)
        worker.join(0.5)
        assert worker.is_alive()
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == -signal.SIGTERM
    assert not asked


def test_prediction_sets_no_handler(make: Callable[[], Any]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)]
    trainer = make()
    trainer.initialize()
    assert isinstance(trainer, SafeStopMixin)
    assert [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)] == before
