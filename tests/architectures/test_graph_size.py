"""What torch.compile makes of networks at full width, without a GPU: sizes of the graphs, and work done twice.

A network is compiled as its trainer compiles it, whole or in parts, and its graphs are split into a forward and a
backward pass as inductor splits them. Sizes are held against nnU-Net's own network of the same plan.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.architectures.peca_net import PRESETS, PECANet
from nnunetv2_ext.catalog import BASELINE
from nnunetv2_ext.planning.networks import find_trained_network
from nnunetv2_ext.trainers.compilation import compile_parts

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
# Operators that move or compute nothing.
VIEWS = {
    "view",
    "_unsafe_view",
    "reshape",
    "permute",
    "transpose",
    "t",
    "expand",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "detach",
    "alias",
    "as_strided",
    "split",
    "split_with_sizes",
    "unbind",
    "lift_fresh",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
}


class Size(NamedTuple):
    nodes: int
    repeated: int


PLANS = {
    3: Geometry.from_strides((32, 64, 64), [(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)]),
    2: Geometry.from_strides((256, 256), [(2, 2)] * 6),
}


def name_of(target: Any) -> str:
    packet = getattr(target, "_overloadpacket", target)
    return getattr(packet, "__name__", str(packet))


def count_nodes(graph: torch.fx.GraphModule) -> Counter[str]:
    return Counter(
        name_of(node.target)
        for module in graph.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
        if node.op == "call_function"
    )


def measure(network: nn.Module, parts: list[Callable[..., Any]], patch: tuple[int, ...]) -> Size:
    forward: Counter[str] = Counter()
    backward: Counter[str] = Counter()

    def keep(into: Counter[str]) -> Callable[..., Any]:
        def compiler(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Any:
            into.update(count_nodes(graph))
            return make_boxed_func(graph.forward)

        return compiler

    torch._dynamo.reset()
    backend = aot_autograd(
        fw_compiler=keep(forward),
        bw_compiler=keep(backward),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    compile_parts(parts, backend=backend, fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = network.train()(torch.randn(1, 1, *patch))
        outputs = outputs if isinstance(outputs, list) else [outputs]
        loss = sum(output.float().square().mean() for output in outputs)
    loss.backward()
    # The backward pass of n products is 2 n products at most, and that of a convolution no convolution of the forward
    # pass; what is above that is computed again.
    products = sum(backward[name] for name in PRODUCTS) - 2 * sum(forward[name] for name in PRODUCTS)
    return Size(sum((forward + backward).values()), backward["convolution"] + max(0, products))


def measure_trainer(name: str, dims: int) -> Size:
    network: Any = find_trained_network(name).make(PLANS[dims], 1, 14)
    parts = network.parts_to_compile() if isinstance(network, SegmentationNetwork) else ()
    return measure(network, list(parts) or [network.forward], PLANS[dims].patch_size)


@functools.cache
def nodes_of_the_plans_own_network(dims: int) -> int:
    return measure_trainer(BASELINE.name, dims).nodes


@pytest.mark.slow
@pytest.mark.full_width
@pytest.mark.xdist_group("graph_size")
@pytest.mark.parametrize(
    ("trainer", "dims", "limit"),
    [
        ("nnUNetTrainerPECANet", 3, 2.5),
        ("nnUNetTrainerDCA", 3, 1.5),
        ("nnUNetTrainerNNFormerRecA", 3, 1.7),
        ("nnUNetTrainerSwinUNETRRecA", 3, 1.7),
        ("nnUNetTrainerSwinUNetRecA", 2, 1.7),
        ("nnUNetTrainerDATransUNetRecA", 2, 2.5),
    ],
)
def test_graphs_stay_small_and_repeat_nothing(trainer: str, dims: int, limit: float) -> None:
    size = measure_trainer(trainer, dims)
    assert size.repeated == 0
    assert size.nodes <= limit * nodes_of_the_plans_own_network(dims)


class CountOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace != "prim" and name_of(func) not in VIEWS
        return func(*args, **(kwargs or {}))


def test_a_step_of_peca_net_runs_few_operators() -> None:
    """Uncompiled, a GPU waits for Python: 50 microseconds an operator. The authors' network runs 5,315."""
    network = PECANet(**PRESETS["synapse"]).train()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(mode.from_tensor(parameter.detach()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)
    with mode, CountOperators() as operators:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = network(torch.randn(2, 1, *PRESETS["synapse"]["patch_size"])).float().mean()
        loss.backward()
    assert operators.count <= 3000
