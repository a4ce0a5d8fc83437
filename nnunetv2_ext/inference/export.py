"""A trained network as a graph in a file, compared with torch before it is left there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.inference.backends import open_session, require_package
from nnunetv2_ext.inference.checkpoints import build_network
from nnunetv2_ext.inference.graphs import graph_metadata
from nnunetv2_ext.inference.sample import Sample
from nnunetv2_ext.inference.trained import TrainedModel
from nnunetv2_ext.io.files import prepare_file, prepare_output, whole_file, whole_folder

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

__all__ = ["OPSET", "TOLERANCE", "Comparison", "export_graphs"]

OPSET = 20
# Largest difference between a file's logits and torch's, as a part of the largest logit.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Comparison:
    """How a file compares with torch on one window.

    Attributes:
        path: the file.
        backend: that computed it.
        difference: largest one, as a part of the largest logit.
        labels: voxels whose label differs, as a part of all.
    """

    path: Path
    backend: str
    difference: float
    labels: float


def export_graphs(
    model: TrainedModel, output: Path, sample: Sample, *, openvino: bool = False, overwrite: bool = False
) -> list[Comparison]:
    """Write the network of each fold as a graph for one window, all files or none.

    Args:
        model: trained model with its checkpoints.
        output: file `MODEL.onnx` for a model of one fold; otherwise a folder, for `fold_0.onnx` and so on.
        sample: image on which each file must give what torch gives.
        openvino: write OpenVINO's `.xml` and `.bin` beside each file as well.
        overwrite: replace what is there.

    Returns:
        One comparison per file and backend.

    Raises:
        UserError: if a package is missing, the network cannot be exported, or a file gives other numbers than torch.
    """
    if model.graphs:
        raise UserError(f"{model.source} is an exported model already: name the trained model.")
    for package in ("onnx", "onnxscript", "onnxruntime", *(["openvino"] if openvino else [])):
        require_package(package)
    names = [f"fold_{fold}" for fold in model.folds]
    endings = (".bin", ".xml", ".onnx") if openvino else (".onnx",)
    found = []
    with _places(model, output, names, endings, overwrite=overwrite) as places:
        for index, (fold, name) in enumerate(zip(model.folds, names, strict=True)):
            written, final = places[name]
            network = build_network(model)
            network.load_state_dict(model.weights[index])
            network.eval()
            with torch.no_grad():
                expected = network(sample.window)[0]
            _write_onnx(network, sample.window, written, graph_metadata(model, fold))
            del network
            found.append(_compare(written, final, "onnxruntime", sample, expected, model))
            if openvino:
                _write_openvino(written)
                path, final_path = written.with_suffix(".xml"), final.with_suffix(".xml")
                found.append(_compare(path, final_path, "openvino", sample, expected, model))
    return found


@contextmanager
def _places(
    model: TrainedModel, output: Path, names: Sequence[str], endings: Sequence[str], *, overwrite: bool
) -> Iterator[dict[str, tuple[Path, Path]]]:
    """Yield for each fold where to write its ONNX file, and where it will be found."""
    if output.suffix != ".onnx":
        prepare_output(output, kind="an earlier export", holds=(), overwrite=overwrite)
        if output.exists() and not (list(output.glob("fold_*.onnx")) or not any(output.iterdir())):
            raise UserError(f"{output} is not an earlier export, and is left alone; choose another folder with -o.")
        with whole_folder(output) as folder:
            yield {name: (folder / f"{name}.onnx", output / f"{name}.onnx") for name in names}
        return
    if len(names) > 1:
        raise UserError(
            f"The model has the folds {', '.join(model.folds)}, each of which becomes a file: choose one with -f, or "
            f"name a folder for all of them, as -o {output.with_suffix('')}."
        )
    for ending in endings:
        prepare_file(output.with_suffix(ending), overwrite=overwrite)
    with ExitStack() as stack:
        # Those that are entered first take their places last: the .xml file comes after its .bin file.
        partial = [stack.enter_context(whole_file(output.with_suffix(ending))) for ending in reversed(endings)]
        yield {names[0]: (partial[0], output)}


def _write_onnx(network: nn.Module, window: Tensor, path: Path, metadata: dict[str, str]) -> None:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # on what becomes of Python's own checks of sizes
            program = torch.onnx.export(
                network,
                (window,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:
        # The exporter's errors come from torch, onnxscript and onnx.
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"torch {torch.__version__} cannot write this {type(network).__name__} as ONNX ({reason}): try it with "
            "torch 2.7 or later."
        ) from error
    assert program is not None
    _forget_origin(program.model)
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)


def _forget_origin(model: Any) -> None:
    """Take out where the exporter ran: it notes the lines of source code, with their folders, for each node."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()


def _write_openvino(path: Path) -> None:
    openvino = require_package("openvino")
    graph = openvino.Core().read_model(path)
    openvino.save_model(graph, path.with_suffix(".xml"), compress_to_fp16=False)


def _compare(
    path: Path, final: Path, backend: str, sample: Sample, expected: Tensor, model: TrainedModel
) -> Comparison:
    logits = torch.from_numpy(open_session(path, backend, torch.device("cpu"))(sample.window.numpy()))[0]
    labels = model.planned.plans_manager.get_label_manager(model.dataset_json)
    difference = float((logits - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"The file for {backend} gives other numbers than torch (the largest difference is {difference:.1e} of the "
            "largest logit), so nothing was written: try other versions of torch, onnxscript and this backend."
        )
    return Comparison(final, backend, difference, _different(labels, logits, expected))


def _different(labels: LabelManager, logits: Tensor, expected: Tensor) -> float:
    first, second = (torch.as_tensor(labels.convert_logits_to_segmentation(x)) for x in (logits, expected))
    return float((first != second).float().mean())
