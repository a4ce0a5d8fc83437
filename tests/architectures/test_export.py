"""Files that torch and ONNX write of a network: they need nothing of this package, and give the same numbers."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.architectures.nnformer import NNFormer
from nnunetv2_ext.architectures.swin_unet import SwinUNet
from nnunetv2_ext.architectures.swin_unetr import SwinUNETR
from nnunetv2_ext.catalog import TRAINERS
from tests.plan_matrix import PLANS, Plan

# torch warns that traces are old, and of each size that Python has checked while tracing.
pytestmark = [pytest.mark.usefixtures("narrow"), pytest.mark.filterwarnings("ignore")]

SMALLEST = {plan.name: plan for plan in PLANS if plan.name in ("E8", "D4")}
WINDOW_NETWORKS = (SwinUNETR, NNFormer, SwinUNet)
LOADER = """
import sys, torch
for name in ("trace", "export"):
    path = f"{sys.argv[1]}/{name}"
    network = torch.jit.load(path) if name == "trace" else torch.export.load(path).module()
    x, expected = torch.load(f"{sys.argv[1]}/numbers")
    assert (network(x) - expected).abs().max() <= 1e-4 * expected.abs().max(), name
assert not any(name.startswith("nnunetv2_ext") for name in sys.modules)
"""


def last_trainers() -> dict[type[SegmentationNetwork], type]:
    """Return the last trainer of each network in the catalog: it has what the others have."""
    trainers = [
        getattr(importlib.import_module(entry.module), entry.name) for entry in TRAINERS if not entry.pretrained
    ]
    return {trainer.network_class: trainer for trainer in trainers}


def cases(networks: tuple[type, ...] = ()) -> list:
    """Pair networks with the smallest plan of the largest dimension that they serve."""
    return [
        pytest.param(trainer, plan, id=f"{network.__name__}-{plan.name}")
        for network, trainer in last_trainers().items()
        for plan in SMALLEST.values()
        if (not networks or network in networks) and len(plan.patch_size) == network.served_dims[-1]
    ]


def build(trainer: type, plan: Plan) -> tuple[SegmentationNetwork, list[Tensor]]:
    """Build a network with biases and norms that are not at rest, and two inputs."""
    torch.manual_seed(0)
    network = trainer.build_network(plan.narrow(), 1, 3, deep_supervision=False).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1, 0.1)
    return network, list(torch.randn(2, 1, 1, *network.patch_size))


def agree(got: Tensor, expected: Tensor) -> bool:
    return bool((got - expected).abs().max() <= 1e-4 * expected.abs().max())


@pytest.mark.parametrize(
    ("trainer", "plan"),
    [*cases(), *(pytest.param(last_trainers()[one], SMALLEST["E8"]) for one in WINDOW_NETWORKS[:2])],
)
def test_trace_and_export_hold_only_operators_of_torch(trainer: type, plan: Plan) -> None:
    network, (first, second) = build(trainer, plan)
    with torch.no_grad():
        expected = network(second)
        trace = torch.jit.trace(network, first)
        program = torch.export.export(network, (first,))
        assert agree(trace(second), expected)
        assert agree(program.module()(second), expected)
    assert "nnunetv2_ext::" not in str(trace.inlined_graph)
    operators = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert not [operator for operator in operators if getattr(operator, "namespace", "") == "nnunetv2_ext"]


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize(("trainer", "plan"), cases(WINDOW_NETWORKS))
def test_onnx_gives_the_same_numbers(trainer: type, plan: Plan, dynamo: bool, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is in the extra `test`")
    network, (first, second) = build(trainer, plan)
    path = str(tmp_path / "network.onnx")
    torch.onnx.export(network, (first,), path, dynamo=dynamo, **({"verbose": False} if dynamo else {}))
    session = onnxruntime.InferenceSession(path)
    (got,) = session.run(None, {session.get_inputs()[0].name: second.numpy()})
    with torch.no_grad():
        assert agree(torch.from_numpy(got), network(second))


def test_saved_files_load_without_the_package(tmp_path: Path) -> None:
    network, (first, second) = build(last_trainers()[SwinUNETR], SMALLEST["D4"])
    with torch.no_grad():
        torch.save((second, network(second)), tmp_path / "numbers")
        torch.jit.trace(network, first).save(tmp_path / "trace")
        torch.export.save(torch.export.export(network, (first,)), str(tmp_path / "export"))
    # Without torch's loading of backends, through which the package registers itself.
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    command = [sys.executable, "-c", LOADER, str(tmp_path)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
