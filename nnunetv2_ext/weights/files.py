"""Reading checkpoints of others without executing anything in them, and writing our own whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.checkpoints import load_plain
from nnunetv2_ext.io.files import whole_file

__all__ = ["WeightsError", "load_without_executing", "read_checkpoint", "write_checkpoint"]

# Where training code keeps the tensors inside a checkpoint, in the order in which they are looked for.
_CONTAINERS = ("network_weights", "state_dict", "model_state_dict", "model")


class WeightsError(UserError):
    """Weights that cannot be used; the message says which tensor or file, and why."""


def load_without_executing(path: Path) -> Any:
    """Load what `torch.save` wrote, as long as it is tensors and plain Python and numpy values.

    Raises:
        WeightsError: if the file is missing, cut short, not a checkpoint, or holds other objects.
    """
    if not path.is_file():
        raise WeightsError(f"There is no file {path}: check its name.")
    try:
        return load_plain(path)
    except Exception as error:
        # torch raises a different type for each way in which a file can be damaged or unsafe.
        raise WeightsError(
            f"{path} cannot be read as a checkpoint of plain tensors ({type(error).__name__}): it may be cut short "
            "(copy it again) or hold other objects (save its state dict alone with torch.save)."
        ) from error


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint file, without executing anything that it holds.

    A prefix `module.` or `_orig_mod.`, which distributed training or compilation leaves, is taken off.

    Raises:
        WeightsError: if the file is missing, cut short, not a checkpoint, or holds no tensors.
    """
    path = Path(path)
    content = load_without_executing(path)
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = dict(content) if isinstance(content, Mapping) else {}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(
            f"{path} holds no tensors by name, on its top level or under {', '.join(_CONTAINERS)}: save the network's "
            "state dict with torch.save."
        )
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def write_checkpoint(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint through a temporary file beside it, so that an interruption leaves nothing half-written."""
    with whole_file(Path(path)) as partial:
        torch.save(dict(content), partial)
