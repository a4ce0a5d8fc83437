"""A seeded training repeats, also when it was stopped in between; threads on a CPU are as many as asked for."""

from __future__ import annotations

import random
import shutil
import signal
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunetv2_ext.trainers.seeding import SEED_VARIABLE, THREADS_VARIABLE
from tests.planned_data import LABELS, PlannedData
from tests.trainers.test_contract import make_trainer
from tests.trainers.test_safe_stop import at, checkpoint, run_until_stopped, send

EPOCHS = 4
NAMES = [f"{base}_{EPOCHS}epochs_1iters" for base in ("nnUNetTrainerPECANet", "nnUNetTrainer")]


def start(data: PlannedData, name: str, noise: int, *, resume: bool = False) -> Any:
    """Make a trainer as a new process would, whose generators are in a state of their own."""
    random.seed(noise)
    np.random.seed(noise)
    torch.manual_seed(noise)
    trainer = make_trainer(data, name, LABELS, "2d")
    trainer.plot_network_architecture = trainer._save_debug_information = lambda: None
    maybe_load_checkpoint(trainer, resume, False)
    return trainer


def result(trainer: Any) -> tuple[list[list[float]], list[torch.Tensor]]:
    """Return the curves of losses and learning rates, and the weights at the end."""
    final = checkpoint(trainer, "final")
    weights = [tensor for tensor in final["network_weights"].values() if isinstance(tensor, torch.Tensor)]
    return [final["logging"][curve] for curve in ("train_losses", "val_losses", "lrs")], weights


@pytest.mark.parametrize("name", NAMES)
def test_a_seeded_training_repeats_also_when_it_was_stopped_three_times(
    nnunet_folders: PlannedData, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv(SEED_VARIABLE, "7")
    unbroken = start(nnunet_folders, name, noise=1)
    unbroken.run_training()
    curves, weights = result(unbroken)
    assert all(len(curve) == EPOCHS for curve in curves)
    shutil.rmtree(unbroken.output_folder)

    for epoch in range(EPOCHS - 1):
        stopped = start(nnunet_folders, name, noise=2 + epoch, resume=epoch > 0)
        assert stopped.current_epoch == epoch
        at(stopped, "train_step", epoch, send(signal.SIGTERM))
        run_until_stopped(stopped)
    again = start(nnunet_folders, name, noise=9, resume=True)
    again.run_training()
    got_curves, got_weights = result(again)
    assert got_curves == curves
    assert all(torch.equal(a, b) for a, b in zip(got_weights, weights, strict=True))

    monkeypatch.setenv(SEED_VARIABLE, "8")
    other = start(nnunet_folders, name, noise=1)
    other.run_training()
    assert result(other)[0][0] != curves[0]


def test_threads(nnunet_folders: PlannedData, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv(THREADS_VARIABLE, str(before + 1))
        start(nnunet_folders, NAMES[1], noise=1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("variable", "wrong"),
    [(SEED_VARIABLE, "-1"), (SEED_VARIABLE, "x"), (THREADS_VARIABLE, "0"), (THREADS_VARIABLE, "2.5")],
)
def test_other_values_are_refused(
    nnunet_folders: PlannedData, variable: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, wrong)
    with pytest.raises(ValueError, match=f"{variable} is '{wrong}': set it to a whole number"):
        start(nnunet_folders, NAMES[0], noise=1)
