"""Prediction of a folder of images into another one, which can be killed and started again."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.inference.backends import choose_backend, choose_device, load_predictor
from nnunetv2_ext.inference.cases import Case, find_cases, find_previous
from nnunetv2_ext.inference.checkpoints import CHECKPOINT
from nnunetv2_ext.inference.graphs import find_graphs
from nnunetv2_ext.inference.models import read_model
from nnunetv2_ext.inference.predict import predict_cases
from nnunetv2_ext.inference.trained import TrainedModel
from nnunetv2_ext.io.files import alone, whole_file

__all__ = ["RECORD", "predict_folder"]

# Says in a folder of segmentations what made them.
RECORD = "prediction.json"
# Folder of the previous stage's segmentations, where it is predicted on the way.
PREVIOUS = "previous_stage"


def predict_folder(
    source: Path,
    images: Path,
    output: Path,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = CHECKPOINT,
    backend: str | None = None,
    device: str | None = None,
    mirroring: bool = True,
    step_size: float = 0.5,
    on_device: bool = True,
    previous_stage: Path | None = None,
    ahead: int = 1,
    overwrite: bool = False,
) -> list[str]:
    """Segment the images of a folder; cases that are finished are left as they are.

    Args:
        source: model, see `nnunetv2_ext.inference.models.read_model`.
        images: folder of `CASE_0000.nii.gz` and so on; nothing is written there.
        output: folder for `CASE.nii.gz`.
        folds: see `read_model`.
        checkpoint: file name in each fold's folder.
        backend: one of `nnunetv2_ext.inference.backends.BACKENDS`; by default what the model's files are made for.
        device: `cpu`, `cuda` or `mps`; by default a GPU that the backend can use, otherwise the CPU.
        mirroring: average over mirrored images, as nnU-Net does.
        step_size: step of the sliding window, as a share of the window.
        on_device: keep the sums of windows on the GPU.
        previous_stage: folder of the predictions of a cascade's previous stage, or its model.
        ahead: see `predict_cases`.
        overwrite: predict finished cases anew.

    Returns:
        What went wrong, one sentence per file.

    Raises:
        UserError: for whatever cannot be predicted at all. Nothing is written then.
    """
    if not 0 < step_size <= 1:
        raise UserError(f"The step size is {step_size}: choose a share of the window above 0 and up to 1.")
    if output.exists() and output.resolve() == images.resolve():
        raise UserError(f"{output} is the folder of the images: choose another folder with -o.")
    model = read_model(source, folds=folds, checkpoint=checkpoint, backend=backend)
    backend = choose_backend(model, backend)
    where = choose_device(backend, device)
    cases, others = find_cases(images, model)
    cascade = _check_previous(model, previous_stage, checkpoint)
    predictor = load_predictor(
        model,
        backend=backend,
        device=where,
        tile_step_size=step_size,
        use_mirroring=mirroring,
        perform_everything_on_device=on_device and where.type == "cuda",
        allow_tqdm=sys.stderr.isatty(),
    )
    record = {
        "trainer": model.trainer,
        "plans": model.plans,
        "configuration": model.configuration,
        "folds": list(model.folds),
        "weights": _fingerprint(model),
        "backend": backend,
        "mirroring": mirroring,
        "step_size": step_size,
        "previous_stage": None if previous_stage is None else str(previous_stage.resolve()),
    }
    with alone(output):
        open_ = _open_cases(output, cases, record, model, overwrite=overwrite)
        if cascade:
            assert previous_stage is not None
            if _is_model(previous_stage):
                settings: dict[str, Any] = {
                    "checkpoint": checkpoint, "device": device, "mirroring": mirroring, "step_size": step_size,
                    "on_device": on_device, "ahead": ahead, "overwrite": overwrite,
                }  # fmt: skip
                print(f"Previous stage, {model.planned.previous_stage}:", flush=True)
                wrong = predict_folder(previous_stage, images, output / PREVIOUS, **settings)
                if wrong:
                    raise UserError(wrong[0])
                print(f"{model.configuration}:", flush=True)
                previous_stage = output / PREVIOUS
            open_ = find_previous(open_, previous_stage, model.dataset_json["file_ending"])
        print(f"{len(open_)} of {len(cases)} cases with {backend} on {where}, {_threads(where)}", flush=True)
        failures = predict_cases(predictor, open_, output, ahead=ahead)
    return [*(f"{path} is left out: its name does not end in _0000 and the like." for path in others), *failures]


def _threads(device: torch.device) -> str:
    number = torch.get_num_threads()
    return f"{number} thread{'s' if number > 1 else ''}" if device.type == "cpu" else device.type


def _is_model(path: Path) -> bool:
    """Return whether a path is a model and no folder of predictions, by which nnU-Net leaves its plans.json too."""
    return path.is_file() or bool(find_graphs(path)) or any(path.glob("fold_*"))


def _check_previous(model: TrainedModel, previous_stage: Path | None, checkpoint: str) -> bool:
    """Return whether the model is a cascade's second stage, and raise unless what is given for the first one fits."""
    wanted = model.planned.previous_stage
    if wanted is None:
        if previous_stage is not None:
            raise UserError(f"{model.configuration} works alone: leave out --previous_stage.")
        return False
    if previous_stage is None:
        raise UserError(
            f"{model.configuration} needs the predictions of {wanted}: name their folder, or the model of {wanted}, "
            "with --previous_stage."
        )
    if not previous_stage.exists():
        raise UserError(f"There is no {previous_stage}: name the predictions or the model of {wanted}.")
    if _is_model(previous_stage):
        first = read_model(previous_stage, checkpoint=checkpoint)
        if first.configuration != wanted or first.dataset_json["labels"] != model.dataset_json["labels"]:
            raise UserError(
                f"{previous_stage} is a model of {first.dataset}, {first.configuration} ({first.labels}), and "
                f"{model.configuration} needs {wanted} of {model.dataset} ({model.labels}): name that one."
            )
    return True


def _open_cases(
    output: Path, cases: Sequence[Case], record: dict[str, Any], model: TrainedModel, *, overwrite: bool
) -> list[Case]:
    """Return the cases that are not finished, after noting in the folder what makes them.

    Raises:
        UserError: if segmentations of the same names were made by something else.
    """
    ending = model.dataset_json["file_ending"]
    finished = [case for case in cases if (output / f"{case.name}{ending}").exists()]
    if any(output.glob(f"[!.]*{ending}")) and not overwrite:
        try:
            made_by = json.loads((output / RECORD).read_text(encoding="utf-8"))
            other = [key for key in record if made_by.get(key) != record[key]]
        except (OSError, ValueError, AttributeError):
            other = ["program"]
        if other:
            raise UserError(
                f"{output} holds segmentations by another {', '.join(other).replace('_', ' ')}: choose "
                "another folder with -o, or predict them anew with --overwrite."
            )
    output.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for case in finished:
            (output / f"{case.name}{ending}").unlink()
        finished = []
    for case in cases:
        (output / f".partial-{case.name}{ending}").unlink(missing_ok=True)  # of a killed run
    # The last two as nnU-Net leaves them: evaluation and postprocessing ask for them.
    for name, content in ((RECORD, record), ("dataset.json", model.dataset_json), ("plans.json", model.plans_json)):
        with whole_file(output / name) as partial:
            partial.write_text(json.dumps(content, indent=4), encoding="utf-8")
    return [case for case in cases if case not in finished]


def _fingerprint(model: TrainedModel) -> str:
    """Return a number that other weights do not have."""
    found = hashlib.blake2b(digest_size=16)
    for weights in model.weights:
        for name, tensor in weights.items():
            found.update(name.encode())
            found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for graph in model.graphs:
        for path in (graph, graph.with_suffix(".bin")) if graph.suffix == ".xml" else (graph,):
            with path.open("rb") as file:
                while block := file.read(2**20):
                    found.update(block)
    return found.hexdigest()
