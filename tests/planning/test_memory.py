"""The predicted memory of a training step: what was measured on a GPU, and the rules behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunetv2_ext import cli
from nnunetv2_ext.architectures.geometry import Geometry, default_network
from nnunetv2_ext.architectures.layers.recompute import checkpoint
from nnunetv2_ext.planning.compiled import compile_on_paper
from nnunetv2_ext.planning.cuda import CudaSemantics
from nnunetv2_ext.planning.memory import COMPILED_CAUTION, CUBLAS_BYTES, Ledger, predict_step
from nnunetv2_ext.planning.networks import find_trained_network
from nnunetv2_ext.trainers.recipes import NNUNET, TRANSFORMER
from tests.narrow import narrow_networks

MEBIBYTE = 2**20
PLAN_3D = Geometry.from_strides((64, 128, 128), [(1, 2, 2), *[(2, 2, 2)] * 4])
PLAN_2D = Geometry.from_strides((512, 512), [(2, 2)] * 7)
SMALL = Geometry.from_strides((16, 32, 32), [(2, 2, 2), (2, 2, 2)])

# max_memory_allocated of nnU-Net's own trainer, 14 classes, on an H100 with torch 2.11.
MEASURED = [
    pytest.param(PLAN_3D, 2, False, 3052, id="3D"),
    pytest.param(PLAN_2D, 12, False, 5153, id="2D"),
    pytest.param(PLAN_3D, 2, True, 3110, id="3D, compiled", marks=pytest.mark.slow),
    pytest.param(PLAN_2D, 12, True, 5239, id="2D, compiled", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("geometry", "batch_size", "compiled", "mib"), MEASURED)
def test_nnunets_own_network_is_predicted_as_it_was_measured(
    geometry: Geometry, batch_size: int, compiled: bool, mib: int
) -> None:
    memory = find_trained_network("nnUNetTrainer").predict(geometry, 1, 14, batch_size, compiled=compiled)
    assert 0.95 < memory.peak / MEBIBYTE / mib < 1.15


class Line(nn.Module):
    """Two linear layers on vectors, of which every byte can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 1024, 1, bias=False), nn.Conv2d(1024, 2, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_the_optimiser_counts() -> None:
    """A network of large weights and small maps takes its most in the optimiser's step."""

    class Heavy(Line):
        def __init__(self) -> None:
            super().__init__()
            self.heavy = nn.Parameter(torch.empty(64 * MEBIBYTE))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.heavy[0]

    for recipe, copies in ((NNUNET, 4), (TRANSFORMER, 5)):
        memory = predict_step(Heavy, input_channels=1, num_classes=2, patch_size=(8, 8), batch_size=1, recipe=recipe)
        # Weights, states, gradients and a copy for the time of the step, 256 MiB each, and two per cent for caution.
        assert memory.peak / MEBIBYTE == pytest.approx(copies * 256 * 1.02 + CUBLAS_BYTES / MEBIBYTE, rel=0.01)
        assert memory.weights / MEBIBYTE == pytest.approx((copies - 2) * 256, rel=0.01)


def test_memory_grows_by_the_same_for_each_sample_and_halves_under_autocast() -> None:
    def peak(batch_size: int, mixed_precision: bool = True) -> int:
        return predict_step(
            Line,
            input_channels=1,
            num_classes=2,
            patch_size=(256, 256),
            batch_size=batch_size,
            recipe=NNUNET,
            mixed_precision=mixed_precision,
        ).peak

    one, two, three = (peak(batch) for batch in (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=1e-3)
    # The map of 1024 channels is kept, in half precision, and its gradient comes beside it.
    assert (two - one) / (1024 * 256 * 256 * 2) == pytest.approx(3, abs=0.35)
    assert (peak(2, False) - peak(1, False)) / (two - one) == pytest.approx(2, rel=0.1)


def test_the_ledger_counts_what_is_alive() -> None:
    with FakeTensorMode(), Ledger() as ledger:
        x = torch.empty(MEBIBYTE)
        assert ledger.live == 4 * MEBIBYTE
        view = x.view(2, -1)[0]
        y = view + 1
        assert ledger.live == 6 * MEBIBYTE
        del y
        small = torch.empty(1)
        assert ledger.live == 4 * MEBIBYTE + 512
        del x, view, small
        assert ledger.live == 0
    assert ledger.peak == 6 * MEBIBYTE


def test_precisions_are_those_of_cuda() -> None:
    with FakeTensorMode():
        x, weight = torch.empty(1, 4, 8, 8), nn.Parameter(torch.empty(4, 4, 3, 3))
        semantics = CudaSemantics()
        with semantics:
            with semantics.forward_pass():
                half = F.conv2d(x, weight)
                assert half.dtype == torch.float16
                assert F.group_norm(half, 2).dtype == torch.float32
                assert F.instance_norm(half).dtype == torch.float16
                assert F.interpolate(half, scale_factor=2).dtype == torch.float32
                assert half.softmax(1).dtype == torch.float32
                assert F.leaky_relu(half).dtype == torch.float16
                with torch.autocast("cpu", enabled=False):
                    assert F.conv2d(x, weight).dtype == torch.float32
            assert F.conv2d(x, weight).dtype == torch.float32


@pytest.mark.parametrize("biased", [False, True])
def test_attention_keeps_no_scores(biased: bool) -> None:
    tokens = 4096
    with FakeTensorMode(), Ledger() as ledger:
        query, key, value = (torch.empty(1, 1, tokens, 32, requires_grad=True) for _ in range(3))
        bias = torch.empty(1, 1, tokens, tokens) if biased else None
        before = ledger.live
        semantics = CudaSemantics()
        with semantics, semantics.forward_pass():
            output = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        assert output.dtype == torch.float16
        scores = tokens * tokens * 2
        # The bias itself is copied to half precision.
        assert ledger.live - before < (1.5 if biased else 0.5) * scores


@pytest.mark.parametrize("trainer", ["PECANet", "SwinUNETR", "NNFormerRecA", "DCAUNet", "DCA"])
def test_every_family_is_predicted(trainer: str) -> None:
    geometry = replace(SMALL, network=default_network(SMALL))
    with narrow_networks():
        network = find_trained_network(f"nnUNetTrainer{trainer}")
        one, two = (network.predict(geometry, 1, 3, batch_size) for batch_size in (1, 2))
    assert one.weights == two.weights
    assert one.weights < one.peak < two.peak


def test_a_compiled_step_is_predicted() -> None:
    network = find_trained_network("nnUNetTrainer")
    eager, compiled = (network.predict(SMALL, 1, 3, 2, compiled=compiled) for compiled in (False, True))
    assert eager.weights == compiled.weights
    assert compiled.peak == pytest.approx(eager.peak, rel=0.1)


def _courses(build: Callable[[], nn.Module], *size: int) -> list[Sequence[int]]:
    """Return the bytes at each operator, and at the end, of a compiled forward and backward pass."""
    courses: list[Sequence[int]] = []
    semantics = CudaSemantics()
    with FakeTensorMode(), semantics:
        module, x = build(), torch.empty(*size)
        with semantics.forward_pass():
            result = compile_on_paper(module, courses.append)(x)
        result.sum().backward()
    return courses


class Attention(nn.Module):
    """Attention whose queries, keys and values are views of one map."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(64, 3 * 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def test_a_compiled_backward_pass_frees_no_more_than_the_forward_pass_kept() -> None:
    forward, backward = _courses(Attention, 2, 4096, 64)
    assert forward[-1] > 0
    assert min(backward) > -forward[-1]


def test_a_compiled_convolution_has_its_workspace() -> None:
    forward, _ = _courses(lambda: nn.Conv2d(8, 16, 3, padding=1, bias=False), 2, 8, 64, 64)
    voxel_bytes = 2 * 64 * 64 * 2
    # What comes in, in half precision, and what goes out; then both once more, rearranged.
    assert max(forward) == pytest.approx(2 * (8 + 16) * voxel_bytes, rel=0.02)
    # The workspace goes with the kernel; the image in half precision is kept for the backward pass.
    assert forward[-1] == pytest.approx((8 + 16) * voxel_bytes, rel=0.05)


def test_what_is_written_by_an_index_is_computed_as_it_goes() -> None:
    """The gradient of an interpolation is four writes by an index, of which none needs its values in memory."""

    class Upsampling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)

    _, backward = _courses(lambda: nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), Upsampling()), 2, 8, 64, 64)
    small = 2 * 16 * 64 * 64 * 4
    # Written are four small maps; the gradient of the large one, which comes in, is four of them.
    assert max(backward) < 8 * small


class Chain(nn.Module):
    """Blocks of convolutions, which the partitioner does not recompute by itself."""

    def __init__(self, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.first, self.last = nn.Conv2d(1, 32, 1), nn.Conv2d(32, 2, 1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(32, 128, 1), nn.Conv2d(128, 32, 1)) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + (checkpoint(block, x) if self.checkpointing else block(x))
        return self.last(x)


def test_what_is_ordered_to_be_recomputed_is_not_kept_by_a_compiled_step() -> None:
    """The maps of 128 channels of all blocks but one are given up, 2 bytes per voxel."""
    size, batch_size = (128, 128), 4

    def peak(checkpointing: bool) -> int:
        return predict_step(
            lambda: Chain(checkpointing),
            input_channels=1,
            num_classes=2,
            patch_size=size,
            batch_size=batch_size,
            recipe=NNUNET,
            compiled=True,
        ).peak

    wide = 128 * batch_size * math.prod(size) * 2
    assert peak(False) - peak(True) == pytest.approx((1 + COMPILED_CAUTION) * 5 * wide, rel=0.2)


@pytest.mark.slow
def test_info_says_how_sure_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a network with 3D pooling, which torch decomposes by a module that nobody else may have imported."""
    size = ["--patch", "16", "32", "32", "--strides", "2,2,2", "2,2,2"]
    with narrow_networks():
        cli.main(["info", "-tr", "nnUNetTrainerDCAUNet", *size, "--batch", "2", "--compiled"])
    lines = " ".join(capsys.readouterr().out.split())
    step, compiled = lines.split("training step ")[1].split(" recipe ")[0].split(" compiled ")
    assert step.endswith("(predicted, error 10% or less)")
    assert compiled.endswith("(predicted, error 15% or less in the few that were measured)")
