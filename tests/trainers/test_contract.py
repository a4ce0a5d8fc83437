"""Each trainer of the catalog inside nnU-Net: train, validate, save, resume, predict, for every kind of task."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_ext.catalog import TRAINERS, TrainerEntry
from nnunetv2_ext.trainers import find_trainer
from tests.planned_data import IGNORE, LABELS, REGIONS, PlannedData

pytestmark = pytest.mark.usefixtures("narrow")

CONFIGURATIONS = {2: "2d", 3: "3d_fullres"}


def kinds_of_task(entry: TrainerEntry) -> tuple[str, ...]:
    """Return the datasets for a trainer: labels for each; trainers of one network share the other kinds of task."""
    family = [
        other for other in TRAINERS if find_trainer(other.name).network_class is find_trainer(entry.name).network_class
    ]
    return (
        LABELS,
        *(dataset for number, dataset in enumerate((REGIONS, IGNORE)) if family[number % len(family)] is entry),
    )


TASKS = [
    pytest.param(
        entry, dataset, CONFIGURATIONS[dims], id=f"{entry.name.removeprefix('nnUNetTrainer')}-{dataset[11:]}-{dims}d"
    )
    for entry in TRAINERS
    for dataset in kinds_of_task(entry)
    for dims in entry.dims
]
LABEL_TASKS = [task for task in TASKS if task.values[1] == LABELS]


def make_trainer(data: PlannedData, name: str, dataset: str, configuration: str, **changes):
    """Make a trainer as nnU-Net's command does, with plans that may be changed."""
    plans = {**copy.deepcopy(data.plans(dataset)), "continue_training": False}
    dataset_json = {**data.dataset_json(dataset), **changes.pop("dataset_json", {})}
    plans.update(changes)
    return find_trainer(name)(plans, configuration, "all", dataset_json, torch.device("cpu"))


def one_epoch(trainer) -> list[float]:
    """Do what `run_training` does, for one step of training and of validation."""
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trained = trainer.train_step(next(trainer.dataloader_train))
    trainer.on_train_epoch_end([trained])
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        validated = trainer.validation_step(next(trainer.dataloader_val))
        trainer.on_validation_epoch_end([validated])
    trainer.on_epoch_end()
    return [float(trained["loss"]), float(validated["loss"])]


def predict(trainer, checkpoint: str, case: np.ndarray) -> torch.Tensor:
    """Predict as nnU-Net's command does: from the folder, in which the trainer's name is found in the checkpoint."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, ("all",), checkpoint)
    return predictor.predict_logits_from_preprocessed_data(torch.from_numpy(case))


@pytest.mark.parametrize(("entry", "dataset", "configuration"), TASKS)
def test_trains_saves_resumes_and_predicts(
    entry: TrainerEntry, dataset: str, configuration: str, nnunet_folders: PlannedData
) -> None:
    name = f"{entry.name}_2epochs_2iters"
    trainer = make_trainer(nnunet_folders, name, dataset, configuration)
    assert np.isfinite(one_epoch(trainer)).all()
    # The first epoch is the best so far, so nnU-Net has saved it.
    checkpoint = "checkpoint_best.pth"

    resumed = make_trainer(nnunet_folders, name, dataset, configuration)
    resumed.load_checkpoint(str(Path(trainer.output_folder) / checkpoint))
    assert resumed.current_epoch == 1
    for (key, before), after in zip(
        trainer.network.state_dict().items(), resumed.network.state_dict().values(), strict=True
    ):
        assert torch.equal(before, after), key
    assert np.isfinite(one_epoch(resumed)).all()

    case = np.zeros((1, 8, 40, 40), dtype=np.float32)
    logits = predict(trainer, checkpoint, case)
    assert logits.shape == (trainer.label_manager.num_segmentation_heads, 8, 40, 40)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("entry", "dataset", "configuration"), LABEL_TASKS)
def test_trains_the_second_stage_of_a_cascade(
    entry: TrainerEntry, dataset: str, configuration: str, nnunet_folders: PlannedData
) -> None:
    """The previous stage's segmentation comes as further input channels."""
    plans = nnunet_folders.plans(dataset)
    configurations = copy.deepcopy(plans["configurations"])
    configurations["first"] = {"inherits_from": configuration, "next_stage": "second"}
    configurations["second"] = {"inherits_from": configuration, "previous_stage": "first"}
    trainer = make_trainer(nnunet_folders, entry.name, dataset, "second", configurations=configurations)
    trainer.initialize()
    foreground = len(trainer.label_manager.foreground_labels)
    assert trainer.network.input_channels == 1 + foreground
    x = torch.randn(2, 1 + foreground, *trainer.configuration_manager.patch_size)
    output = trainer.network.train()(x)
    output = output[0] if isinstance(output, list) else output
    assert output.shape == (2, foreground + 1, *trainer.configuration_manager.patch_size)


@pytest.mark.parametrize(("entry", "dataset", "configuration"), LABEL_TASKS)
def test_fine_tunes_to_other_classes(
    entry: TrainerEntry, dataset: str, configuration: str, nnunet_folders: PlannedData, tmp_path: Path
) -> None:
    """nnU-Net's loader takes a checkpoint of another number of classes, and leaves the segmentation layers alone."""
    source = make_trainer(nnunet_folders, entry.name, dataset, configuration)
    source.initialize()
    for parameter in source.network.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    source.save_checkpoint(str(tmp_path / "source.pth"))
    labels = {"background": 0, **{f"class {number}": number for number in range(1, 8)}}
    target = make_trainer(nnunet_folders, entry.name, dataset, configuration, dataset_json={"labels": labels})
    target.initialize()
    load_pretrained_weights(target.network, str(tmp_path / "source.pth"))
    for key, parameter in target.network.named_parameters():
        assert parameter.eq(0.5).all().item() == (".seg_layers." not in key), key


@pytest.mark.parametrize(("entry", "dataset", "configuration"), LABEL_TASKS)
def test_loss_looks_at_each_output(
    entry: TrainerEntry, dataset: str, configuration: str, nnunet_folders: PlannedData
) -> None:
    trainer = make_trainer(nnunet_folders, entry.name, dataset, configuration)
    trainer.initialize()
    scales = trainer._get_deep_supervision_scales()
    assert (scales is not None) == entry.deep_supervision == trainer.enable_deep_supervision
    if scales is not None:
        assert scales[0] == [1] * len(trainer.configuration_manager.patch_size)
        assert len(scales) == len(trainer.loss.weight_factors) >= 2
        assert sum(trainer.loss.weight_factors) == pytest.approx(1)


@pytest.mark.parametrize("entry", TRAINERS, ids=lambda entry: entry.name)
class TestClass:
    """The class itself."""

    def test_is_found_by_nnunet_as_one_object(self, entry: TrainerEntry, monkeypatch) -> None:
        from nnunetv2_ext._register import DISCOVERY_FOLDER

        monkeypatch.setenv("nnUNet_extTrainer", DISCOVERY_FOLDER)
        for name in (entry.name, f"{entry.name}_3epochs_bs4"):
            found = recursive_find_trainer_class_by_name(name)
            assert found.__name__ == name
            assert found is recursive_find_trainer_class_by_name(name) is find_trainer(name)
            assert pickle.loads(pickle.dumps(found)) is found

    def test_is_what_the_catalog_says(self, entry: TrainerEntry) -> None:
        trainer = getattr(importlib.import_module(entry.module), entry.name)
        assert "__" not in entry.name
        assert trainer.served_dims() == entry.dims
        assert trainer.__doc__

    def test_settings_can_be_written_as_json(self, entry: TrainerEntry) -> None:
        from tests.plan_matrix import PLANS

        for plan in PLANS:
            if len(plan.patch_size) in entry.dims:
                json.dumps(find_trainer(entry.name).resolve_settings(plan.geometry()))


def test_optimiser_decays_what_the_network_allows(nnunet_folders: PlannedData) -> None:
    trainer = make_trainer(nnunet_folders, "nnUNetTrainerPECANet", LABELS, "3d_fullres")
    trainer.initialize()
    decayed, exempt = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (3e-5, 0.0)
    names = trainer.network.parameters_without_weight_decay()
    assert {id(p) for p in exempt["params"]} == {id(p) for n, p in trainer.network.named_parameters() if n in names}
    assert len(decayed["params"]) + len(exempt["params"]) == len(list(trainer.network.parameters()))
    trainer.lr_scheduler.step(500)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [pytest.approx(1e-2 * 0.5**0.9)] * 2


def test_outputs_of_peca_net_are_weighted_as_the_authors_did(nnunet_folders: PlannedData) -> None:
    trainer = make_trainer(nnunet_folders, "nnUNetTrainerPECANetDS", LABELS, "3d_fullres")
    trainer.initialize()
    assert trainer.loss.weight_factors == pytest.approx((4 / 7, 2 / 7, 1 / 7)[: len(trainer.output_strides)], rel=0.2)
    assert trainer.loss.weight_factors[-1] > 0


class TestRefusals:
    """What cannot work is refused before nnU-Net makes a folder."""

    @staticmethod
    def refuse(data: PlannedData, words: str, **changes) -> None:
        with pytest.raises(ValueError, match=words):
            make_trainer(data, "nnUNetTrainerPECANet", LABELS, "3d_fullres", **changes)
        assert not any(data.results.iterdir())

    @staticmethod
    def change_configuration(data: PlannedData, change) -> dict:
        configurations = copy.deepcopy(data.plans(LABELS)["configurations"])
        change(configurations["3d_fullres"])
        return {"configurations": configurations}

    def test_patch_that_strides_do_not_divide(self, nnunet_folders: PlannedData) -> None:
        def change(configuration: dict) -> None:
            configuration["patch_size"] = [configuration["patch_size"][0], 47, configuration["patch_size"][2]]

        changes = self.change_configuration(nnunet_folders, change)
        self.refuse(nnunet_folders, r"axis 1 has 47 voxels, which its strides, \d+ in all, do not divide", **changes)

    def test_plans_without_a_unet(self, nnunet_folders: PlannedData) -> None:
        def change(configuration: dict) -> None:
            configuration["architecture"] = {
                "network_class_name": "some.where.Net",
                "arch_kwargs": {"strides": [[1, 1, 1]]},
                "_kw_requires_import": [],
            }

        changes = self.change_configuration(nnunet_folders, change)
        self.refuse(nnunet_folders, "The plans name the network some.where.Net, whose settings do not hold", **changes)

    def test_dimension_that_the_network_does_not_serve(self, nnunet_folders: PlannedData, monkeypatch) -> None:
        monkeypatch.setattr(find_trainer("nnUNetTrainerPECANet").network_class, "served_dims", (2,))
        self.refuse(nnunet_folders, "serves 2D configurations only, and this one is 3D .*nnUNetTrainerPECANet")
