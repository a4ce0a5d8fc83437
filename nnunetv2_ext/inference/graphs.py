"""Files that `nnUNetv2_ext export` writes: a network as a graph, and as its metadata all that prediction needs.

ONNX keeps the metadata as `metadata_props`; OpenVINO takes them over, as `framework` of its `rt_info`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.inference.backends import ENDINGS, require_package
from nnunetv2_ext.inference.checkpoints import choose_folds
from nnunetv2_ext.inference.trained import TrainedModel

__all__ = ["FORMAT", "find_graphs", "graph_metadata", "read_graphs"]

FORMAT = "nnunetv2_ext 1"


class _Graph(NamedTuple):
    metadata: Mapping[str, str]
    input_shape: tuple[Any, ...]
    output_shape: tuple[Any, ...]


def graph_metadata(model: TrainedModel, fold: str) -> dict[str, str]:
    """Return what a graph says of itself: for prediction, and for readers without nnU-Net.

    Args:
        model: trained model with its checkpoints.
        fold: that the graph computes.
    """
    configuration = model.planned.configuration_manager
    return {
        "format": FORMAT,
        "trainer": model.trainer,
        "configuration": model.configuration,
        "fold": fold,
        "plans": json.dumps(model.plans_json),
        "dataset_json": json.dumps(model.dataset_json),
        "mirroring_axes": json.dumps(model.mirroring_axes),
        # The rest is in the plans as well.
        "channels": json.dumps(model.channels),
        "labels": json.dumps(model.dataset_json["labels"]),
        "spacing": json.dumps(list(configuration.spacing)),
        "window": json.dumps(model.window),
        "transpose": json.dumps(model.plans_json["transpose_forward"]),
        "normalisation": json.dumps(
            {
                "schemes": list(configuration.normalization_schemes),
                "only_inside_nonzero_mask": list(configuration.use_mask_for_norm),
                "intensities": model.plans_json.get("foreground_intensity_properties_per_channel", {}),
            }
        ),
    }


def find_graphs(source: Path, backend: str | None = None) -> tuple[Path, ...]:
    """Find the graphs of a model: the file itself, or `fold_*.onnx` or `fold_*.xml` of a folder; none if it has none.

    Args:
        source: file or folder.
        backend: chooses where a folder holds both kinds; by default ONNX comes first.
    """
    endings = ENDINGS.get(backend or "", (".onnx", ".xml"))
    if source.suffix in (".onnx", ".xml") and not source.is_dir():
        return (source,)
    if source.is_dir() and not (source / "plans.json").is_file():
        for ending in endings:
            found = tuple(sorted(source.glob(f"fold_*{ending}")))
            if found:
                return found
    return ()


def read_graphs(source: Path, graphs: Sequence[Path], *, folds: Sequence[str] | None = None) -> TrainedModel:
    """Read what graphs say of themselves.

    Args:
        source: that the user named.
        graphs: files, see `find_graphs`.
        folds: which to take; by default all.

    Raises:
        UserError: if a file is missing, damaged, of another origin, or does not belong to the others.
    """
    models: dict[str, TrainedModel] = {}
    for path in graphs:
        model = _read_graph(path)
        if models and model.plans_json != next(iter(models.values())).plans_json:
            raise UserError(f"{path} is of another model than {graphs[0]}: keep models in folders of their own.")
        if model.folds[0] in models:
            raise UserError(f"{path} and another file of {source} are both fold {model.folds[0]}: remove one.")
        models[model.folds[0]] = model
    chosen = choose_folds(list(models), folds, f"is not in {source}")
    first = models[chosen[0]]
    return TrainedModel(
        first.trainer,
        first.configuration,
        chosen,
        first.plans_json,
        first.dataset_json,
        first.mirroring_axes,
        source=source,
        graphs=tuple(models[fold].graphs[0] for fold in chosen),
    )


def _read_graph(path: Path) -> TrainedModel:
    if not path.is_file():
        raise UserError(f"There is no file {path}: name a model that `nnUNetv2_ext export` wrote.")
    graph = _open(path)
    if graph.metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} does not say how its images are prepared: only files of `nnUNetv2_ext export` can be predicted "
            "with."
        )
    try:
        plans, dataset_json = (json.loads(graph.metadata[name]) for name in ("plans", "dataset_json"))
        axes = json.loads(graph.metadata["mirroring_axes"])
        model = TrainedModel(
            graph.metadata["trainer"],
            graph.metadata["configuration"],
            (graph.metadata["fold"],),
            plans,
            dataset_json,
            None if axes is None else tuple(axes),
            source=path,
            graphs=(path,),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"The metadata of {path} are damaged ({error!r}): export the model again.") from error
    planned = model.planned
    wanted = (1, planned.input_channels, *model.window), (1, planned.num_classes, *model.window)
    if (graph.input_shape, graph.output_shape) != wanted:
        raise UserError(
            f"{path} maps {graph.input_shape} to {graph.output_shape}, where its plans say {wanted[0]} and "
            f"{wanted[1]}: export the model again."
        )
    return model


def _open(path: Path) -> _Graph:
    try:
        return _open_onnx(path) if path.suffix == ".onnx" else _open_openvino(path)
    except UserError:
        raise
    except Exception as error:
        # Parsers have types of errors of their own.
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is cut short or damaged ({reason}): copy it again, or export the model again.") from (
            error
        )


def _open_onnx(path: Path) -> _Graph:
    if find_spec("onnxruntime") is None and find_spec("openvino") is not None:
        return _open_openvino(path)  # which reads the format too
    onnxruntime = require_package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    return _Graph(session.get_modelmeta().custom_metadata_map, tuple(image.shape), tuple(logits.shape))


def _open_openvino(path: Path) -> _Graph:
    model = require_package("openvino").Core().read_model(path)
    (image,), (logits,) = model.inputs, model.outputs
    names = ("format", "trainer", "configuration", "fold", "plans", "dataset_json", "mirroring_axes")
    metadata = {
        name: str(model.get_rt_info(["framework", name]).value)
        for name in names
        if model.has_rt_info(["framework", name])
    }
    return _Graph(metadata, tuple(image.get_shape()), tuple(logits.get_shape()))
