"""Measure how exact networks are under fp16, at their first weights and after a short training on the demo's phantoms.

Without a GPU, CUDA's autocast is emulated: products and convolutions take operands rounded to float16, add up in
float32 and round what they give; norms, softmax, sums and interpolation are in float32. The CPU's own autocast leaves
the latter in half precision. TF32 is off, so that float32 means float32.

Usage: python -m benchmarks.half_precision [TRAINER ...] [--steps N] [--tiny] [--dry-run]
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from benchmarks.gpu import DEFAULT, parse_trainers
from benchmarks.page import write_block
from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.catalog import BASELINE
from nnunetv2_ext.demo.phantom import make_case
from nnunetv2_ext.demo.tissues import LABELS
from nnunetv2_ext.io.tables import format_table
from nnunetv2_ext.planning.networks import find_trained_network
from nnunetv2_ext.trainers.recipes import Recipe

__all__ = ["compare", "relative_error"]

ATEN = torch.ops.aten
PRODUCTS = {
    ATEN.convolution.default,
    ATEN.mm.default,
    ATEN.addmm.default,
    ATEN.bmm.default,
    ATEN.baddbmm.default,
}
IN_FLOAT32 = {
    F.layer_norm,
    F.group_norm,
    F.softmax,
    F.log_softmax,
    F.interpolate,
    torch.softmax,
    torch.sum,
    torch.exp,
    torch.pow,
    torch.rsqrt,
    Tensor.softmax,
    Tensor.sum,
    Tensor.exp,
    Tensor.pow,
    Tensor.rsqrt,
}
# Patch, batch and strides, in 2D, which every network serves; the tiny ones are for a trial.
SIZES = {
    False: ((128, 128), 2, [(2, 2)] * 5),
    True: ((64, 64), 2, [(2, 2)] * 4),
}
TRAINING_CASES, TEST_CASES = 6, 2
CLIP_NORM = 12.0  # nnU-Net's


def widen(value: Any) -> Any:
    """Return a float16 tensor as float32, and anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


class Float32Operators(TorchFunctionMode):
    """Run in float32 what CUDA's autocast runs in it, where autocast is on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Widen the operands of a function that is on the list."""
        kwargs = kwargs or {}
        if func in IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(widen, (args, kwargs))
        return func(*args, **kwargs)


class HalfProducts(TorchDispatchMode):
    """Add up products of float16 operands in float32, as a GPU does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Widen the operands of a product, and round its result."""
        kwargs = kwargs or {}
        if func not in PRODUCTS or not any(isinstance(x, Tensor) and x.dtype == torch.float16 for x in args):
            return func(*args, **kwargs)
        return func(*tree_map(widen, args), **tree_map(widen, kwargs)).half()


@contextmanager
def autocast_of_cuda() -> Iterator[None]:
    """Compute on the CPU in the precision of CUDA's autocast to float16."""
    with Float32Operators(), HalfProducts(), torch.autocast("cpu", dtype=torch.float16):
        yield


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference of two tensors, relative to the second one's."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def make_slices(size: tuple[int, int], cases: int, seed: int) -> tuple[Tensor, Tensor]:
    """Make slices through the middle third of phantoms.

    Returns:
        Images (N, 1, *size) of mean 0 and standard deviation 1, and labels (N, *size).
    """
    rng = np.random.default_rng(seed)
    made = [make_case(rng, (16, *size))[:2] for _ in range(cases)]
    image = torch.from_numpy(np.concatenate([image[5:11] for image, _ in made]).astype(np.float32))
    labels = torch.from_numpy(np.concatenate([labels[5:11] for _, labels in made]).astype(np.int64))
    return ((image - image.mean()) / image.std())[:, None], labels


def predict(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the logits of each output, highest resolution first."""
    outputs = network(x)
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of cross-entropy and soft Dice loss, for the labels at the size of the logits."""
    labels = F.interpolate(labels[:, None].float(), size=logits.shape[2:], mode="nearest")[:, 0].long()
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)
    chances, axes = logits.softmax(1), (0, *range(2, logits.ndim))
    dice = 2 * (chances * truth).sum(axes) / (chances.sum(axes) + truth.sum(axes)).clamp(min=1)
    return (F.cross_entropy(logits, labels) + 1 - dice[1:].mean()) / 2


def train(network: nn.Module, recipe: Recipe, images: Tensor, labels: Tensor, batch_size: int, steps: int) -> float:
    """Train in float32 by the trainer's optimiser and weights of outputs; return the mean loss of the last steps."""
    group = {"params": list(network.parameters()), "weight_decay": recipe.weight_decay}
    optimizer = recipe.make_optimizer([group], recipe.initial_lr)
    losses = []
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (batch_size,))
        outputs = predict(network, images[chosen])
        weights = recipe.output_weights(len(outputs)) if len(outputs) > 1 else (1.0,)
        each = [loss_of(output, labels[chosen]) for output in outputs]
        optimizer.zero_grad()
        sum(weight * loss for weight, loss in zip(weights, each, strict=True)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimizer.step()
        losses.append(each[0].item())
    return sum(losses[-5:]) / len(losses[-5:])


@torch.no_grad()
def compare(network: nn.Module, x: Tensor) -> tuple[float, float, float]:
    """Compare logits under fp16 with those in float32.

    Returns:
        Relative error under fp16; share of positions whose class changes; relative change in float32 from noise in the
        image of a thousandth of its standard deviation.
    """
    network.eval()
    exact = predict(network, x)[0]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x)
    noisy = predict(network, x + 1e-3 * x.std() * noise)[0]
    half_precision: AbstractContextManager[Any] = (
        torch.autocast("cuda", dtype=torch.float16) if x.is_cuda else autocast_of_cuda()
    )
    with half_precision:
        half = predict(network, x)[0].float()
    changed = (half.argmax(1) != exact.argmax(1)).float().mean()
    return relative_error(half, exact), float(changed), relative_error(noisy, exact)


def measure(name: str, device: torch.device, steps: int, tiny: bool) -> list[str]:
    """Measure the network of one trainer; return the row of the table."""
    size, batch_size, strides = SIZES[tiny]
    torch.manual_seed(0)
    trained = find_trained_network(name)
    network = trained.make(Geometry.from_strides(size, strides), 1, len(LABELS)).to(device)
    if name == BASELINE.name:
        network.apply(network.initialize)
    images, labels = (x.to(device) for x in make_slices(size, TRAINING_CASES, seed=0))
    tests = make_slices(size, TEST_CASES, seed=1)[0].to(device)
    first = compare(network, tests)
    loss = train(network, trained.recipe, images, labels, batch_size, steps)
    after = compare(network, tests)

    def show(found: tuple[float, float, float]) -> list[str]:
        return [f"{found[0]:.1e}", f"{found[1]:.2%}", f"{found[2]:.1e}"]

    return [name, *show(first), *show(after), f"{loss:.2f}"]


HEADER = (
    "trainer",
    *("logits, first weights", "classes", "noise"),
    *("logits, trained", "classes", "noise", "loss"),
)


def describe(device: str, steps: int, tiny: bool) -> str:
    """Describe what the table was measured with."""
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, fp16 emulated"
    size, batch_size, _ = SIZES[tiny]
    patch = " x ".join(map(str, size))
    command = shlex.join(["python", "-m", "benchmarks.half_precision", *sys.argv[1:]])
    return (
        f"{machine}; torch {version('torch')}. 2D, patch {patch}, batch {batch_size}; {steps} steps of training. "
        f"Command: `{command}`."
    )


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-device", choices=("cuda", "cpu"), default="cpu", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=30, help="steps of the training (default: %(default)s)")
    arguments = parse_trainers(parser, "leave out -device cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    rows = []
    for name in (BASELINE.name, *(arguments.trainers or DEFAULT)):
        rows.append(measure(name, torch.device(arguments.device), arguments.steps, arguments.tiny))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    text = "\n\n".join([
        describe(arguments.device, arguments.steps, arguments.tiny),
        format_table(HEADER, rows, markdown=True, padded=False),
    ])  # fmt: skip
    print(text)
    if not arguments.tiny and not arguments.dry_run and not arguments.trainers:
        write_block("half precision", text)


if __name__ == "__main__":
    main()
