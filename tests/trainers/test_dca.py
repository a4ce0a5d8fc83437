"""nnUNetTrainerDCA with residual plans, and starting from weights of the network without DCA."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_ext import cli
from nnunetv2_ext.commands.plans import network_plans
from nnunetv2_ext.trainers import find_trainer
from tests.planned_data import LABELS, PlannedData
from tests.trainers.test_contract import make_trainer, one_epoch, predict

TRAINER = "nnUNetTrainerDCA"


def residual_configurations(data: PlannedData) -> dict:
    """Turn the plain networks of the plans into residual ones, as the ResEnc planners write them."""
    configurations = copy.deepcopy(data.plans(LABELS)["configurations"])
    for configuration in configurations.values():
        if "architecture" in configuration:
            architecture = configuration["architecture"]
            arguments = architecture["arch_kwargs"]
            arguments["n_blocks_per_stage"] = [1, *[2] * (len(arguments.pop("n_conv_per_stage")) - 1)]
            arguments["n_conv_per_stage_decoder"] = [1] * len(arguments["n_conv_per_stage_decoder"])
            architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    return configurations


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_trains_and_predicts_with_residual_plans(configuration: str, nnunet_folders: PlannedData) -> None:
    trainer = make_trainer(
        nnunet_folders,
        f"{TRAINER}_1epoch_1iters",
        LABELS,
        configuration,
        configurations=residual_configurations(nnunet_folders),
    )
    assert np.isfinite(one_epoch(trainer)).all()
    assert hasattr(trainer.network.encoder, "stem")
    logits = predict(trainer, "checkpoint_best.pth", np.zeros((1, 8, 40, 40), dtype=np.float32))
    assert logits.isfinite().all()


def test_recipe_is_nnunets(nnunet_folders: PlannedData) -> None:
    """Same optimiser, loss and outputs as nnU-Net's own trainer with the same plans."""
    plans, dataset_json = nnunet_folders.plans(LABELS), nnunet_folders.dataset_json(LABELS)
    plain = nnUNetTrainer({**plans, "continue_training": False}, "2d", "all", dataset_json, torch.device("cpu"))
    trainer = make_trainer(nnunet_folders, TRAINER, LABELS, "2d")
    for one in (plain, trainer):
        one.initialize()
    assert trainer._get_deep_supervision_scales() == plain._get_deep_supervision_scales()
    assert tuple(trainer.loss.weight_factors) == pytest.approx(tuple(plain.loss.weight_factors))
    theirs, ours = plain.optimizer.param_groups[0], trainer.optimizer.param_groups
    assert len(ours) == 1
    for key in ("lr", "momentum", "nesterov", "weight_decay", "dampening"):
        assert ours[0][key] == theirs[key]
    assert len(ours[0]["params"]) == len(list(trainer.network.parameters()))


class TestImportFromThePlannedNetwork:
    """A checkpoint of nnU-Net's own trainer with the same plans."""

    @pytest.fixture
    def plain_checkpoint(self, nnunet_folders: PlannedData, tmp_path: Path) -> Path:
        plans, dataset_json = nnunet_folders.plans(LABELS), nnunet_folders.dataset_json(LABELS)
        trainer = nnUNetTrainer({**plans, "continue_training": False}, "2d", "all", dataset_json, torch.device("cpu"))
        trainer.initialize()
        for parameter in trainer.network.parameters():
            torch.nn.init.constant_(parameter, 0.5)
        trainer.save_checkpoint(str(tmp_path / "plain.pth"))
        return tmp_path / "plain.pth"

    @staticmethod
    def command(source: Path, target: Path, *further: str) -> list[str]:
        return ["import-weights", "-i", str(source), "-o", str(target), "-d", "801", "-tr", TRAINER, *further]

    def test_encoder_and_decoder_are_taken_over(
        self, plain_checkpoint: Path, nnunet_folders: PlannedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = make_trainer(nnunet_folders, TRAINER, LABELS, "2d")
        target.initialize()
        with pytest.raises(AssertionError, match="dca"):
            load_pretrained_weights(target.network, str(plain_checkpoint))
        cli.main(self.command(plain_checkpoint, tmp_path / "ready.pth", "-c", "2d"))
        shown = capsys.readouterr().out
        assert "from a checkpoint of nnU-Net's own network" in shown
        n_fresh = sum(name.startswith("dca.") for name in target.network.state_dict())
        assert f"as initialised: dca.* ({n_fresh} tensors)." in shown
        load_pretrained_weights(target.network, str(tmp_path / "ready.pth"))
        for name, parameter in target.network.named_parameters():
            taken = not name.startswith("dca.") and ".seg_layers." not in name
            assert parameter.eq(0.5).all().item() == taken, name

    def test_own_checkpoint_must_be_whole(
        self, nnunet_folders: PlannedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = make_trainer(nnunet_folders, TRAINER, LABELS, "2d")
        target.initialize()
        tensors = target.network.state_dict()
        torch.save({"network_weights": tensors}, tmp_path / "own.pth")
        cli.main(self.command(tmp_path / "own.pth", tmp_path / "ready.pth", "-c", "2d"))
        assert "from a checkpoint of nnunetv2_ext" in capsys.readouterr().out
        del tensors["dca.blocks.0.channel_attentions.0.query.weight"]
        torch.save({"network_weights": tensors}, tmp_path / "own.pth")
        with pytest.raises(SystemExit, match=r"dca\.blocks\.0\.channel_attentions\.0\.query\.weight is missing"):
            cli.main(self.command(tmp_path / "own.pth", tmp_path / "ready.pth", "-c", "2d"))

    def test_another_plan_is_refused(self, plain_checkpoint: Path, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"encoder\.stages\.0\.0\.convs\.0\.conv\.weight has shape"):
            cli.main(self.command(plain_checkpoint, tmp_path / "ready.pth", "-c", "3d_fullres"))

    def test_a_network_that_has_nothing_in_common_is_refused(self, nnunet_folders: PlannedData, tmp_path: Path) -> None:
        torch.save({"state_dict": {"conv1.weight": torch.zeros(3)}}, tmp_path / "other.pth")
        with pytest.raises(SystemExit, match="holds no tensor of the network of nnUNetTrainerDCA: give a checkpoint"):
            cli.main(self.command(tmp_path / "other.pth", tmp_path / "ready.pth", "-c", "2d"))


def test_plans_of_another_network_are_refused(nnunet_folders: PlannedData) -> None:
    configurations = copy.deepcopy(nnunet_folders.plans(LABELS)["configurations"])
    configurations["2d"]["architecture"]["network_class_name"] = "some.where.Net"
    with pytest.raises(ValueError, match=r"some\.where\.Net, and DCA can be put into PlainConvUNet and Residual"):
        make_trainer(nnunet_folders, TRAINER, LABELS, "2d", configurations=configurations)
    assert not any(nnunet_folders.results.iterdir())


def test_log_names_the_settings(nnunet_folders: PlannedData) -> None:
    assert find_trainer(TRAINER).network_settings == {}
    trainer = make_trainer(nnunet_folders, TRAINER, LABELS, "2d")
    trainer.initialize()
    assert "'dca_stages': " in Path(trainer.log_file).read_text()


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_plans_can_name_the_network_with_dca(configuration: str, nnunet_folders: PlannedData) -> None:
    """The route without discovery: nnU-Net's own trainer builds the same network, with the same outputs."""
    plans, left_out = network_plans(nnunet_folders.planned(LABELS), "DCA", "Named")
    assert left_out == []
    plans, dataset_json = json.loads(json.dumps(plans)), nnunet_folders.dataset_json(LABELS)
    stock = nnUNetTrainer(
        {**plans, "continue_training": False}, configuration, "all", dataset_json, torch.device("cpu")
    )
    stock.initialize()
    own = make_trainer(nnunet_folders, TRAINER, LABELS, configuration)
    own.initialize()
    assert stock.network.state_dict().keys() == own.network.state_dict().keys()
    # Such plans hold one entry more, for nnU-Net's rule that the last output has no weight.
    assert stock._get_deep_supervision_scales()[:-1] == own._get_deep_supervision_scales()
    x = torch.randn(2, 1, *stock.configuration_manager.patch_size)
    assert [output.shape for output in stock.network(x)] == [output.shape for output in own.network(x)]


@pytest.mark.parametrize("source", [["--patch", "64", "48", "--strides", "2,2", "2,2"], ["-d", "801", "-c", "2d"]])
def test_is_described(source: list[str], nnunet_folders: PlannedData, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["info", "-tr", TRAINER, *source])
    shown = capsys.readouterr().out
    assert "none (bottleneck)" in shown
    assert "weight decay 3e-05 (none on 0 of" in shown
