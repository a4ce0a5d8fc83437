"""Checkpoints of DCA's authors, by the golden files' names and shapes, for the trainers that build from a plan."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.commands.import_weights import ImportReport, import_weights
from nnunetv2_ext.plans.dataset import read_planned_dataset
from nnunetv2_ext.trainers import find_own_trainer
from nnunetv2_ext.weights.authors import find_system
from nnunetv2_ext.weights.files import WeightsError
from tests import golden_files

DATASET = "Dataset871_Authors"
UNETS = [entry for entry in TRAINERS if entry.authors_system == "dca_unets"]
# The patch at which DCA reads the authors' stages.
PATCH = (224, 224)


def golden_of(trainer_name: str) -> dict[str, Any]:
    """Read the golden file of a trainer's network, with few channels."""
    name = trainer_name.removeprefix("nnUNetTrainer")
    kind = "dca" if name.startswith("DCA") else "plain"
    golden = golden_files.load(f"dca_unets-{name.removeprefix('DCA').lower()}-{kind}")
    if "ResUNetPP" in name:
        # Squeeze and excitation have the hidden units that the plan's widths give at the authors' own width alone.
        golden["state_dict"] = at_full_width(golden)
        golden["config"]["features_per_stage"] = [32, 64, 128, 256, 512]
    return golden


def at_full_width(golden: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tensors that the golden file of the paper's size lists, under the names of this file."""
    paper = {entry["name"]: entry for entry in golden_files.load("dca_unets-resunetpp-paper")["state_dict"]}
    return [{**entry, "shape": paper[entry["name"]]["shape"]} for entry in golden["state_dict"]]


def write_plan(
    folder: Path, features: list[int], patch: tuple[int, ...] = PATCH, channels: int = 3, classes: int = 2
) -> None:
    """Write what nnU-Net's planner would have written for a network of these widths."""
    geometry = Geometry.from_strides(patch, [(2,) * len(patch)] * (len(features) - 1))
    dims = len(patch)
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": len(features),
            "features_per_stage": features,
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": geometry.kernel_sizes,
            "strides": geometry.strides,
            "n_conv_per_stage": [2] * len(features),
            "n_conv_per_stage_decoder": [2] * (len(features) - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {"patch_size": patch, "batch_size": 2, "architecture": architecture}
    plans = {"label_manager": "LabelManager", "configurations": {f"{dims}d": configuration}}
    labels = {"background": 0, **{f"class {number}": number for number in range(1, classes)}}
    dataset_json = {"channel_names": {str(index): "RGB" for index in range(channels)}, "labels": labels}
    target = folder / DATASET
    target.mkdir(parents=True, exist_ok=True)
    (target / "nnUNetPlans.json").write_text(json.dumps(plans))
    (target / "dataset.json").write_text(json.dumps(dataset_json))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return tmp_path


def carry_over(
    folder: Path, trainer_name: str, tensors: dict[str, torch.Tensor], configuration: str = "2d"
) -> tuple[torch.nn.Module, ImportReport]:
    """Import a checkpoint, and load the file with nnU-Net's loader into a network of other random weights."""
    torch.save({"state_dict": tensors, "epoch": 1}, folder / "authors.pth")
    report = import_weights(
        folder / "authors.pth",
        folder / "ready.pth",
        trainer_name=trainer_name,
        dataset=DATASET,
        configuration=configuration,
        plans_name="nnUNetPlans",
    )
    planned = read_planned_dataset(DATASET).configuration(configuration)
    network = find_own_trainer(trainer_name).build_network(
        planned.geometry, planned.input_channels, planned.num_classes
    )
    load_pretrained_weights(network, str(folder / "ready.pth"))
    return network, report


def refuse(folder: Path, trainer_name: str, tensors: dict[str, torch.Tensor], words: str, configuration="2d") -> None:
    with pytest.raises(WeightsError, match=words):
        carry_over(folder, trainer_name, tensors, configuration)
    assert not (folder / "ready.pth").exists()


@pytest.mark.parametrize("trainer_name", [entry.name for entry in UNETS])
def test_unets_take_their_authors_checkpoint(trainer_name: str, folder: Path) -> None:
    golden = golden_of(trainer_name)
    features = golden["config"]["features_per_stage"]
    # ResUNet++ has four stages and, at the size of the last, a bridge.
    write_plan(folder, features[:4] if "ResUNetPP" in trainer_name else features)
    tensors = golden_files.make_state_dict(golden)
    network, report = carry_over(folder, trainer_name, tensors)
    assert report.source == "authors"

    authors_name = find_system("dca_unets").naming(network)
    fresh, used = set(report.fresh), set()
    for name, tensor in network.state_dict().items():
        if name in fresh:
            # A head of deep supervision, or a norm that only the planned DoubleU-Net has in its first encoder.
            assert ".seg_layers." in name or ("DoubleUNet" in trainer_name and ".norms." in name), name
            continue
        used.add(authors_name(name))
        if ".seg_layers." not in name:
            assert torch.equal(tensor, tensors[authors_name(name)].reshape(tensor.shape)), name
    assert report.taken == len(used) > 40
    # Whatever else the authors' file holds is told, and is one of a few kinds.
    aliases = {name for name in tensors if re.match(r"attn\d\.conv_(encoder|decoder|attn)\.0\.", name)}
    # The golden file of ResUNet++'s full width is for another number of classes.
    other_classes = {name for name in tensors if name.startswith("output_layer.")}
    assert set(report.left_out) == tensors.keys() - used - aliases - other_classes
    for name in report.left_out:
        expected = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        expected |= "VNet" in trainer_name and "prelu" in name
        expected |= trainer_name == "nnUNetTrainerVNet" and name.startswith("conv1.conv_skip.")
        expected |= trainer_name == "nnUNetTrainerDCAMultiResUNet" and name.startswith("respath")
        assert expected, name


def test_there_are_twelve() -> None:
    assert len(UNETS) == 12


UNET = "nnUNetTrainerDCAUNet"


@pytest.mark.parametrize(
    ("words", "plan"),
    [
        (r"the authors' UNet is 2D and has 5 stages \(4 poolings\), and this configuration has 6 stages",
         {"features": [8, 16, 32, 64, 128, 128]}),
        (r"its DCA reads 4 stages, and that of this configuration 3, because of its patch size and poolings",
         {"features": [8, 16, 32, 64, 128], "patch": (112, 112)}),
        (r"conv1\.conv1\.conv\.weight has shape \(8, 3, 3, 3\) instead of \(8, 1, 3, 3\)",
         {"features": [8, 16, 32, 64, 128], "channels": 1}),
        (r"conv1\.conv1\.conv\.weight has shape \(8, 3, 3, 3\) instead of \(16, 3, 3, 3\)",
         {"features": [16, 32, 64, 128, 256]}),
    ],
)  # fmt: skip
def test_plans_that_the_authors_unet_cannot_fit(words: str, plan: dict[str, Any], folder: Path) -> None:
    write_plan(folder, **plan)
    refuse(folder, UNET, golden_files.make_state_dict(golden_of(UNET)), words)


def test_3d_is_refused_in_one_sentence(folder: Path) -> None:
    write_plan(folder, [8, 16, 32, 64, 128], patch=(32, 32, 32))
    words = r"the authors' VNet is 2D and has 5 stages \(4 poolings\), and this configuration is 3D\."
    trainer_name = "nnUNetTrainerVNet"
    refuse(folder, trainer_name, golden_files.make_state_dict(golden_of(trainer_name)), words, "3d")


def test_missing_and_left_over_tensors_are_named(folder: Path) -> None:
    write_plan(folder, [8, 16, 32, 64, 128])
    tensors = golden_files.make_state_dict(golden_of(UNET))
    refuse(folder, UNET, {**tensors, "conv9.weight": torch.zeros(1)}, r"conv9\.weight has no place in the network\.$")
    del tensors["DCA.attention.0.c_attention.0.q_map.proj.depthwise.weight"]
    refuse(folder, UNET, tensors, r"DCA\.attention\.0\.c_attention\.0\.q_map\.proj\.depthwise\.weight is missing\.$")
    refuse(folder, UNET, {"some.weight": torch.zeros(1)}, "give a checkpoint of that trainer, or of the authors' code")


class TestPlannedNetwork:
    """On the planned network, the tensors of the module are what a checkpoint of the authors can give."""

    TRAINER = "nnUNetTrainerDCA"

    @pytest.fixture
    def tensors(self) -> dict[str, torch.Tensor]:
        return golden_files.make_state_dict(golden_files.load("dca-4stage"))

    def check(self, network: torch.nn.Module, report: ImportReport, tensors: dict[str, torch.Tensor]) -> None:
        authors_name = find_system("dca").naming(network)
        module = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("dca.")}
        for name, tensor in module.items():
            assert torch.equal(tensor, tensors[authors_name(name).removeprefix("DCA.")].reshape(tensor.shape)), name
        assert (report.source, report.taken) == ("authors", len(module))
        assert set(report.fresh) == network.state_dict().keys() - module.keys()

    def test_takes_a_checkpoint_of_the_module(self, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        write_plan(folder, [8, 16, 32, 64, 128])
        network, report = carry_over(folder, self.TRAINER, tensors)
        self.check(network, report, tensors)
        assert report.left_out
        assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in report.left_out)

    def test_takes_the_module_out_of_a_network(self, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        write_plan(folder, [8, 16, 32, 64, 128])
        unet = golden_files.make_state_dict(golden_of(UNET))
        network, report = carry_over(folder, self.TRAINER, unet)
        self.check(
            network, report, {name.removeprefix("DCA."): t for name, t in unet.items() if name.startswith("DCA.")}
        )
        assert {name for name in unet if not name.startswith("DCA.")} <= set(report.left_out)

    def test_another_number_of_stages_is_told(self, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        write_plan(folder, [8, 16, 32, 64, 128], patch=(64, 64))
        refuse(folder, self.TRAINER, tensors, "its DCA reads 4 stages, and that of this configuration 2")
