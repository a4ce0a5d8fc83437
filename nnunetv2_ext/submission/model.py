"""A trained model of nnU-Net, reduced to what prediction needs.

Source of the layout: nnU-Net's results folder, and the zip file that `nnUNetv2_export_model_to_zip` makes of it.

    DATASET/TRAINER__PLANS__CONFIGURATION/dataset.json
                                          plans.json
                                          fold_0/checkpoint_final.pth   also fold_1, ..., fold_all
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.trainers import find_trainer
from nnunetv2_ext.weights.files import load_without_executing

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

__all__ = ["CHECKPOINT", "ExportedModel", "export_model", "load_predictor"]

CHECKPOINT = "checkpoint_final.pth"
# Of a checkpoint; the rest, above all the optimiser's state, is for training and makes up more than half of the file.
_KEPT_KEYS = ("network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes")


@dataclass(frozen=True)
class ExportedModel:
    """What was exported.

    Attributes:
        trainer, plans, configuration: by which nnU-Net knows the model.
        folds: in the order in which their logits are averaged.
        dataset: name of the training data.
        dataset_json: of the training data.
    """

    trainer: str
    plans: str
    configuration: str
    folds: tuple[str, ...]
    dataset: str
    dataset_json: dict[str, Any]

    @property
    def labels(self) -> str:
        """List what the numbers of a segmentation mean, as in `1 liver, 2 kidney`."""
        named = {name: value for name, value in self.dataset_json["labels"].items() if name != "ignore"}
        order = self.dataset_json.get("regions_class_order")
        if order is not None:
            # Regions have the order of `labels`; the background is none of them.
            named = dict(zip((name for name, value in named.items() if value != 0), order, strict=True))
        return ", ".join(f"{value} {name}" for name, value in named.items() if value != 0)


def export_model(
    source: Path, target: Path, *, folds: Sequence[str] | None = None, checkpoint: str = CHECKPOINT
) -> ExportedModel:
    """Write a model into an empty folder in nnU-Net's layout, without what only training needs.

    Args:
        source: folder of a trained model, or a zip file of nnU-Net with one.
        target: existing, empty folder.
        folds: which to take, as `0` or `all`; by default all numbered ones, or `all` where there is no other.
        checkpoint: file name in each fold's folder; it is called `checkpoint_final.pth` in the result.

    Raises:
        UserError: if something is missing, the model is a cascade's second stage, or its trainer is of another package.
    """
    model = _find_model(source)
    for name in ("dataset.json", "plans.json"):
        with (model / name).open("rb") as file, (target / name).open("wb") as copy:
            shutil.copyfileobj(file, copy)
    found = None
    chosen = _choose_folds(model, source, folds, checkpoint)
    for fold in chosen:
        path = target / f"fold_{fold}" / CHECKPOINT
        path.parent.mkdir()
        with (model / f"fold_{fold}" / checkpoint).open("rb") as file, path.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        content = load_without_executing(path)
        missing = [key for key in _KEPT_KEYS[:3] if key not in content]
        if missing:
            raise UserError(f"{checkpoint} of fold {fold} in {source} has no {missing[0]}: it is not nnU-Net's.")
        content = {key: content[key] for key in _KEPT_KEYS if key in content}
        torch.save(content, path)
        made_by = content["trainer_name"], content["init_args"]["configuration"]
        if found not in (None, made_by):
            raise UserError(f"The folds of {source} are of several trainers or configurations: export one model alone.")
        found = made_by
    trainer, configuration = found
    _find_trainer(trainer)
    plans, dataset_json = _read_model_files(target)
    _require_single_stage(plans, dataset_json, configuration)
    return ExportedModel(trainer, plans["plans_name"], configuration, chosen, plans["dataset_name"], dataset_json)


def _find_model(source: Path) -> Path | zipfile.Path:
    """Find the folder with plans.json and dataset.json."""
    if source.is_dir():
        missing = [name for name in ("plans.json", "dataset.json") if not (source / name).is_file()]
        if missing:
            raise UserError(
                f"{source} has no {missing[0]}: name the folder of a trained model, "
                "as $nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION."
            )
        return source
    if not source.exists():
        raise UserError(f"There is no {source}: name the folder of a trained model, or its zip file.")
    if not zipfile.is_zipfile(source):
        raise UserError(f"{source} is neither a folder nor a zip file: name a model's folder, or export it again.")
    names = zipfile.ZipFile(source).namelist()
    found = [
        name.removesuffix("plans.json")
        for name in names
        if name.endswith("/plans.json") and name.replace("plans.json", "dataset.json") in names
    ]
    if len(found) != 1:
        held = f"{len(found)} models ({', '.join(found)})" if found else "no model with plans.json and dataset.json"
        raise UserError(f"{source} holds {held}: export one configuration with nnUNetv2_export_model_to_zip -c.")
    return zipfile.Path(source, found[0])


def _choose_folds(
    model: Path | zipfile.Path, source: Path, wanted: Sequence[str] | None, checkpoint: str
) -> tuple[str, ...]:
    there = sorted(
        entry.name.removeprefix("fold_")
        for entry in model.iterdir()
        if entry.name.startswith("fold_") and (entry / checkpoint).is_file()
    )
    if not there:
        raise UserError(f"No fold of {source} has a {checkpoint}: train to the end, or name another file with -chk.")
    if wanted is None:
        return tuple(fold for fold in there if fold != "all") or tuple(there)
    absent = [fold for fold in wanted if fold not in there]
    if absent:
        raise UserError(f"Fold {absent[0]} of {source} has no {checkpoint}; there are {', '.join(there)}.")
    return tuple(dict.fromkeys(wanted))


def _find_trainer(name: str) -> type:
    """Find a trainer of this package or of nnU-Net: no other package goes with the model.

    nnU-Net's own search is not asked first, because it imports all of nnU-Net's trainers, and start-up time counts.

    Raises:
        UserError: if it is of another package, or there is none.
    """
    trainer = find_trainer(name)
    if trainer is None:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        try:
            trainer = recursive_find_trainer_class_by_name(name)
        except RuntimeError as error:
            raise UserError(
                f"Neither nnU-Net nor nnunetv2_ext has the trainer {name} of this model: install the package that "
                "has it."
            ) from error
        if not trainer.__module__.startswith("nnunetv2."):
            raise UserError(
                f"The trainer {name} is of {trainer.__module__}, which would be missing in the container: submit a "
                "model of a trainer of nnU-Net or of nnunetv2_ext."
            )
    return trainer


def _read_model_files(model: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read plans.json and dataset.json of a model."""
    plans, dataset_json = (
        json.loads((model / name).read_text(encoding="utf-8")) for name in ("plans.json", "dataset.json")
    )
    return plans, dataset_json


def _require_single_stage(plans: dict[str, Any], dataset_json: dict[str, Any], configuration: str) -> None:
    from nnunetv2_ext.plans.configuration import read_configuration

    previous = read_configuration(plans, dataset_json, configuration).previous_stage
    if previous is not None:
        raise UserError(f"{configuration} needs the predictions of {previous}: submit a model that works alone.")


def load_predictor(model: Path, **settings: Any) -> nnUNetPredictor:
    """Load an exported model for prediction.

    Args:
        model: folder that `export_model` wrote; all its folds are averaged.
        settings: of nnU-Net's predictor.

    Raises:
        UserError: if the weights do not fit the network.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunetv2_ext.plans.configuration import read_configuration

    folds = [load_without_executing(path) for path in sorted(model.glob(f"fold_*/{CHECKPOINT}"))]
    if not folds:
        raise UserError(f"{model} has no fold with a {CHECKPOINT}: write it with nnUNetv2_ext submit flare.")
    plans, dataset_json = _read_model_files(model)
    planned = read_configuration(plans, dataset_json, folds[0]["init_args"]["configuration"])
    weights = [fold["network_weights"] for fold in folds]
    try:
        network = _find_trainer(folds[0]["trainer_name"]).build_network_architecture(
            planned.plans_manager,
            planned.configuration_manager,
            planned.input_channels,
            planned.num_classes,
            enable_deep_supervision=False,
        )
        for of_fold in weights:
            network.load_state_dict(of_fold)
    except (RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"The network of {model} cannot be built or loaded: {reason}.") from error
    # nnU-Net tells what it does not do on a CPU, whatever its settings are.
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(**settings)
    predictor.manual_initialization(
        network,
        planned.plans_manager,
        planned.configuration_manager,
        weights,
        dataset_json,
        folds[0]["trainer_name"],
        folds[0].get("inference_allowed_mirroring_axes"),
    )
    return predictor
