"""Recomputation: what is kept, what is computed twice, and that random numbers are the same both times."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from nnunetv2_ext.architectures.layers.dropout import apply_mask, draw_mask
from nnunetv2_ext.architectures.layers.recompute import checkpoint, is_captured, recompute


class Block(nn.Module):
    """Two products with a dropout between, recomputed by one of the two functions."""

    def __init__(self, run, rate: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.dropout = nn.Dropout(rate)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self._compute, x)

    def _compute(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.calls += 1
        return self.second(self.dropout(self.first(x).sigmoid()).sigmoid())


def plainly(function, *inputs):
    return function(*inputs)


def gradients(block: Block, backward_passes: int = 1) -> list[Tensor]:
    """Return the sum of the gradients of some backward passes, and a number drawn after them."""
    torch.manual_seed(1)
    x = torch.ones(4, 8, requires_grad=True)
    loss = block(x).square().sum()
    for _ in range(backward_passes):
        loss.backward(retain_graph=True)
    return [x.grad, *(parameter.grad for parameter in block.parameters()), torch.rand(1)]


@pytest.mark.parametrize("backward_passes", [1, 2])
def test_checkpoint_draws_the_same_numbers_on_a_device_that_torch_does_not_bring_back(
    monkeypatch: pytest.MonkeyPatch, backward_passes: int
) -> None:
    torchs = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        torch.utils.checkpoint, "checkpoint", lambda *args, **kw: torchs(*args, **{**kw, "preserve_rng_state": False})
    )
    block = Block(checkpoint)
    expected = gradients(Block(plainly), backward_passes)
    assert all(torch.equal(*pair) for pair in zip(gradients(block, backward_passes), expected, strict=True))
    assert block.calls == 1 + backward_passes
    # The emulation is one: torch's own way gives other gradients there.
    unsafe = Block(functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=False))
    assert not all(torch.equal(*pair) for pair in zip(gradients(unsafe), gradients(Block(plainly)), strict=True))


def test_gradients_reach_tensors_inside_tuples() -> None:
    for run in (recompute, checkpoint):
        x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
        run(lambda x, rest: (x * rest[0]).exp(), x, (y,)).sum().backward()
        assert x.grad.ne(0).all()
        assert y.grad.ne(0).all()


def test_nothing_is_recomputed_without_gradients() -> None:
    for run in (recompute, checkpoint):
        with torch.no_grad():
            block = Block(run)
            block(torch.ones(4, 8))
            assert block.calls == 1


def count_products(run) -> tuple[int, int]:
    """Compile a block and count the matrix products of its forward and its backward graph."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    counts = []

    def compiler(graph_module, _inputs):
        counts.append(sum("mm" in str(node.target) for node in graph_module.graph.nodes if node.op == "call_function"))
        return graph_module.forward

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler, partition_fn=min_cut_rematerialization_partition)
    block = Block(run, rate=0.0)
    torch.compile(block._compute if run is plainly else block, backend=backend, fullgraph=True)(
        torch.ones(4, 8, requires_grad=True)
    ).sum().backward()
    return counts[0], counts[1]


def test_only_checkpoint_repeats_products_when_compiled() -> None:
    assert count_products(plainly) == count_products(recompute) == (2, 4)
    assert count_products(checkpoint) == (2, 5)


def test_capture_is_noticed() -> None:
    class Probe(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if is_captured() else x

    x = torch.zeros(1)
    assert Probe()(x) == 0
    assert torch.jit.trace(Probe(), (x,), check_trace=False)(x) == 1
    assert torch.export.export(Probe(), (x,)).module()(x) == 1
    torch._dynamo.reset()
    assert torch.compile(Probe(), backend="eager")(x) == 1


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_masks_are_dropout(rate: float) -> None:
    dropout, x = nn.Dropout(rate), torch.rand(100, 100) + 1
    mask = draw_mask(dropout, x.shape, x.device)
    dropped = apply_mask(x, mask, dropout)
    kept = dropped.ne(0)
    assert torch.allclose(dropped[kept], x[kept] / (1 - rate))
    assert kept.float().mean().item() == pytest.approx(1 - rate, abs=0.02)
    assert apply_mask(x, draw_mask(dropout.eval(), x.shape, x.device), dropout) is x
