"""Recomputation in the backward pass: memory for time, with the same numbers.

There are two reasons for it, and a function for each.

`recompute` is thrift: what is large and cheap (maps of scores, norms, activations) is computed again, so that a step
fits into less memory when nothing else plans it, that is when the operators run one by one. A compiler plans: torch's
partitioner decides by itself which cheap operators it computes again, and never repeats a product or a convolution.
While compiling or exporting, `recompute` is therefore a plain call. What it applies must not draw random numbers,
because not every device can be brought back to the state that its generator had: draw the mask of a dropout before,
with `layers.dropout.draw_mask`, and hand it in.

`checkpoint` is an order: whoever sets `checkpointing=True` wants the memory, and gets it under compilation too. It may
hold whole blocks, random numbers included; in the second run they are drawn from the state that the generators had
before the first one, on every kind of device.

Neither may change any state: a batch norm would update its running statistics twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
import torch.utils.checkpoint
from torch import Tensor

__all__ = ["checkpoint", "is_captured", "recompute"]

Result = TypeVar("Result")
RandomStates = dict[torch.device, Tensor]


def is_captured() -> bool:
    """Return whether the operators that run now are written into a graph: compiled, exported or traced."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _is_exporting() -> bool:
    # New in torch 2.7.
    return getattr(torch.compiler, "is_exporting", bool)()


def recompute(function: Callable[..., Result], *inputs: Any) -> Result:
    """Apply `function` so that the backward pass keeps `inputs` alone and computes the rest again.

    Args:
        function: draws no random numbers and changes no state.
        inputs: its arguments; tensors among them, also inside tuples and lists, get their gradients.
    """
    if not torch.is_grad_enabled() or is_captured():
        return function(*inputs)
    return torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def checkpoint(function: Callable[..., Result], *inputs: Any) -> Result:
    """Apply `function` as `recompute` does, also while compiling, and with the same random numbers in both runs.

    Args:
        function: changes no state.
        inputs: its arguments; tensors among them, also inside tuples and lists, get their gradients.
    """
    if not torch.is_grad_enabled() or torch.jit.is_tracing() or _is_exporting():
        return function(*inputs)
    if torch.compiler.is_compiling():
        return torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=False)
    # torch brings back the generators of the CPU and of CUDA alone; those of the other devices are left out silently.
    return torch.utils.checkpoint.checkpoint(
        function,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=partial(_same_random_numbers, {torch.device("cpu"), *_devices(inputs)}),
    )


def _devices(inputs: Iterable[Any]) -> Iterator[torch.device]:
    """Find the devices of tensors inside tuples and lists."""
    for value in inputs:
        if isinstance(value, Tensor):
            if value.device.type != "meta":
                yield value.device
        elif isinstance(value, (tuple, list)):
            yield from _devices(value)


def _generator(device: torch.device) -> tuple[Any, tuple[torch.device, ...]]:
    """Find torch's module that holds the state of a device's generator, and what its functions want besides."""
    if device.type == "cpu":
        return torch, ()
    return torch.get_device_module(device), () if device.type == "mps" else (device,)


def _read_states(devices: Iterable[torch.device]) -> RandomStates:
    states = {}
    for device in devices:
        module, arguments = _generator(device)
        states[device] = module.get_rng_state(*arguments)
    return states


def _write_states(states: RandomStates) -> None:
    for device, state in states.items():
        module, arguments = _generator(device)
        module.set_rng_state(state, *arguments)


def _same_random_numbers(
    devices: Iterable[torch.device],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Make the contexts of the first run and of the second one, which starts at the generators' states of now."""
    return nullcontext(), _RandomStates(_read_states(devices))


class _RandomStates(AbstractContextManager[None]):
    """Set the states of generators inside, and bring back those from before afterwards; may be entered again."""

    def __init__(self, states: RandomStates) -> None:
        self.states = states

    def __enter__(self) -> None:
        self.before = _read_states(self.states)
        _write_states(self.states)

    def __exit__(self, *_error: object) -> None:
        _write_states(self.before)
