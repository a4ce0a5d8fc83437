"""Compilation in parts: equal blocks of a network are compiled once, instead of once per block.

`torch.compile` writes a whole network into one graph, and traces, differentiates and compiles twenty equal blocks
twenty times. Networks of many equal blocks name their parts instead; each is compiled for itself, and equal ones share
what was compiled. Between the parts little is computed, and Python runs it. Names of parameters stay as they are.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["compile_parts"]


def compile_parts(parts: Sequence[Callable[..., Any]], **options: Any) -> None:
    """Compile methods of modules, in place.

    Args:
        parts: methods, each bound to its module, which has parameters, and written in its class, not inherited from
            torch's. Those of equal modules, of one class and with tensors of the same shapes, share the compiled code.
        options: further arguments of `torch.compile`.
    """
    compiled: dict[Hashable, Callable[..., Any]] = {}
    part: Any
    for part in parts:
        module, function = part.__self__, part.__func__
        key = (function, repr(module), _shapes(module))
        if key not in compiled:
            compiled[key] = _compile(function, options)
        setattr(module, function.__name__, functools.partial(compiled[key], module))


def _compile(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Compile a method so that its backward pass is in the precision that it has when nothing is compiled.

    torch writes the backward pass into a graph under the autocast that is on where the graph begins, though a training
    leaves autocast before it calls `backward`: products of regions in float32 would get gradients in half precision,
    where those of PECA-Net's attention are zero. Autocast is therefore left before the graph begins, and entered in it.
    """
    plain = torch.compile(_own_code(function), dynamic=False, **options)
    mixed = torch.compile(_own_code(_call_under_autocast), dynamic=False, **options)

    def run(module: nn.Module, *inputs: Any) -> Any:
        kind = next(module.parameters()).device.type
        if not torch.is_autocast_enabled(kind):
            return plain(module, *inputs)
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            return mixed(kind, dtype, function, module, *inputs)

    return run


def _call_under_autocast(kind: str, dtype: torch.dtype, function: Callable[..., Any], *inputs: Any) -> Any:
    with torch.autocast(kind, dtype=dtype):
        return function(*inputs)


def _own_code(function: Any) -> Callable[..., Any]:
    """Copy a function with its code object.

    torch counts the variants (training or not, batch sizes) that it has compiled of one code object, and stops at a
    limit: modules that differ get code objects of their own.
    """
    own = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    own.__kwdefaults__ = function.__kwdefaults__
    return own


def _shapes(module: nn.Module) -> Hashable:
    return tuple(
        (name, tuple(tensor.shape), tensor.dtype) for name, tensor in module.state_dict(keep_vars=True).items()
    )
