"""When trainers load ImageNet weights: at the start of a fresh training, and at no other time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from safetensors.torch import load_file
from torch import nn

from nnunetv2_ext import catalog
from nnunetv2_ext.commands.plans import network_names
from nnunetv2_ext.trainers import find_trainer, pretrained
from nnunetv2_ext.trainers.pretrained import ImageNetStartMixin, SelfSupervisedStartMixin
from nnunetv2_ext.weights.files import WeightsError
from tests.planned_data import LABELS, PlannedData
from tests.trainers.test_contract import make_trainer, one_epoch, predict

pytestmark = pytest.mark.usefixtures("narrow")
TRAINER = "nnUNetTrainerDANIE_S_pretrained_2epochs_1iters"
STEM = "sap.stem.conv2.weight"


def make(data: PlannedData):
    return make_trainer(data, TRAINER, LABELS, "2d")


def tensor(trainer, name: str = STEM) -> torch.Tensor:
    return trainer.network.state_dict()[name]


@pytest.fixture
def published(published_weights: Path) -> torch.Tensor:
    return load_file(published_weights / "maxvit_rmlp_tiny_rw_256.sw_in1k.safetensors")["stem.conv2.weight"]


@pytest.fixture
def nothing_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every attempt to load ImageNet weights fail the test."""

    def refuse(*_arguments) -> None:
        raise AssertionError("ImageNet weights were asked for")

    monkeypatch.setattr(pretrained, "load_imagenet_weights", refuse)


@pytest.fixture
def checkpoint(nnunet_folders: PlannedData, tmp_path: Path) -> Path:
    """Train for an epoch, and give the file."""
    trainer = make(nnunet_folders)
    one_epoch(trainer)
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    return Path(trainer.output_folder) / "checkpoint_final.pth"


def test_fresh_training_starts_from_them(nnunet_folders: PlannedData, published: torch.Tensor) -> None:
    trainer = make(nnunet_folders)
    maybe_load_checkpoint(trainer, False, False)
    trainer.on_train_start()
    assert torch.equal(tensor(trainer), published)
    log = Path(trainer.log_file).read_text()
    assert "ImageNet weights of the timm model maxvit_rmlp_tiny_rw_256.sw_in1k, from " in log
    assert "Resized: sap.stem.conv1.weight (from (16, 3, 3, 3))." in log
    assert "As initialised: hap.embedding (" in log
    assert "Without a place: norm.weight, norm.bias, head.fc.weight, head.fc.bias." in log
    before = tensor(trainer).clone()
    trainer.train_step(next(trainer.dataloader_train))
    assert not torch.equal(tensor(trainer), before), "the optimiser does not know the loaded parameters"


def test_continuing_without_a_checkpoint_is_a_fresh_start(nnunet_folders: PlannedData, published: torch.Tensor) -> None:
    """nnU-Net starts a new training where `--c` finds nothing."""
    trainer = make(nnunet_folders)
    maybe_load_checkpoint(trainer, True, False)
    trainer.on_train_start()
    assert torch.equal(tensor(trainer), published)


@pytest.mark.parametrize("continues", [True, False], ids=["--c", "--val"])
def test_checkpoints_of_the_training_are_left_alone(
    continues: bool, checkpoint: Path, nnunet_folders: PlannedData, nothing_to_load: None
) -> None:
    saved = torch.load(checkpoint, weights_only=False)["network_weights"]
    trainer = make(nnunet_folders)
    maybe_load_checkpoint(trainer, continues, not continues)
    if continues:
        trainer.on_train_start()
        assert "No ImageNet weights are loaded" in Path(trainer.log_file).read_text()
    assert torch.equal(tensor(trainer), saved[STEM])


def test_a_file_wins_over_them(checkpoint: Path, nnunet_folders: PlannedData, nothing_to_load: None) -> None:
    saved = torch.load(checkpoint, weights_only=False)["network_weights"]
    trainer = make(nnunet_folders)
    maybe_load_checkpoint(trainer, False, False, str(checkpoint))
    trainer.on_train_start()
    assert torch.equal(tensor(trainer), saved[STEM])
    assert torch.equal(tensor(trainer, "hap.reduction.0.weight"), saved["hap.reduction.0.weight"])


def test_prediction_needs_none(checkpoint: Path, nnunet_folders: PlannedData, nothing_to_load: None) -> None:
    trainer = make(nnunet_folders)
    assert predict(trainer, checkpoint.name, torch.zeros(1, 2, 40, 40).numpy()).isfinite().all()


def test_without_weights_nothing_starts(nnunet_folders: PlannedData, tmp_path: Path, monkeypatch) -> None:
    from timm import models

    def fail(*_arguments, **_options) -> None:
        raise OSError

    trainer = make(nnunet_folders)
    monkeypatch.setenv("nnUNet_ext_weights", str(tmp_path))
    monkeypatch.setattr(models, "load_state_dict_from_hf", fail)
    monkeypatch.setattr(trainer, "get_dataloaders", lambda: pytest.fail("data were loaded"))
    with pytest.raises(WeightsError, match=r"could not be downloaded .* the trainer without _pretrained starts"):
        trainer.on_train_start()


@pytest.mark.parametrize("is_ddp", [False, True])
def test_wrappers_are_taken_off(is_ddp: bool, nnunet_folders: PlannedData) -> None:
    """torch.compile's, and around it that of distributed training."""
    trainer = make(nnunet_folders)
    network = nn.Linear(1, 1)
    compiled = SimpleNamespace(_orig_mod=network)
    trainer.is_ddp, trainer.network = is_ddp, SimpleNamespace(module=compiled) if is_ddp else compiled
    assert trainer._plain_network() is network


def test_names_say_it() -> None:
    """A trainer is called `_pretrained` if and only if it loads weights; plans cannot carry that."""
    for entry in catalog.TRAINERS:
        assert issubclass(find_trainer(entry.name), ImageNetStartMixin) == entry.imagenet
        assert issubclass(find_trainer(entry.name), SelfSupervisedStartMixin) == entry.self_supervised
        assert entry.name.endswith("_pretrained") == entry.pretrained
        assert (entry.name.removeprefix("nnUNetTrainer") in network_names()) == (not entry.pretrained)
