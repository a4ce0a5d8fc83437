"""Window attention's backends: which one is chosen, and what happens where the fused kernel fails."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from nnunetv2_ext.architectures.layers import attention_backends
from nnunetv2_ext.architectures.layers.window_attention import WindowLayout, WindowPositionBias
from nnunetv2_ext.architectures.layers.window_stage import WindowStage

LAYOUTS = {
    "shifted": WindowLayout((9, 8), (7, 7), (3, 3), mask_padding=True),
    "3d": WindowLayout((8, 7, 9), (7, 7, 7), (3, 0, 3)),
    "unshifted": WindowLayout((8, 8), (4, 4), (0, 0)),
}


@pytest.fixture
def fused_on_cpu(monkeypatch):
    """Let the CPU stand for a device with the fused kernel, whose check starts afresh."""
    monkeypatch.setattr(attention_backends, "FUSED_ON", frozenset({"cpu"}))
    attention_backends._compare_fused.cache_clear()
    yield
    attention_backends._compare_fused.cache_clear()


def attend(backend: str, layout: WindowLayout, dtype: torch.dtype, device: str = "cpu", size: int = 16) -> list[Tensor]:
    """Return the output of a backend and the gradients of queries, keys, values and the table, in float64."""
    generator = torch.Generator().manual_seed(0)
    position = WindowPositionBias(2, layout)
    with torch.no_grad():
        position.table.normal_(generator=generator)
    position = position.to(device)
    position.backend = backend
    shape = (2 * math.prod(layout.counts), 2, math.prod(layout.window), size)
    query, key, value, change = torch.randn(4, *shape, generator=generator).to(device, dtype)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    output = position(*inputs)
    gradients = torch.autograd.grad(output, [*inputs, position.table], change)
    return [x.double().cpu() for x in (output, *gradients)]


def largest_difference(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("size", [16, 12])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_backends_agree_where_channels_do_not_fit_the_kernel(layout: WindowLayout, size: int) -> None:
    results = [attend(name, layout, torch.float64, size=size) for name in ("operator", "fused", "plain")]
    assert largest_difference(results[1], results[0]) <= 1e-12
    assert largest_difference(results[2], results[0]) <= 1e-12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, whose own kernel is what it tests")
@pytest.mark.parametrize("dtype", attention_backends.TOLERANCES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_fused_kernel_on_a_gpu(layout: WindowLayout, dtype: torch.dtype) -> None:
    """Chosen without a warning, and as precise as its numbers are; several windows at a time, and in parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attention_backends.choose_backend(torch.empty(0, device="cuda", dtype=dtype)) == "fused"
    expected = attend("operator", layout, torch.float32)
    for size in (16, 12):
        expected = attend("operator", layout, torch.float32, size=size)
        got = attend("fused", layout, dtype, "cuda", size)
        assert largest_difference(got, expected) <= 2 * attention_backends.TOLERANCES[dtype]


def test_the_device_chooses(fused_on_cpu) -> None:
    query = torch.empty(0)
    assert attention_backends.choose_backend(query) == "fused"
    assert attention_backends.choose_backend(query.to("meta")) == "operator"
    assert attention_backends.choose_backend(query.double()) == "operator"


@pytest.mark.parametrize("fault", ["fails", "differs", "is not finite"])
def test_a_fused_kernel_that_does_not_work_is_left(fault: str, fused_on_cpu, monkeypatch) -> None:
    """With one warning, however often it is asked for."""
    right = attention_backends._fused

    def wrong(query: Tensor, *others) -> Tensor:
        if fault == "fails":
            raise RuntimeError("No available kernel. Aborting execution.\nmore")
        return right(query * (1.1 if fault == "differs" else math.nan), *others)

    monkeypatch.setattr(attention_backends, "_fused", wrong)
    words = {"fails": "kernel: No available kernel. Aborting execution.", "differs": "difference to the plain"}
    with pytest.warns(RuntimeWarning, match=words.get(fault, "difference .* is inf")) as caught:
        assert [attention_backends.choose_backend(torch.empty(0)) for _ in range(2)] == ["operator"] * 2
    assert len(caught) == 1


def test_the_check_leaves_random_numbers_alone_and_works_in_any_mode(fused_on_cpu) -> None:
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention_backends.choose_backend(torch.empty(0)) == "fused"
    assert torch.equal(torch.get_rng_state(), state)


def test_the_check_is_made_once_and_not_compiled(fused_on_cpu, monkeypatch) -> None:
    """Compiled as one graph, with the check's answer in it and nothing of the check."""
    asked = []
    compare = attention_backends._largest_difference
    monkeypatch.setattr(attention_backends, "_largest_difference", lambda *what: asked.append(what) or compare(*what))
    stage = WindowStage(16, 2, grid=(8, 8), window=(4, 4), shift=(2, 2), drop_path=(0.0, 0.0), reca=True)
    x = torch.randn(2, 8, 8, 16)
    expected = stage(x)
    assert asked == [(torch.device("cpu"), torch.float32)]
    attention_backends._compare_fused.cache_clear()
    torch._dynamo.reset()
    got = torch.compile(stage, backend="aot_eager", fullgraph=True)(x)
    assert asked == [(torch.device("cpu"), torch.float32)] * 2
    assert torch.allclose(got, expected, atol=1e-5)


def test_large_gradients_of_the_bias_are_written_in_parts(monkeypatch) -> None:
    """Only where there is such a gradient, and in parts of nearly one size."""
    layout = WindowLayout((35, 7), (7, 7), (0, 0))
    monkeypatch.setattr(attention_backends, "FUSED_SCORES_AT_A_TIME", 2 * 4 * 49**2)
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention",
        lambda query, *others, **more: seen.append(len(query)) or attention(query, *others, **more),
    )
    attend("fused", layout, torch.float32)
    assert seen == [4, 4, 2]
    with torch.no_grad():
        position = WindowPositionBias(2, layout)
        position.backend = "fused"
        position(*torch.randn(3, 10, 2, 49, 16))
    assert seen[3:] == [10]
