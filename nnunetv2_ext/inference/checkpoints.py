"""A trained model in nnU-Net's layout, reduced to what prediction needs.

Source of the layout: nnU-Net's results folder, and the zip file that `nnUNetv2_export_model_to_zip` makes of it.

    DATASET/TRAINER__PLANS__CONFIGURATION/dataset.json
                                          plans.json
                                          fold_0/checkpoint_final.pth   also fold_1, ..., fold_all
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.inference.trained import TrainedModel
from nnunetv2_ext.trainers import find_trainer
from nnunetv2_ext.weights.files import load_without_executing

__all__ = ["CHECKPOINT", "build_network", "choose_folds", "export_model", "read_checkpoints"]

CHECKPOINT = "checkpoint_final.pth"
# Of a checkpoint; the rest, above all the optimiser's state, is for training and makes up more than half of the file.
_KEPT_KEYS = ("network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes")
# Packages whose classes plans may name: building a network calls them.
_TRUSTED = ("dynamic_network_architectures.", "nnunetv2_ext.architectures.", "torch.nn.")


def read_checkpoints(source: Path, *, folds: Sequence[str] | None = None, checkpoint: str = CHECKPOINT) -> TrainedModel:
    """Read a model from nnU-Net's layout; nothing that the files hold is executed.

    Args:
        source: folder of a trained model, or a zip file of nnU-Net with one.
        folds: which to take, as `0` or `all`; by default all numbered ones, or `all` where there is no other.
        checkpoint: file name in each fold's folder.

    Raises:
        UserError: if something is missing or damaged, or the trainer is of another package.
    """
    model = _find_model(source)
    plans, dataset_json = (_read_json(model / name, source) for name in ("plans.json", "dataset.json"))
    contents = {}
    for fold in _folds_with(model, source, folds, checkpoint):
        content = _load(model / f"fold_{fold}" / checkpoint)
        missing = [key for key in _KEPT_KEYS[:3] if not isinstance(content, dict) or key not in content]
        if missing:
            raise UserError(f"{checkpoint} of fold {fold} in {source} has no {missing[0]}: it is not nnU-Net's.")
        contents[fold] = {key: content[key] for key in _KEPT_KEYS if key in content}
    made_by = {(content["trainer_name"], content["init_args"]["configuration"]) for content in contents.values()}
    if len(made_by) > 1:
        raise UserError(f"The folds of {source} are of several trainers or configurations: export one model alone.")
    ((trainer, configuration),) = made_by
    _find_trainer(trainer)
    axes = next(iter(contents.values())).get("inference_allowed_mirroring_axes")
    return TrainedModel(
        trainer,
        configuration,
        tuple(contents),
        plans,
        dataset_json,
        None if axes is None else tuple(axes),
        source=source,
        weights=tuple(content["network_weights"] for content in contents.values()),
    )


def export_model(
    source: Path, target: Path, *, folds: Sequence[str] | None = None, checkpoint: str = CHECKPOINT
) -> TrainedModel:
    """Write a model into an empty folder in nnU-Net's layout, without what only training needs.

    Args:
        source: folder of a trained model, or a zip file of nnU-Net with one.
        target: existing, empty folder; each checkpoint is called `checkpoint_final.pth` in it.
        folds: see `read_checkpoints`.
        checkpoint: file name in each fold's folder.

    Raises:
        UserError: see `read_checkpoints`.
    """
    model = read_checkpoints(source, folds=folds, checkpoint=checkpoint)
    origin = _find_model(source)
    for name in ("dataset.json", "plans.json"):
        (target / name).write_bytes((origin / name).read_bytes())
    for fold, weights in zip(model.folds, model.weights, strict=True):
        path = target / f"fold_{fold}" / CHECKPOINT
        path.parent.mkdir()
        content = {
            "network_weights": weights,
            # The other arguments are the plans and the dataset.json, which lie beside.
            "init_args": {"configuration": model.configuration},
            "trainer_name": model.trainer,
            "inference_allowed_mirroring_axes": model.mirroring_axes,
        }
        torch.save(content, path)
    return model


def build_network(model: TrainedModel) -> nn.Module:
    """Build the network of a model, with the weights of its first fold.

    Raises:
        UserError: if the weights do not fit the network.
    """
    planned = model.planned
    _require_trusted(planned.configuration_manager, model.source)
    try:
        network = _find_trainer(model.trainer).build_network_architecture(
            planned.plans_manager,
            planned.configuration_manager,
            planned.input_channels,
            planned.num_classes,
            enable_deep_supervision=False,
        )
        for weights in reversed(model.weights):
            network.load_state_dict(weights)
    except (RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"The network of {model.source} cannot be built or loaded: {reason}.") from error
    return network


def choose_folds(there: Sequence[str], wanted: Sequence[str] | None, absent: str) -> tuple[str, ...]:
    """Choose among the folds of a model: all numbered ones by default, or `all` where there is no other.

    Args:
        there: folds that the model has.
        wanted: folds that the user names.
        absent: what a missing fold does not have, as in `of MODEL has no checkpoint_final.pth`.

    Raises:
        UserError: if a fold that the user names is missing.
    """
    if wanted is None:
        return tuple(fold for fold in there if fold != "all") or tuple(there)
    missing = [fold for fold in wanted if fold not in there]
    if missing:
        raise UserError(f"Fold {missing[0]} {absent}; there are {', '.join(there)}.")
    return tuple(dict.fromkeys(wanted))


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


def _read_json(path: Path | zipfile.Path, source: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path.name} of {source} is damaged ({error}): copy the model again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path.name} of {source} is not nnU-Net's: copy the model again.")
    return content


def _folds_with(
    model: Path | zipfile.Path, source: Path, wanted: Sequence[str] | None, checkpoint: str
) -> tuple[str, ...]:
    there = sorted(
        entry.name.removeprefix("fold_")
        for entry in model.iterdir()
        if entry.name.startswith("fold_") and (entry / checkpoint).is_file()
    )
    if not there:
        raise UserError(f"No fold of {source} has a {checkpoint}: train to the end, or name another file with -chk.")
    return choose_folds(there, wanted, f"of {source} has no {checkpoint}")


def _load(path: Path | zipfile.Path) -> Any:
    """Load a checkpoint; torch maps files, so one in an archive is unpacked for the moment."""
    if isinstance(path, Path):
        return load_without_executing(path)
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / path.name
        try:
            with path.open("rb") as file, unpacked.open("wb") as copy:
                shutil.copyfileobj(file, copy)
            return load_without_executing(unpacked)
        except zipfile.BadZipFile as error:
            raise UserError(f"{path} is damaged ({error}): copy the archive again.") from error
        except UserError as error:
            raise UserError(str(error).replace(str(unpacked), str(path))) from error


def _find_trainer(name: str) -> Any:
    """Find a trainer of this package or of nnU-Net.

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
            raise UserError(f"Neither nnU-Net nor nnunetv2_ext has the trainer {name} of this model.") from error
        if not trainer.__module__.startswith("nnunetv2."):
            raise UserError(
                f"The trainer {name} is of {trainer.__module__}, and models of nnU-Net and nnunetv2_ext alone are "
                "taken: predict with nnU-Net's own commands."
            )
    return trainer


def _require_trusted(configuration: Any, source: Path) -> None:
    """Raise if plans name a class of elsewhere: nnU-Net would import and call it."""
    settings = configuration.network_arch_init_kwargs
    named = [configuration.network_arch_class_name]
    for key in configuration.network_arch_init_kwargs_req_import or ():
        named += [settings.get(key)]
    for name in named:
        if name is not None and not str(name).startswith(_TRUSTED):
            raise UserError(
                f"The plans of {source} name {name}, which is neither of nnU-Net nor of nnunetv2_ext, and nothing else "
                "is called: predict with nnU-Net's own commands if you trust the model."
            )
