"""A trained model as a folder to be uploaded to a model hub: nothing in it says where it was trained."""

from __future__ import annotations

import json
import math
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import nnunetv2_ext
from nnunetv2_ext.catalog import BASELINE
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.inference.checkpoints import CHECKPOINT, build_network, export_model
from nnunetv2_ext.inference.trained import TrainedModel
from nnunetv2_ext.io.files import prepare_output, whole_folder
from nnunetv2_ext.io.tables import format_table
from nnunetv2_ext.submission.credits import citations, licences_of_start
from nnunetv2_ext.trainers import find_trainer
from nnunetv2_ext.trainers.names import parse_name

__all__ = ["submit_hub"]

_FOLDER_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
# Of dataset.json: what prediction reads, and what describes the data. Lists of files, which hold paths, are left out.
_KEPT = (
    *("channel_names", "modality", "labels", "regions_class_order", "file_ending", "overwrite_image_reader_writer"),
    *("numTraining", "name", "description", "reference", "licence", "license", "release", "tensorImageSize"),
)


def submit_hub(
    model: Path,
    output: Path,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = CHECKPOINT,
    licence: str | None = None,
    comparison: Path | None = None,
    overwrite: bool = False,
) -> tuple[TrainedModel, list[str]]:
    """Write a folder that a model hub can take: stripped checkpoints, safetensors beside them, and a model card.

    Args:
        model: folder of a trained model, or a zip file of nnU-Net with one.
        output: folder to write.
        folds: which to take, as `0` or `all`; by default all numbered ones, or `all` where there is no other.
        checkpoint: file name in each fold's folder.
        licence: licence of the weights, by the hub's identifiers, as `cc-by-4.0`.
        comparison: comparison.json of `nnUNetv2_ext compare`, whose means the card shows.
        overwrite: replace an earlier folder.

    Returns:
        What was exported, and remarks for the user, one sentence each.

    Raises:
        UserError: in one sentence, for whatever cannot be shared. Nothing is written then.
    """
    from safetensors.torch import save_file

    prepare_output(output, kind="an earlier model", holds=("plans.json", "README.md"), overwrite=overwrite)
    compared = "" if comparison is None else _describe_comparison(comparison)
    with whole_folder(output) as folder:
        exported = export_model(model, folder, folds=folds, checkpoint=checkpoint)
        network = build_network(exported)
        for fold, weights in zip(exported.folds, exported.weights, strict=True):
            # Tensors that share their memory are written out one by one.
            whole = {name: tensor.clone().contiguous() for name, tensor in weights.items()}
            about = {"trainer": exported.trainer, "configuration": exported.configuration, "format": "pt"}
            save_file(whole, folder / f"fold_{fold}" / Path(CHECKPOINT).with_suffix(".safetensors"), metadata=about)
        kept = {key: value for key, value in exported.dataset_json.items() if key in _KEPT}
        (folder / "dataset.json").write_text(json.dumps(kept, indent=4) + "\n", encoding="utf-8")
        scores = _read_scores(model, exported)
        (folder / "README.md").write_text(
            _write_card(exported, network, scores, licence=licence, compared=compared), encoding="utf-8"
        )
        _require_no_origin(folder, model)
    remarks = [] if licence else ["The card states no licence of the weights: choose one with --licence."]
    if not scores:
        remarks.append("No validation/summary.json was found, so the card has no scores.")
    return exported, remarks


def _read_scores(model: Path, exported: TrainedModel) -> dict[str, dict[str, Any]]:
    """Read what nnU-Net's validation of each fold found, where the model is a folder and has it."""
    found = {}
    for fold in exported.folds:
        path = model / f"fold_{fold}" / "validation" / "summary.json"
        if model.is_dir() and path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                scores = {name: float(one["Dice"]) for name, one in content["mean"].items()}
                foreground, cases = float(content["foreground_mean"]["Dice"]), len(content["metric_per_case"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path} is not nnU-Net's ({error!r}): validate the fold again with --val.") from error
            found[fold] = {"mean": scores, "foreground": foreground, "cases": cases}
    return found


def _describe_comparison(path: Path) -> str:
    """Write the section of a card that shows the means of a comparison.json."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            [f"`{name}`", one["n"], f"{one['mean']:.4f}", " to ".join(f"{end:.4f}" for end in one["ci95"] or ())]
            for name, one in content["trainers"].items()
        ]
        reference, metric = content["reference"], content["metric"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as comparison.json of nnUNetv2_ext compare ({error!r}): write it again."
        ) from error
    table = format_table(["trainer", "cases", f"mean {metric}", "95 % interval"], rows, markdown=True)
    return f"## Comparison\n\nWith `{reference}` as the reference, on the same cases:\n\n{table}\n\n"


def _write_card(
    model: TrainedModel, network: Any, scores: Mapping[str, dict[str, Any]], *, licence: str | None, compared: str
) -> str:
    from huggingface_hub import ModelCardData

    planned = model.planned.configuration_manager
    parsed = parse_name(model.trainer)
    entry = BASELINE if parsed is None else parsed[0]
    channels, dims = list(model.channels), len(planned.patch_size)
    modality = [word for word in ("CT", "MRI") if any(word.lower() in channel.lower() for channel in channels)]
    cases = model.dataset_json.get("numTraining")
    values = {
        "title": f"{entry.method} for {model.dataset}",
        "summary": f"A segmentation network for {dims}D images, trained with nnU-Net v2.",
        "network": f"{entry.method} (`{type(network).__name__}`); {entry.paper}",
        "trainer": model.trainer,
        "configuration": model.configuration,
        "plans": model.plans,
        "dataset": model.dataset,
        "cases": f"{cases} cases" if cases else "number of cases not stated",
        "channels": ", ".join(channels),
        "labels": model.labels,
        "window": " x ".join(map(str, planned.patch_size)),
        "spacing": " x ".join(f"{size:g}" for size in planned.spacing),
        "normalisation": ", ".join(planned.normalization_schemes),
        "folds": ", ".join(model.folds),
        "folds_argument": " ".join(model.folds),
        "folds_python": ", ".join(fold if fold.isdigit() else f'"{fold}"' for fold in model.folds) + ",",
        "ending": model.dataset_json["file_ending"],
        "parameters": f"{sum(parameter.numel() for parameter in network.parameters()):,}",
        "validation": _validation_table(model, scores),
        "comparison": compared,
        "licences": "\n".join(
            f"- {line}"
            for line in (
                f"Weights: {licence or 'not stated'}.",
                f"Training data: {_licence_of_data(model)}.",
                *licences_of_start(entry, find_trainer(model.trainer), network),
                "Code of the network: Apache-2.0.",
            )
        ),
        "citations": "\n".join(f"- {line}" for line in citations(entry)),
        "version": version("nnunetv2_ext"),
    }
    data = ModelCardData(
        license=licence,
        library_name="nnunetv2",
        pipeline_tag="image-segmentation",
        tags=["nnU-Net", "nnunetv2_ext", "medical-imaging", "image-segmentation", f"{dims}D", *modality],
        metrics=["dice"],
    )
    template = files(nnunetv2_ext).joinpath("submission", "templates", "model_card.md").read_text(encoding="utf-8")
    return f"---\n{data.to_yaml()}\n---\n\n{Template(template).substitute(values)}"


def _licence_of_data(model: TrainedModel) -> str:
    stated = model.dataset_json.get("licence") or model.dataset_json.get("license")
    return str(stated).rstrip(".") if stated else "its owners' licence, which dataset.json does not state"


def _validation_table(model: TrainedModel, scores: Mapping[str, dict[str, Any]]) -> str:
    if not scores:
        return "No scores came with the model."
    names = {str(value): name for name, value in model.dataset_json["labels"].items() if name != "background"}
    # nnU-Net names a region by its labels, as a tuple.
    names |= {
        str(tuple(value)): name for name, value in model.dataset_json["labels"].items() if isinstance(value, list)
    }
    labels = list(dict.fromkeys(label for one in scores.values() for label in one["mean"]))
    rows = [
        [fold, one["cases"], _score(one["foreground"]), *(_score(one["mean"].get(label, math.nan)) for label in labels)]
        for fold, one in scores.items()
    ]
    header = ["fold", "cases", "mean", *(names.get(label, label) for label in labels)]
    table = format_table(header, rows, markdown=True)
    return f"Dice of nnU-Net's validation, on cases that the fold was not trained on (`all`: that it was).\n\n{table}"


def _score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _require_no_origin(folder: Path, model: Path) -> None:
    """Raise if a text says where the model was trained: files of people can hold anything."""
    origins = {str(Path.home()), str(model.resolve().parent), tempfile.gettempdir() + os.sep, socket.gethostname()}
    origins |= {os.environ[name] for name in _FOLDER_VARIABLES if os.environ.get(name)}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".json", ".md"):
            continue
        text = path.read_text(encoding="utf-8")
        found = next((origin for origin in sorted(origins) if len(origin) > 3 and origin in text), None)
        if found is not None:
            raise UserError(
                f"{path.name} would tell {found!r}, a name or folder of this machine: take it out of the model's "
                "dataset.json or plans.json first."
            )
