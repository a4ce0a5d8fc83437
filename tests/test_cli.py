"""The command `nnUNetv2_ext`: what it prints, and how it refuses."""

from __future__ import annotations

import copy
import json
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunetv2_ext import cli
from nnunetv2_ext._register import DISCOVERY_FOLDER
from nnunetv2_ext.architectures.peca_net import PECANet
from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.commands import doctor
from nnunetv2_ext.io.tables import format_table
from nnunetv2_ext.plans.configuration import read_geometry
from nnunetv2_ext.weights.peca_net import authors_name
from tests.planned_data import LABELS, PlannedData
from tests.trainers.test_contract import make_trainer, one_epoch

TRAINER = "nnUNetTrainerPECANet"


def refuse(words: str, *arguments: str) -> None:
    """Run a command that must end in one sentence with these words and exit code 1."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    # Python prints a text given to SystemExit to stderr, and ends with code 1.
    assert isinstance(stopped.value.code, str)
    assert stopped.value.code.startswith("error: ")
    assert "\n" not in stopped.value.code
    assert words in stopped.value.code


def test_list_shows_every_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["list"])
    shown = capsys.readouterr().out
    assert all(entry.name in shown for entry in TRAINERS)
    assert "[_<N>epochs]" in shown
    assert max(len(line) for line in shown.splitlines()) <= 100
    cli.main(["list", "--markdown"])
    rows = capsys.readouterr().out.strip().splitlines()
    assert len(rows) == 2 + len(TRAINERS)
    assert all(row.startswith("| ") or row.startswith("|-") for row in rows)


def test_path_prints_the_discovery_folder(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["path"])
    assert capsys.readouterr().out.strip() == DISCOVERY_FOLDER


def test_table_aligns_numbers_to_the_right() -> None:
    assert format_table(["a", "n"], [["x", 5], ["yy", 10]]) == "a    n\nx    5\nyy  10"
    assert format_table(["a", "n"], [["x", 5]], markdown=True) == "| a | n |\n|---|--:|\n| x | 5 |"


def test_info_of_explicit_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    strides = ["1,2,2", *["2,2,2"] * 4]
    cli.main(
        [
            *("info", "-tr", f"{TRAINER}DS_bs4", "--patch", "64", "128", "128", "--strides", *strides),
            *("--classes", "14", "--float32"),
        ]
    )
    shown = capsys.readouterr().out
    for words in (
        "PECANet, 3D",
        "1 x 64 x 128 x 128 (padding: none)",
        "46,18",
        "G (forward pass",
        "872 MiB (float32), ",
        "MiB for the batch of 4",
        "MiB (under autocast)",
    ):
        assert words in shown
    assert "32 x 32 x 32" in shown
    assert "output weights 0.571, 0.286, 0.143" in shown
    assert max(len(line) for line in shown.splitlines()) <= 100


def test_info_builds_the_network_once(
    nnunet_folders: PlannedData, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    built, build = [], PECANet.__init__

    def counted(network: PECANet, *arguments, **settings) -> None:
        built.append(arguments)
        build(network, *arguments, **settings)

    monkeypatch.setattr(PECANet, "__init__", counted)
    cli.main(["info", "-d", "801", "-c", "2d", "-tr", TRAINER])
    assert "PECANet, 2D" in capsys.readouterr().out
    assert len(built) == 1


def test_info_of_a_plan(nnunet_folders: PlannedData, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["info", "-d", "801", "-c", "2d", "-tr", TRAINER])
    shown = capsys.readouterr().out
    assert f"PECANet, 2D, for {LABELS}, 2d, nnUNetPlans" in shown
    trainer = make_trainer(nnunet_folders, TRAINER, LABELS, "2d")
    trainer.initialize()
    assert f"{sum(parameter.numel() for parameter in trainer.network.parameters()):,}" in shown


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (
            "no trainer nnUNetTrainerPECANet_2epoch: did you mean nnUNetTrainerPECANet_2epochs?",
            ["-tr", f"{TRAINER}_2epoch"],
        ),
        ("name a planned dataset", ["-tr", TRAINER]),
        ("axis 2 has 130 voxels", ["-tr", TRAINER, "--patch", "64", "128", "130", "--strides", "2,2,2", "2,2,2"]),
        ("There is no folder for dataset 77", ["-tr", TRAINER, "-d", "77", "-c", "2d"]),
        ("have no configuration '3d'; there are 2d, 3d_fullres", ["-tr", TRAINER, "-d", "801", "-c", "3d"]),
        ("There is no file", ["-tr", TRAINER, "-d", "801", "-c", "2d", "-p", "Missing"]),
    ],
)
def test_info_refuses(nnunet_folders: PlannedData, words: str, arguments: list[str]) -> None:
    refuse(words, "info", *arguments)


def test_folders_that_are_not_set_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    refuse("nnUNet_preprocessed is not set", "info", "-tr", TRAINER, "-d", "801", "-c", "2d")


def test_plans_train_our_network_with_a_stock_trainer(planned_data: PlannedData, tmp_path: Path, monkeypatch) -> None:
    """The route without discovery, for a network without heads and for one with them."""
    data = planned_data.copy(tmp_path / "copy")
    for name, value in {**data.folder_variables(), "nnUNet_n_proc_DA": "0"}.items():
        monkeypatch.setenv(name, value)
    for network in ("PECANet", "PECANetDS"):
        cli.main(["plans", "-d", "801", network])
        name = f"nnUNetPlans_{network}"
        plans = data.plans(LABELS, name)
        assert plans["plans_name"] == name
        assert plans["configurations"].keys() == data.plans(LABELS)["configurations"].keys()
        monkeypatch.setattr(PlannedData, "plans", lambda self, dataset, plans=plans: copy.deepcopy(plans))
        for stock in ("nnUNetTrainer", "nnUNetTrainerNoDeepSupervision"):
            from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

            monkeypatch.setattr("tests.trainers.test_contract.find_trainer", recursive_find_trainer_class_by_name)
            trainer = make_trainer(data, stock, LABELS, "2d")
            one_epoch(trainer)
            assert isinstance(trainer.network, PECANet)
            heads = len(trainer.network.decoder.seg_layers)
            assert heads == (1 if network == "PECANet" else len(trainer.network.output_strides))
            if stock == "nnUNetTrainer" and heads > 1:
                used = trainer.loss.weight_factors[:heads]
                assert min(used) > 0
                assert used[0] == pytest.approx(2 * used[1])
        monkeypatch.undo()
        for variable, value in {**data.folder_variables(), "nnUNet_n_proc_DA": "0"}.items():
            monkeypatch.setenv(variable, value)
    refuse("exists: use it, or write it anew with --overwrite", "plans", "-d", "801", "PECANet")
    refuse("no network 'Nonet'; there are PECANet, PECANetDS", "plans", "-d", "801", "Nonet")
    cli.main(["plans", "-d", "801", "PECANet", "--overwrite"])


def test_trainer_refuses_plans_of_another_network(planned_data: PlannedData, tmp_path: Path, monkeypatch) -> None:
    from nnunetv2_ext.commands.plans import network_plans

    plans, left_out = network_plans(planned_data.planned(LABELS), "PECANet", "Named")
    assert left_out == []
    for name, value in planned_data.with_results(tmp_path).folder_variables().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"The plans name the network .*from_plans_file"):
        make_trainer(planned_data, TRAINER, LABELS, "2d", **plans)


class TestImportWeights:
    """From the authors' file to nnU-Net's `-pretrained_weights`."""

    @pytest.fixture
    def target(self, nnunet_folders: PlannedData) -> PECANet:
        trainer = make_trainer(nnunet_folders, TRAINER, LABELS, "2d")
        trainer.initialize()
        return trainer.network

    @staticmethod
    def authors_tensors(network: PECANet, classes: int = 9) -> dict[str, torch.Tensor]:
        tensors = {authors_name(name): torch.full_like(tensor, 0.25) for name, tensor in network.state_dict().items()}
        for name in ("out1.conv.conv.weight", "out1.conv.conv.bias"):
            tensors[name] = tensors[name][:1].repeat(classes, *[1] * (tensors[name].ndim - 1))
        return {**tensors, "out2.weight": torch.zeros(3, 3)}

    @staticmethod
    def command(source: Path, target: Path) -> list[str]:
        return ["import-weights", "-i", str(source), "-o", str(target), "-d", "801", "-c", "2d", "-tr", TRAINER]

    def test_file_is_taken_by_nnunet(self, target: PECANet, tmp_path: Path, capsys) -> None:
        torch.save({"state_dict": self.authors_tensors(target), "epoch": 1}, tmp_path / "authors.model")
        cli.main(self.command(tmp_path / "authors.model", tmp_path / "ready.pth"))
        assert "from a checkpoint of the authors' code" in capsys.readouterr().out
        load_pretrained_weights(target, str(tmp_path / "ready.pth"))
        for name, parameter in target.named_parameters():
            assert parameter.eq(0.25).all().item() == (".seg_layers." not in name), name

    def test_own_checkpoint_is_taken_too(self, target: PECANet, tmp_path: Path, capsys) -> None:
        torch.save({"network_weights": target.state_dict()}, tmp_path / "own.pth")
        cli.main(self.command(tmp_path / "own.pth", tmp_path / "ready.pth"))
        assert "from a checkpoint of nnunetv2_ext" in capsys.readouterr().out

    def test_output_is_looked_at_first_and_the_command_is_quoted(self, target: PECANet, tmp_path: Path, capsys) -> None:
        own = tmp_path / "own.pth"
        torch.save({"network_weights": target.state_dict()}, own)
        before = own.read_bytes()
        refuse("own.pth is the checkpoint itself, which would be lost", *self.command(own, own))
        refuse("own.pth cannot be written to", *self.command(own, own / "w.pth"))
        refuse("is a folder: name a file", *self.command(own, tmp_path))
        assert own.read_bytes() == before
        missing = tmp_path / "not there's" / "w 1.pth"
        cli.main(self.command(own, missing))
        printed = capsys.readouterr().out.splitlines()[-1]
        assert shlex.split(printed.removeprefix("Train with: "))[-2:] == ["-pretrained_weights", str(missing)]
        assert missing.is_file()

    def test_what_does_not_fit_is_named(self, target: PECANet, tmp_path: Path) -> None:
        tensors = self.authors_tensors(target)
        torch.save(
            {"state_dict": {**tensors, "encoder1.conv1.conv.weight": torch.zeros(16, 3, 3, 3)}}, tmp_path / "3.pth"
        )
        refuse(
            "encoder1.conv1.conv.weight has shape (16, 3, 3, 3) instead of (16, 1, 3, 3)",
            *self.command(tmp_path / "3.pth", tmp_path / "out.pth"),
        )
        torch.save({k: v for k, v in tensors.items() if not k.endswith("0.0.gamma")}, tmp_path / "missing.pth")
        refuse(
            "unetr_pp_encoder.stages.0.0.gamma is missing",
            *self.command(tmp_path / "missing.pth", tmp_path / "out.pth"),
        )
        (tmp_path / "cut.pth").write_bytes((tmp_path / "3.pth").read_bytes()[:3000])
        refuse("cannot be read as a checkpoint", *self.command(tmp_path / "cut.pth", tmp_path / "out.pth"))
        refuse("There is no file", *self.command(tmp_path / "none.pth", tmp_path / "out.pth"))
        assert not list(tmp_path.glob("*out.pth*"))


class TestDoctor:
    """Each problem comes with its remedy."""

    @pytest.fixture(autouse=True)
    def _own_environment(self, nnunet_folders: PlannedData, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("nnUNet_extTrainer", DISCOVERY_FOLDER)

    @staticmethod
    def report(capsys: pytest.CaptureFixture[str], code: int) -> str:
        if code:
            with pytest.raises(SystemExit) as stopped:
                cli.main(["doctor"])
            assert stopped.value.code == code
        else:
            cli.main(["doctor"])
        return capsys.readouterr().out

    def test_everything_in_place(self, capsys: pytest.CaptureFixture[str]) -> None:
        shown = self.report(capsys, 0)
        assert shown.endswith("Ready to train.\n")
        assert f"nnU-Net finds all {len(TRAINERS)}" in shown

    def test_folders(self, capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path) -> None:
        monkeypatch.delenv("nnUNet_raw")
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "missing"))
        shown = self.report(capsys, 1)
        assert "2 problems to solve first." in shown
        assert "export nnUNet_raw=" in shown
        assert f"mkdir -p {tmp_path / 'missing'}" in shown

    def test_advice_can_be_pasted(self, capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path) -> None:
        folder = tmp_path / "the user's" / "raw data"
        monkeypatch.setenv("nnUNet_raw", str(folder))
        (line,) = [line for line in self.report(capsys, 1).splitlines() if "mkdir -p" in line]
        command = line.partition("-> ")[2].partition(", or export")[0]
        subprocess.run(command, shell=True, check=True)
        assert folder.is_dir()

    def test_no_workers_are_for_the_training_alone(self, capsys, monkeypatch, tmp_path: Path) -> None:
        """Exported, the value makes nnU-Net's planning fail."""
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        shown = self.report(capsys, 0)
        assert "unset nnUNet_n_proc_DA, and set it for the training alone, nnUNet_n_proc_DA=0 nnUNetv2_train" in shown
        monkeypatch.delenv("nnUNet_n_proc_DA")
        monkeypatch.setattr(doctor, "SHARED_MEMORY_FOLDER", tmp_path)
        monkeypatch.setattr(doctor, "MIN_SHARED_MEMORY", 2**60)
        shown = self.report(capsys, 0)
        assert "or train without: nnUNet_n_proc_DA=0 nnUNetv2_train ..." in shown
        assert "export nnUNet_n_proc_DA" not in shown

    def test_discovery(self, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
        monkeypatch.delenv("nnUNet_extTrainer")
        shown = self.report(capsys, 1)
        assert 'export nnUNet_extTrainer="$(nnUNetv2_ext path)"' in shown

    @pytest.mark.parametrize(
        ("variable", "value", "words"),
        [
            ("nnUNet_n_proc_DA", "many", "is not a whole number"),
            ("OMP_THREAD_LIMIT", "1", "unset OMP_THREAD_LIMIT"),
        ],
    )
    def test_workers(self, capsys, monkeypatch, variable: str, value: str, words: str) -> None:
        monkeypatch.setenv(variable, value)
        assert words in self.report(capsys, 1)


def test_geometry_reads_residual_plans(planned_data: PlannedData) -> None:
    """Residual encoder plans count blocks where plain ones count convolutions."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = planned_data.plans(LABELS)
    plain = read_geometry(PlansManager(plans).get_configuration("2d"))
    kwargs = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    kwargs["n_blocks_per_stage"] = kwargs.pop("n_conv_per_stage")
    assert read_geometry(PlansManager(json.loads(json.dumps(plans))).get_configuration("2d")) == plain
