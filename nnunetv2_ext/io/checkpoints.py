"""Loading what `torch.save` wrote without executing anything that it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["load_plain"]


def _as(module: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that torch's list of safe names knows it by the module that an old pickle names."""

    def wrapper(*args: Any) -> Any:
        return function(*args)

    wrapper.__module__, wrapper.__name__, wrapper.__qualname__ = module, function.__name__, function.__name__
    return wrapper


def _harmless_numpy_names() -> list[Any]:
    """List what the logs inside a checkpoint of nnU-Net (version 1 or 2) are made of: numpy's numbers and arrays."""
    number: Any = np.float64(0).__reduce__()[0]
    array: Any = np.zeros(1).__reduce__()[0]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    functions = [_as(module, function) for module in modules for function in (number, array)]
    kinds = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}
    return [*functions, np.dtype, np.ndarray, *kinds]


def load_plain(path: Path, *, mmap: bool = False) -> Any:
    """Load tensors and plain Python and numpy values, onto the CPU.

    Args:
        path: path of the file.
        mmap: map the file, so that only the tensors that are used are read.

    Raises:
        Exception: if the file is damaged or holds other objects; torch has a different type for each way.
    """
    with torch.serialization.safe_globals(_harmless_numpy_names()):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
