"""Count what DANIE's layers cost, and set it beside the "GFLOPs" of the paper's ablation tables.

The paper's differences between rows fit multiply-adds of layers: convolutions, linear maps and batch norms (two
operations an element), without the products inside an attention. This is what is counted here, at 256 x 256 pixels,
three channels and nine classes. Nothing is computed: the tensors have no memory.

Usage: python benchmarks/danie_cost.py [--size PIXELS]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunetv2_ext.architectures.cost import move_off_meta
from nnunetv2_ext.architectures.danie import DANIE, PRESETS
from nnunetv2_ext.io.tables import format_table

PAPER_SIZE, PAPER_CHANNELS, PAPER_CLASSES = 256, 3, 9

# Row of the paper, preset, constructor arguments, GFLOPs that the paper gives.
ROWS: tuple[tuple[str, str, dict[str, Any], float], ...] = (
    ("DANIE-S", "S", {}, 13.29),
    ("DANIE-L (C.5)", "L", {}, 26.55),
    ("A.1 without hierarchical attention", "L", {"fusion": "add", "hierarchical_attention": False}, 19.06),
    ("A.2 without self-attention", "L", {"fusion": "add", "self_attention": False}, 10.98),
    ("A.3 without spatial attention", "L", {"fusion": "add", "spatial_attention": False}, 22.13),
    ("A.4 without channel attention", "L", {"fusion": "add", "channel_attention": False}, 23.25),
    ("A.5 = C.2 addition", "L", {"fusion": "add"}, 25.16),
    ("C.1 concatenation + residual", "L", {"fusion": "concat_res"}, 27.88),
    ("C.3 EH + addition", "L", {"fusion": "eh_add"}, 26.53),
    ("C.4 ES + addition", "L", {"fusion": "es_add"}, 26.52),
)


def count_layers(network: nn.Module, x: Tensor) -> tuple[int, int]:
    """Run a forward pass and count at every call of a layer.

    Returns:
        Multiply-adds of convolutions and linear maps (biases not counted), and operations of batch norms.
    """
    products, norms = 0, 0

    def count(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal products, norms
        if isinstance(module, nn.Conv2d):
            products += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            products += output.numel() * module.in_features
        else:
            norms += 2 * output.numel()

    counted = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    hooks = [module.register_forward_hook(count) for module in network.modules() if isinstance(module, counted)]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return products, norms


def count_danie(preset: str, size: int = PAPER_SIZE, **arguments: Any) -> tuple[int, int, int]:
    """Return parameters, multiply-adds and batch-norm operations of DANIE, one image, in evaluation mode."""
    with torch.device("meta"):
        network = DANIE(
            PAPER_CHANNELS, PAPER_CLASSES, patch_size=(size, size), **{**PRESETS[preset], **arguments}
        ).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = move_off_meta(network)
        products, norms = count_layers(network, torch.empty(1, PAPER_CHANNELS, size, size))
        return sum(parameter.numel() for parameter in network.parameters()), products, norms


def compare(size: int = PAPER_SIZE) -> str:
    """Return the table."""
    rows = []
    for name, preset, arguments, paper in ROWS:
        parameters, products, norms = count_danie(preset, size, **arguments)
        ours = (products + norms) / 1e9
        rows.append(
            (
                name,
                f"{parameters:,}",
                f"{products / 1e9:.2f}",
                f"{ours:.2f}",
                f"{paper:.2f}",
                f"{ours / paper - 1:+.1%}",
            )
        )
    header = ("row of the paper", "parameters", "convolutions, linear maps", "with batch norms", "paper", "difference")
    return format_table(header, rows, markdown=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=PAPER_SIZE, help="pixels an axis (default: %(default)s)")
    print(compare(parser.parse_args().size))


if __name__ == "__main__":
    main()
