"""A model for FLARE's laptop: graphs of OpenVINO, and a look at whether a window of it fits into 8 GB."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.inference.export import export_graphs
from nnunetv2_ext.inference.sample import take_sample
from nnunetv2_ext.inference.trained import TrainedModel

__all__ = ["MEMORY_GIB", "require_memory", "write_graphs"]

# Of the challenge's `docker container run -m 8G`.
MEMORY_GIB = 8.0
# What Python, torch, OpenVINO and the system's loader say where there is no more.
_OF_MEMORY = re.compile(r"alloc|memory|map segment", re.IGNORECASE)


def write_graphs(model: TrainedModel, folder: Path) -> None:
    """Write the network of each fold for OpenVINO into an existing folder, compared with torch first.

    Raises:
        UserError: if OpenVINO or ONNX is not installed, or a graph gives other numbers than torch.
    """
    with tempfile.TemporaryDirectory() as work:
        graphs = Path(work) / "graphs"
        export_graphs(model, graphs, take_sample(model), openvino=True)
        for path in sorted([*graphs.glob("*.xml"), *graphs.glob("*.bin")]):
            shutil.move(path, folder / path.name)


def require_memory(folder: Path, model: TrainedModel, memory: float = MEMORY_GIB) -> None:
    """Compute a window as the container will, in a process that gets no more than this memory.

    The limit is one of addresses, which is stricter than the container's limit of pages in use. Where the system knows
    no such limit (Windows), the window is computed without it.

    Args:
        folder: folder with the graphs.
        model: which they are of.
        memory: memory in GiB.

    Raises:
        UserError: if the window cannot be computed.
    """
    # Absolute, because the process is started elsewhere.
    options = ["--model", str(folder.resolve()), "--load-only", "--memory", f"{memory:g}"]
    command = [sys.executable, "-m", "nnunetv2_ext.submission.predict", *options]
    # The parent of the package, so that the process finds it wherever it is started.
    package = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = f" ({said[-1][:200].rstrip('.')})" if said else ""
        # A process that the system ends has a negative code.
        if done.returncode > 0 and not _OF_MEMORY.search(done.stderr):
            raise UserError(
                f"The files for OpenVINO cannot be used{reason}: export the model, and try it with predict."
            )
        window = " x ".join(map(str, model.window))
        raise UserError(
            f"A window of {model.configuration} ({window} voxels) cannot be computed in {memory:g} GB of memory, which "
            f"is all that the laptop has{reason}: submit a model with smaller windows, or a 2D one."
        )
