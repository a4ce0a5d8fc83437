"""What computes a network: torch, onnxruntime or OpenVINO, all behind what nnU-Net's predictor asks of a network.

nnU-Net's own code does the rest, whatever computes: windows, their weights, mirroring, the mean over folds.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.inference.checkpoints import build_network
from nnunetv2_ext.inference.trained import TrainedModel

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

__all__ = [
    "BACKENDS",
    "Session",
    "choose_backend",
    "choose_device",
    "load_predictor",
    "open_session",
    "require_package",
]

BACKENDS = ("torch", "onnxruntime", "openvino")
# Endings of the files of a backend, the first one its own.
ENDINGS = {"onnxruntime": (".onnx",), "openvino": (".xml", ".onnx")}
# What brings a package that is not always there.
_EXTRAS = {"onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}


class Session(Protocol):
    """A graph that is ready to compute."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Compute the logits (1, C, *window) of a window (1, channels, *window), both float32."""


def require_package(name: str) -> Any:
    """Import a package of an extra.

    Raises:
        UserError: if it is not installed; says how to install it.
    """
    try:
        return __import__(name)
    except ImportError as error:
        if find_spec(name) is not None:
            # As a library of it for which there is no memory.
            raise UserError(f"{name} is installed and cannot be loaded ({error}): install it again.") from error
        raise UserError(
            f"{name} is not installed: install it with `pip install {name}`, or this package with its extra "
            f"[{_EXTRAS[name]}]."
        ) from error


def choose_backend(model: TrainedModel, wanted: str | None) -> str:
    """Choose the backend of a model: what its files are made for, unless the user names another that takes them.

    Raises:
        UserError: if the backend does not take the model's files.
    """
    if not model.graphs:
        if wanted not in (None, "torch"):
            raise UserError(
                f"{wanted} computes files that `nnUNetv2_ext export` wrote, and {model.source} holds checkpoints: "
                "export it first, or leave out --backend."
            )
        return "torch"
    ending = model.graphs[0].suffix
    backend = wanted or next(name for name, endings in ENDINGS.items() if endings[0] == ending)
    if ending not in ENDINGS.get(backend, ()):
        takers = " or ".join(name for name, endings in ENDINGS.items() if ending in endings)
        raise UserError(f"{backend} does not take {model.graphs[0]}: choose --backend {takers}.")
    return backend


def choose_device(backend: str, wanted: str | None) -> torch.device:
    """Choose where to compute: on a GPU that the backend can use, otherwise on the CPU.

    Args:
        backend: one of `BACKENDS`.
        wanted: `cpu`, `cuda` or `mps`; None: what is there.

    Raises:
        UserError: if the backend cannot use the device that the user names.
    """
    usable = {"cpu": True, "cuda": False, "mps": False}
    if backend == "torch":
        usable |= {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    elif backend == "onnxruntime":
        providers = require_package("onnxruntime").get_available_providers()
        usable["cuda"] = torch.cuda.is_available() and "CUDAExecutionProvider" in providers
    if wanted is None:
        return torch.device("cuda" if usable["cuda"] else "cpu")
    if not usable[wanted]:
        there = " and ".join(name for name, found in usable.items() if found)
        raise UserError(f"{backend} finds no device {wanted} here: choose --device {there}.")
    return torch.device(wanted)


def open_session(path: Path, backend: str, device: torch.device) -> Session:
    """Open a graph for computing, with as many threads as torch uses.

    Raises:
        UserError: if the file is damaged or the backend is not installed.
    """
    threads = torch.get_num_threads()
    try:
        return (_open_onnxruntime if backend == "onnxruntime" else _open_openvino)(path, device, threads)
    except UserError:
        raise
    except Exception as error:
        # Each backend has types of errors of its own for damaged files.
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be opened by {backend} ({reason}): export the model again.") from error


def _open_onnxruntime(path: Path, device: torch.device, threads: int) -> Session:
    onnxruntime = require_package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    providers = ["CUDAExecutionProvider"] * (device.type == "cuda") + ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise UserError("onnxruntime cannot use the GPU here, for the reason that it prints: choose --device cpu.")
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]


def _open_openvino(path: Path, _device: torch.device, threads: int) -> Session:
    openvino = require_package("openvino")
    # Without the hint OpenVINO computes in bfloat16 where a CPU can.
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}

    def compile_graph() -> Any:
        core = openvino.Core()
        return core.compile_model(core.read_model(path), "CPU", settings)

    # Whichever thread compiles gets a stack for its signals, which is freed with OpenVINO's last object. If that is in
    # another thread, the next signal ends the process: so a thread compiles that takes no signals and then ends.
    with ThreadPoolExecutor(1) as thread:
        compiled = thread.submit(compile_graph).result()
    # Its output is the request's own memory, which the next window takes.
    return lambda image: np.array(compiled(image)[0])


class GraphNetwork(nn.Module):
    """Graphs in place of a network, one per fold; nnU-Net's predictor chooses one by loading its "weights"."""

    def __init__(self, graphs: Sequence[Path], open_graph: Callable[[Path], Session]) -> None:
        """Open the first graph; the others are opened when they are asked for.

        Args:
            graphs: one file per fold.
            open_graph: opens a file.
        """
        super().__init__()
        self.graphs = tuple(graphs)
        self.open_graph = open_graph
        self.sessions = {0: open_graph(self.graphs[0])}
        self.fold = 0

    @property
    def states(self) -> list[dict[str, int]]:
        """What to give to `load_state_dict`, one per fold."""
        return [{"fold": fold} for fold in range(len(self.graphs))]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Choose the fold that computes from now on."""
        self.fold = int(state_dict["fold"])
        if self.fold not in self.sessions:
            self.sessions[self.fold] = self.open_graph(self.graphs[self.fold])

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of one window."""
        logits = self.sessions[self.fold](x.detach().float().cpu().numpy())
        return torch.from_numpy(logits).to(x.device)


def load_predictor(
    model: TrainedModel, *, backend: str | None = None, device: torch.device | None = None, **settings: Any
) -> nnUNetPredictor:
    """Load a model for prediction; all its folds are averaged.

    Args:
        model: see `nnunetv2_ext.inference.models.read_model`.
        backend: one of `BACKENDS`; by default what the model's files are made for.
        device: where to compute; by default what `choose_device` finds.
        settings: further ones of nnU-Net's predictor.

    Raises:
        UserError: if the weights do not fit the network, or the backend does not take the model.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    backend = choose_backend(model, backend)
    device = choose_device(backend, None) if device is None else device
    planned = model.planned
    # nnU-Net tells what it does not do on a CPU, whatever its settings are.
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(device=device, **settings)
    predictor.manual_initialization(
        build_network(model) if backend == "torch" else None,
        planned.plans_manager,
        planned.configuration_manager,
        list(model.weights),
        model.dataset_json,
        model.trainer,
        model.mirroring_axes,
    )
    if backend != "torch":
        # After it: with nnUNet_compile=t it hands the network to torch's compiler.
        graphs = GraphNetwork(model.graphs, lambda path: open_session(path, backend, device))
        predictor.network, predictor.list_of_parameters = graphs, graphs.states
    return predictor
