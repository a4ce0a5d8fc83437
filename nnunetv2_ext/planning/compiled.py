"""Memory of compiled passes: what torch's partitioner keeps for the backward pass, and what Inductor has to write.

The network is traced to a forward and a backward graph by the same partitioner that `torch.compile` uses. Inductor
fuses element-wise operators into what reads them, so a result takes memory only if a kernel of a library reads it, or
it leaves the graph, or it is a reduction.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.utils.checkpoint
from functorch.compile import aot_function, make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, fx, nn
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._pytree import tree_leaves

from nnunetv2_ext.planning.cuda import find_workspace

__all__ = ["compile_on_paper", "while_compiling"]

BLOCK = 512
# Element-wise operators that Inductor puts into one expression before it writes the result down.
LONGEST_EXPRESSION = 30
_VIEWS = {
    *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "slice", "select", "squeeze"),
    *("unsqueeze", "as_strided", "detach", "alias", "split", "split_with_sizes", "unbind", "getitem", "movedim"),
}
_LIBRARY = {
    *("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention"),
    *("_scaled_dot_product_flash_attention_backward", "_scaled_dot_product_efficient_attention"),
    *("_scaled_dot_product_efficient_attention_backward", "sort"),
    *("max_pool3d_with_indices", "max_pool3d_with_indices_backward", "window_attention", "window_attention_backward"),
}
# What writes its result whoever reads it, but computes what it reads as it goes: reductions, and writes by an index.
_WRITING = {
    *("sum", "mean", "var_mean", "var", "amax", "amin", "argmax", "argmin", "prod", "any", "cumsum"),
    *("index_put", "_unsafe_index_put", "scatter", "scatter_add"),
}


def compile_on_paper(network: nn.Module, charge: Callable[[Sequence[int]], None]) -> Callable[[Tensor], Any]:
    """Trace a network of fake tensors; called, it gives its outputs and charges the memory of each pass.

    Args:
        network: its tensors are fake.
        charge: takes the course of a pass: the bytes that are alive at each of its operators, their workspaces
            included, and at its end, beyond those at its start.
    """
    # torch's decomposition of 3D pooling looks it up without importing it.
    importlib.import_module("torch._inductor.lowering")

    def compiler(graph: fx.GraphModule, _inputs: Sequence[Any]) -> Callable[..., Any]:
        course = _follow(graph)

        def run(*values: Any) -> Any:
            charge(course)
            return graph(*values)

        return make_boxed_func(run)

    named = {**dict(network.named_parameters()), **dict(network.named_buffers())}

    def forward(tensors: dict[str, Tensor], x: Tensor) -> Any:
        return torch.func.functional_call(network, tensors, (x,))

    traced = aot_function(
        forward,
        fw_compiler=compiler,
        bw_compiler=compiler,
        partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
        decompositions=select_decomp_table(),
    )
    return lambda x: traced(named, x)


@contextmanager
def while_compiling() -> Iterator[None]:
    """Let layers know that they are compiled, and mark what they order to be recomputed, as `torch.compile` does."""
    with (
        patch.object(torch.compiler, "_is_compiling_flag", True),
        patch.object(torch.utils.checkpoint, "checkpoint", partial(mark_recomputed, itertools.count())),
    ):
        yield


def mark_recomputed(numbers: Iterator[int], function: Callable[..., Any], *inputs: Any, **_options: Any) -> Any:
    """Apply a function in the place of torch's checkpoint; the partitioner keeps nothing of what it computes.

    Args:
        numbers: counter that gives each region its own number.
        function: what to apply.
        inputs: its arguments.
    """
    mode = get_proxy_mode()
    if mode is None:
        return function(*inputs)
    nodes = mode.tracer.graph.nodes
    before = len(nodes)
    result = function(*inputs)
    number = next(numbers)
    for node in itertools.islice(reversed(nodes), len(nodes) - before):
        node.meta["recompute"] = torch.utils.checkpoint.CheckpointPolicy.PREFER_RECOMPUTE
        node.meta["ac_graph_id"] = number
    return result


def _name(node: fx.Node) -> str:
    packet = getattr(node.target, "_overloadpacket", node.target)
    return getattr(packet, "__name__", str(packet))


def _bytes(node: fx.Node) -> int:
    tensors = [value for value in tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]
    return sum(-(-value.untyped_storage().nbytes() // BLOCK) * BLOCK for value in tensors)


def _follow(graph: fx.GraphModule) -> list[int]:
    """Return the bytes that are alive at each operator of a graph and at its end, beyond those at its start.

    What the forward pass kept for the backward pass is freed behind its last use; views of one map (query, key and
    value of one projection) are one. All other inputs are held by the caller: weights, the image, and, as long as the
    backward pass runs, the gradients that autograd called it with.
    """
    nodes = list(graph.graph.nodes)
    outputs = {node for node in tree_leaves(nodes[-1].args) if isinstance(node, fx.Node)}
    written: dict[fx.Node, frozenset[fx.Node]] = {}  # what each node reads of what is in memory
    length: dict[fx.Node, int] = {}
    owners: dict[int, fx.Node] = {}
    for node in sorted((node for node in nodes if node.op == "placeholder"), key=_is_saved):
        value = node.meta.get("val")
        owner = owners.setdefault(value.untyped_storage()._cdata, node) if isinstance(value, Tensor) else node
        written[node], length[node] = frozenset([owner]), 0

    def read_by_library(node: fx.Node) -> bool:
        return any(
            user.op == "output" or _name(user) in _LIBRARY or (_name(user) in _VIEWS and read_by_library(user))
            for user in node.users
        )

    order: list[tuple[fx.Node, frozenset[fx.Node], bool]] = []
    for node in nodes:
        if node.op in ("output", "placeholder"):
            continue
        if node.op != "call_function":
            written[node], length[node] = frozenset([node]), 0
            continue
        reads = frozenset().union(*(written.get(each, frozenset()) for each in node.all_input_nodes))
        size = 1 + sum(length.get(each, 0) for each in node.all_input_nodes)
        if _name(node) in _VIEWS:
            written[node], length[node] = reads, size - 1
            continue
        keeps = (
            _name(node) in _LIBRARY
            or _name(node) in _WRITING
            or read_by_library(node)
            or (size > LONGEST_EXPRESSION and len(node.users) > 1)
        )
        written[node], length[node] = (frozenset([node]), 0) if keeps else (reads, size)
        order.append((node, reads, keeps))
    last: dict[fx.Node, int] = {}
    for index, (_node, reads, keeps) in enumerate(order):
        if keeps:
            for each in reads:
                last[each] = index
    held = frozenset().union(*(written.get(node, frozenset()) for node in outputs)) if outputs else frozenset()
    frees: dict[int, list[fx.Node]] = {}
    for node, index in last.items():
        if node not in held and (node.op != "placeholder" or _is_saved(node)):
            frees.setdefault(index, []).append(node)
    live, course = 0, []
    for index, (node, _reads, keeps) in enumerate(order):
        if keeps:
            live += _bytes(node)
        course.append(live + find_workspace(node.target, *_values_of(node)))
        live -= sum(_bytes(each) for each in frees.get(index, ()))
        if keeps and node not in last and node not in held:
            live -= _bytes(node)
    return [*course, live]


def _values_of(node: fx.Node) -> tuple[list[Any], Any]:
    """Return the fake arguments of an operator, and its fake result."""
    arguments = [value.meta.get("val") if isinstance(value, fx.Node) else value for value in node.args]
    return arguments, node.meta.get("val")


def _is_saved(node: fx.Node) -> bool:
    """Return whether an input of a graph is what the forward pass computed and kept."""
    return not node.name.startswith(("primals", "tangents"))
