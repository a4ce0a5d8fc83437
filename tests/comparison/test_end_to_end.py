"""From trainings to a comparison: nnU-Net's own trainer, DCA and PECA-Net, two folds, a few steps each."""

from __future__ import annotations

import copy
import json
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nnunetv2_ext.cli import main
from nnunetv2_ext.trainers import find_trainer
from tests.planned_data import LABELS, PlannedData

pytestmark = pytest.mark.slow

TRAINERS = tuple(f"nnUNetTrainer{method}_2epochs_2iters" for method in ("", "DCA", "PECANet"))
FOLDS = (0, 1)


def train(data: PlannedData, name: str, fold: int) -> None:
    """Train and validate as `nnUNetv2_train` does, in this process."""
    plans = {**copy.deepcopy(data.plans(LABELS)), "continue_training": False}
    trainer = find_trainer(name)(plans, "2d", fold, data.dataset_json(LABELS), torch.device("cpu"))
    trainer.plot_network_architecture = lambda: None
    trainer.run_training()
    trainer.perform_actual_validation()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nnU-Net write its validation by threads: each of its processes would import everything anew."""
    context = SimpleNamespace(Pool=lambda processes: ThreadPool(1))
    for module in ("training.nnUNetTrainer.nnUNetTrainer", "evaluation.evaluate_predictions"):
        stand_in = SimpleNamespace(get_context=lambda method: context)
        monkeypatch.setattr(f"nnunetv2.{module}.multiprocessing", stand_in)


def test_trainings_are_compared(nnunet_folders: PlannedData, threads: None, tmp_path: Path) -> None:
    for name in TRAINERS:
        for fold in FOLDS:
            train(nnunet_folders, name, fold)
    report = tmp_path / "report"
    options = ["-f", *map(str, FOLDS), "--metric", "Dice", "HD95", "-np", "1", "-o", str(report)]
    main(["compare", "-d", "801", "-c", "2d", "-tr", *TRAINERS, *options])
    comparison = json.loads((report / "comparison.json").read_text())
    assert comparison["missing"] == []
    assert list(comparison["trainers"]) == list(TRAINERS)
    # One case of five in each fold, and the mean that nnU-Net itself found.
    for name, numbers in comparison["trainers"].items():
        summaries = [
            json.loads((folder / "validation/summary.json").read_text())
            for folder in (nnunet_folders.results / LABELS / f"{name}__nnUNetPlans__2d").glob("fold_*")
        ]
        means = [summary["foreground_mean"]["Dice"] for summary in summaries]
        assert numbers["n"] == 2
        assert numbers["mean"] == pytest.approx(sum(means) / 2, abs=1e-12)
    costs = {cost["trainer"]: cost for cost in comparison["costs"]}
    for name in TRAINERS:
        stored = torch.load(
            nnunet_folders.results / LABELS / f"{name}__nnUNetPlans__2d/fold_0/checkpoint_final.pth", weights_only=False
        )
        times = zip(*(stored["logging"][f"epoch_{side}_timestamps"] for side in ("start", "end")), strict=True)
        took = [end - start for start, end in times]
        assert costs[name]["card"] == "cpu"
        assert costs[name]["gpu_hours"] is None
        assert 0 < costs[name]["seconds_per_epoch"] < 10 * max(took)
        assert costs[name]["multiply_adds"] > 1e6
        assert costs[name]["memory_predicted_mib"] > 1
    setups = {setup["trainer"]: setup for setup in comparison["setups"]}
    for setup in setups.values():
        assert (setup["epochs"], setup["iterations"], setup["folds"]) == (2, 2, list(FOLDS))
        assert setup["mirroring"] == "0, 1"
        assert len(setup["patch_size"]) == 2
    # The parameters of the checkpoint are those of the network that the plans describe.
    from nnunetv2_ext.comparison.training import count_parameters, read_checkpoint

    for name in TRAINERS:
        path = nnunet_folders.results / LABELS / f"{name}__nnUNetPlans__2d/fold_1/checkpoint_final.pth"
        assert count_parameters(read_checkpoint(path)) == costs[name]["parameters"]
    # Trained alike, and too little for any statement.
    assert set(comparison["kinds_of_findings"]) <= {"few", "undefined", "memory", "seed", "checkpoint", "short"}
    assert any("So short a training decides nothing" in sentence for sentence in comparison["findings"])
    assert any("fewer than 20" in sentence for sentence in comparison["findings"])
