"""Plans for networks that will be trained: nnU-Net's rules, another memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext import cli
from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.planning.candidates import geometry_of_plan
from nnunetv2_ext.planning.memory import GIBIBYTE, StepMemory
from nnunetv2_ext.planning.networks import TrainedNetwork, find_trained_network, padding_waste
from nnunetv2_ext.planning.plan import Planning, plan_dataset
from nnunetv2_ext.planning.search import MOST_WASTE, Affordable
from nnunetv2_ext.trainers import find_trainer
from nnunetv2_ext.trainers.recipes import NNUNET
from tests.narrow import narrow_networks
from tests.planned_data import LABELS, PlannedData
from tests.test_cli import refuse

PECA_NET = "nnUNetTrainerPECANet"
BYTES_PER_VOXEL = 400


@pytest.fixture
def data(planned_data: PlannedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlannedData]:
    """Copy the datasets, because plans are written beside them, and narrow the networks."""
    copied = planned_data.copy(tmp_path / "data")
    import nnunetv2.experiment_planning.experiment_planners.default_experiment_planner as planner
    import nnunetv2.paths as paths
    import nnunetv2.utilities.dataset_name_id_conversion as conversion

    for name, value in copied.folder_variables().items():
        monkeypatch.setenv(name, value)
        for module in (paths, planner, conversion):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    with narrow_networks():
        yield copied


def write_dataset(
    data: PlannedData, number: int, spacing: tuple, shape: tuple, channels: int = 1, cases: int = 100
) -> str:
    """Write what the planner reads of a dataset: its fingerprint, its dataset.json and one image."""
    name = f"Dataset{number}_Shape"
    raw, source = data.raw / name, data.raw / LABELS
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    image = next((source / "imagesTr").iterdir())
    for channel in range(channels):
        (raw / "imagesTr" / f"case_{channel:04d}.nii.gz").symlink_to(image)
    (raw / "labelsTr" / "case.nii.gz").symlink_to(next((source / "labelsTr").iterdir()))
    content = {
        "channel_names": {str(channel): "MRI" for channel in range(channels)},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content))
    fingerprint = {
        "spacings": [list(spacing)] * 3,
        "shapes_after_crop": [list(shape)] * 3,
        "foreground_intensity_properties_per_channel": {},
        "median_relative_size_after_cropping": 1.0,
    }
    folder = data.preprocessed / name
    folder.mkdir()
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    return str(number)


@pytest.fixture
def simple_memory(monkeypatch: pytest.MonkeyPatch) -> list[Geometry]:
    """Let a step take a number of bytes per voxel, for tests of the rules; list what was asked."""
    asked = []

    def predict(
        network: TrainedNetwork, geometry: Geometry, channels: int, classes: int, batch_size: int, *, regions: bool
    ) -> StepMemory:
        asked.append(geometry)
        voxels = math.prod(geometry.patch_size) * batch_size
        return StepMemory(0, voxels * (BYTES_PER_VOXEL + 4 * (channels - 1)))

    monkeypatch.setattr(TrainedNetwork, "predict", predict)
    return asked


def by_name(planning: Planning) -> dict:
    return {each.configuration: each for each in planning.configurations}


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", PECA_NET, "nnUNetTrainerDCA"])
def test_a_plan_holds_to_the_target_and_its_neighbours_do_not(data: PlannedData, trainer: str) -> None:
    """With the true predictions, where the largest patch takes a byte more than there is."""
    known: dict = {}
    whole = by_name(plan_dataset("801", [trainer], target=8, configurations=["3d_fullres"], known=known))["3d_fullres"]
    least = max(memory.total for (_, _, _, batch), memory in known.items() if batch == 2)
    target = (least - 1) / GIBIBYTE
    planning = plan_dataset("801", [trainer], target=target, configurations=["3d_fullres"], known=known)
    less = by_name(planning)["3d_fullres"]
    assert math.prod(less.patch_size) < math.prod(whole.patch_size)
    assert less.memory[trainer].total <= target * GIBIBYTE
    network, classes = find_trained_network(trainer), len(data.dataset_json(LABELS)["labels"])
    plan = geometry_of_plan(json.loads(planning.path.read_text())["configurations"]["3d_fullres"])
    step = plan.cumulative_strides[-1]
    axis = max(
        (axis for axis in range(3) if plan.patch_size[axis] + step[axis] <= whole.patch_size[axis]),
        key=lambda axis: plan.patch_size[axis],
    )
    larger = tuple(size + step[axis] * (index == axis) for index, size in enumerate(plan.patch_size))
    for geometry, batch_size in ((replace(plan, patch_size=larger), 2), (plan, less.batch_size + 1)):
        assert network.predict(geometry, 1, classes, batch_size).total > target * GIBIBYTE


# Datasets behind the rows of the plan matrix: spacing, median shape, channels.
SHAPES = {
    "A1, abdominal CT": ((3, 0.76, 0.76), (148, 512, 512), 1),
    "B1, flat, as ACDC": ((5, 1.56, 1.56), (18, 256, 216), 1),
    "B3, prostate of two channels": ((3.6, 0.62, 0.62), (20, 320, 319), 2),
    "B4, electron microscopy": ((50, 4, 4), (30, 1000, 1000), 1),
    "B5, thin slab": ((6, 0.4, 0.4), (12, 512, 512), 1),
    "C1, brain MRI of four channels": ((1, 1, 1), (138, 169, 138), 4),
    "C3, heart": ((1.37, 1.25, 1.25), (115, 320, 232), 1),
    "D1, hippocampus": ((1, 1, 1), (36, 50, 35), 1),
    "D4, tiny and flat": ((5, 1, 1), (8, 32, 32), 1),
    "D6, tiny": ((1, 1, 1), (10, 12, 10), 1),
    "E6, histology": ((999, 1, 1), (1, 700, 400), 3),
}


def require_best(planning: Planning, trainer: str, channels: int, shape: tuple) -> None:
    """Check that plans meet the target, that their neighbours do not, and that the network takes the sizes."""
    target = planning.target * GIBIBYTE
    plans = json.loads(planning.path.read_text())
    network = find_trained_network(trainer)
    for each in planning.configurations:
        assert each.memory[trainer].total <= target
        configuration = plans["configurations"][each.configuration]
        if "inherits_from" in configuration:
            configuration = {**plans["configurations"][configuration["inherits_from"]], **configuration}
        median = configuration["median_image_size_in_voxels"]
        strides = configuration["architecture"]["arch_kwargs"]["strides"]
        total = [math.prod(stride[axis] for stride in strides) for axis in range(len(each.patch_size))]
        assert all(size % stride == 0 for size, stride in zip(each.patch_size, total, strict=True))
        assert all(size < full + stride for size, full, stride in zip(each.patch_size, median, total, strict=True))
        geometry = Geometry.from_strides(each.patch_size, strides)
        inputs = channels + (2 if each.configuration == "3d_cascade_fullres" else 0)
        network.build(geometry, inputs, 3)
        more = network.predict(geometry, inputs, 3, each.batch_size + 1, regions=False).total
        voxels = each.batch_size * math.prod(each.patch_size)
        everything = math.prod(median) * 100 * (shape[0] if each.configuration == "2d" else 1)
        assert more > target or voxels + math.prod(each.patch_size) / 2 >= 0.05 * everything
        if any(note.startswith(each.data_identifier) for note in planning.notes):
            continue  # A smaller patch, which the windows fill; what is larger fits too.
        may_grow = [axis for axis, (size, full) in enumerate(zip(each.patch_size, median, strict=True)) if size < full]
        if may_grow and each.configuration == "3d_fullres" and more > target and each.batch_size == 2:
            axis = max(may_grow, key=lambda index: each.patch_size[index])
            larger = list(each.patch_size)
            larger[axis] += total[axis]
            grown = network.predict(replace(geometry, patch_size=tuple(larger)), inputs, 3, 2, regions=False)
            assert grown.total > target


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("trainer", ["nnUNetTrainer", PECA_NET, "nnUNetTrainerSwinUNETRRecA"])
def test_nnunets_rules_hold(data: PlannedData, simple_memory: list[Geometry], trainer: str, shape: str) -> None:
    spacing, median, channels = SHAPES[shape]
    dataset = write_dataset(data, 850, spacing, median, channels)
    # Where the whole image fits, and where it does not.
    for target in (3, 1):
        planning = plan_dataset(dataset, [trainer], target=target)
        require_best(planning, trainer, channels, median)
        names = {"2d", "3d_fullres"} if median[0] > 1 else {"2d"}
        assert names <= by_name(planning).keys()
        if shape.startswith("A1"):
            assert by_name(planning).keys() == {*names, "3d_lowres", "3d_cascade_fullres"}


def test_data_are_shared_where_they_are_the_same(data: PlannedData, simple_memory: list[Geometry]) -> None:
    planning = plan_dataset("801", [PECA_NET], target=8)
    base = data.plans(LABELS)["configurations"]
    for name, each in by_name(planning).items():
        assert each.data_identifier == base[name]["data_identifier"]
    assert planning.unprepared == []
    # With another resampling in the base, they are not.
    other = data.plans(LABELS)
    other["configurations"]["3d_fullres"]["spacing"] = [9.0, 9.0, 9.0]
    (data.preprocessed / LABELS / "Other.json").write_text(json.dumps({**other, "plans_name": "Other"}))
    planning = plan_dataset("801", [PECA_NET], target=8, base_name="Other")
    assert planning.unprepared == ["3d_fullres"]


def test_a_small_target_is_met_after_a_first_patch_that_is_far_above_it(
    data: PlannedData, simple_memory: list[Geometry]
) -> None:
    """The allocator's share of the first patch alone is more than the target."""
    dataset = write_dataset(data, 852, (1, 1, 1), (256, 256, 256))
    planning = plan_dataset(dataset, ["nnUNetTrainer"], target=0.7, configurations=["3d_fullres"])
    first = StepMemory(0, math.prod(simple_memory[0].patch_size) * 2 * BYTES_PER_VOXEL)
    assert first.total - first.peak > 0.7 * GIBIBYTE
    memory = by_name(planning)["3d_fullres"].memory["nnUNetTrainer"]
    assert 0.9 * 0.7 < memory.total / GIBIBYTE <= 0.7


def test_stock_and_own_trainers_build_from_the_plans(data: PlannedData, simple_memory: list[Geometry]) -> None:
    planning = plan_dataset("801", [PECA_NET], target=8, name="Mine")
    plans = json.loads(planning.path.read_text())
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    for trainer in (nnUNetTrainer, find_trainer(PECA_NET)):
        with torch.inference_mode():
            network = trainer.build_network_architecture(manager, configuration, 1, 4, True)
            outputs = network(torch.empty(2, 1, *configuration.patch_size))
        first = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
        assert first.shape == (2, 4, *configuration.patch_size)


def test_one_plan_for_all_fits_each(
    data: PlannedData, simple_memory: list[Geometry], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["nnUNetTrainer", PECA_NET, "nnUNetTrainerDCA"]
    cli.main(["plan", "-d", "801", "--for", *names, "-c", "3d_fullres", "-gpu_memory_target", "8", "--name", "Fair"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
    assert "unused" in shown
    plans = data.plans(LABELS, "Fair")
    assert plans["planned_for"] == {"trainers": names, "gpu_memory_target_in_gb": 8.0}
    assert list(plans["configurations"]) == ["3d_fullres"]
    assert plans["experiment_planner_used"] == "ExperimentPlanner"


def test_patches_that_windows_would_pad_are_passed_over(data: PlannedData, simple_memory: list[Geometry]) -> None:
    dataset = write_dataset(data, 851, (1, 1, 1), (128, 128, 128))
    trainer = "nnUNetTrainerSwinUNETR"
    planning = plan_dataset(dataset, [trainer], target=40, configurations=["3d_fullres"])
    each = by_name(planning)["3d_fullres"]
    assert any("128 x 128 x 128 fits too" in note for note in planning.notes)
    network = find_trained_network(trainer)
    plans = json.loads(planning.path.read_text())["configurations"]["3d_fullres"]
    strides = plans["architecture"]["arch_kwargs"]["strides"]
    assert padding_waste(network.build(Geometry.from_strides(each.patch_size, strides), 1, 3)) <= MOST_WASTE
    assert padding_waste(network.build(Geometry.from_strides((128,) * 3, [(2, 2, 2)] * 5), 1, 3)) > MOST_WASTE


def test_a_residual_plan_stays_one(data: PlannedData, simple_memory: list[Geometry]) -> None:
    plans = data.plans(LABELS)
    plans |= {"experiment_planner_used": "nnUNetPlannerResEncM", "plans_name": "Res"}
    (data.preprocessed / LABELS / "Res.json").write_text(json.dumps(plans))
    planning = plan_dataset("801", ["nnUNetTrainer"], target=8, base_name="Res", configurations=["2d"])
    written = json.loads(planning.path.read_text())
    network = written["configurations"]["2d"]["architecture"]["network_class_name"]
    assert network.endswith("ResidualEncoderUNet")
    assert written["experiment_planner_used"] == "nnUNetPlannerResEncM"


def test_plans_are_never_replaced_unasked(data: PlannedData, simple_memory: list[Geometry]) -> None:
    command = ["plan", "-d", "801", "-tr", PECA_NET, "-gpu_memory_target", "8", "-c", "2d"]
    cli.main(command)
    path = data.preprocessed / LABELS / "nnUNetPlans_PECANet_8G.json"
    path.write_text("mine")
    refuse("choose another name with --name, or write it anew with --overwrite", *command)
    assert path.read_text() == "mine"
    cli.main([*command, "--overwrite"])
    assert json.loads(path.read_text())["plans_name"] == path.stem
    refuse("exists: choose another name with --name.", *command, "--name", "nnUNetPlans", "--overwrite")


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("No patch of", ["-d", "801", "-tr", PECA_NET, "-gpu_memory_target", "0.5"]),
        ("does not serve 3d_fullres", ["-d", "801", "-tr", "nnUNetTrainerSwinUNet", "-c", "3d_fullres"]),
        ("gets no configuration '3d_lowres'", ["-d", "801", "-tr", PECA_NET, "-c", "3d_lowres"]),
        ("has not looked at dataset 899 yet", ["-d", "899", "-tr", PECA_NET]),
        ("no trainer nnUNetTrainerPECA:", ["-d", "801", "-tr", "nnUNetTrainerPECA"]),
        ("There is no file", ["-d", "801", "-tr", PECA_NET, "-p", "Missing"]),
        ("is not a size", ["-d", "801", "-tr", PECA_NET, "-gpu_memory_target", "-1"]),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    data: PlannedData, simple_memory: list[Geometry], words: str, arguments: list[str]
) -> None:
    target = [] if "-gpu_memory_target" in arguments else ["-gpu_memory_target", "8"]
    refuse(words, "plan", *arguments, *target)
    assert not list((data.preprocessed / LABELS).glob("*_*G.json"))


def test_variants_plan_with_their_own_batch() -> None:
    network = find_trained_network("nnUNetTrainer_bs5_noAMP")
    assert (network.batch_size, network.mixed_precision, network.recipe) == (5, False, NNUNET)


class CountedPredictions(Affordable):
    """Memory that grows nearly in proportion to the batch, and how often it was asked for."""

    asked = 0

    def total(self, geometry: Geometry, channels: int, batch_size: int) -> int:
        self.asked += 1
        return 700_000_000 + 61_234_567 * batch_size + 40_000_000 * (batch_size % 2)


def test_a_large_batch_is_found_in_a_few_predictions() -> None:
    affordable = CountedPredictions([], target=24, num_classes=3, regions=False)
    geometry = Geometry.from_strides((32, 32), [(2, 2)])
    batch = affordable.largest_batch(geometry, 1, 2, 2000)
    assert affordable.asked < 12
    assert batch > 400
    assert affordable.total(geometry, 1, batch) <= affordable.target_bytes
    assert affordable.total(geometry, 1, batch + 1) > affordable.target_bytes
    # No more than nnU-Net allows.
    assert affordable.largest_batch(geometry, 1, 2, 100) == 100
