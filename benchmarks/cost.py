"""Measure what the networks cost on a CPU, and write the table of docs/benchmarks.md.

For each network, at its paper's patch size, batch 1, float32 and training mode: parameters, multiply-adds of a forward
pass, the memory that autograd keeps for the backward pass (the bytes of the distinct storages it saves, parameters not
counted), and process time of a forward and backward pass on one thread. The networks take turns, so that a change of
the machine's speed meets all of them; the ratio to nnU-Net's own network in the same run is what to compare.

Usage: python benchmarks/cost.py [--rounds N] [--dry-run]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunetv2_ext.architectures.peca_net import PRESETS, PECANet
from nnunetv2_ext.cost import bytes_kept_for_backward
from nnunetv2_ext.tables import format_table

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- cost -->", "<!-- /cost -->"
PATCH_SIZE = PRESETS["synapse"]["patch_size"]


def planned_network() -> nn.Module:
    """Build the network that nnU-Net's planner makes for the Synapse patch at 3 x 0.76 x 0.76 mm."""
    features = (32, 64, 128, 256, 320, 320)
    return PlainConvUNet(
        input_channels=1,
        n_stages=6,
        features_per_stage=features,
        conv_op=nn.Conv3d,
        kernel_sizes=[(1, 3, 3)] + [(3, 3, 3)] * 5,
        strides=[(1, 1, 1), (1, 2, 2)] + [(2, 2, 2)] * 4,
        n_conv_per_stage=2,
        num_classes=14,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "nnU-Net's PlainConvUNet": planned_network,
    "PECA-Net": lambda: PECANet(**PRESETS["synapse"]),
    "PECA-Net, `nnUNet_ext_checkpointing=1`": lambda: PECANet(**PRESETS["synapse"], checkpointing=True),
}


def step_seconds(network: nn.Module, x: torch.Tensor) -> float:
    """Give the process time of a forward and backward pass, in seconds."""
    start = time.process_time()
    network(x).square().mean().backward()
    return time.process_time() - start


def measure(rounds: int) -> str:
    """Measure all networks and give the table."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    networks = {name: build().train() for name, build in NETWORKS.items()}
    x = torch.randn(1, 1, *PATCH_SIZE)
    kept = {name: bytes_kept_for_backward(network, x) for name, network in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(rounds):
        for name, network in networks.items():
            seconds[name].append(step_seconds(network, x))
    base = next(iter(networks))
    rows = []
    for name, network in networks.items():
        ratios = [own / other for own, other in zip(seconds[name], seconds[base], strict=True)]
        rows.append(
            (
                name,
                f"{sum(parameter.numel() for parameter in network.parameters()):,}",
                f"{kept[name] / 2**20:,.0f}",
                f"{statistics.median(seconds[name]):.1f}",
                f"{statistics.median(ratios):.2f}",
            )
        )
    header = ("network", "parameters", "kept for backward, MiB", "forward + backward, s", "ratio of times")
    return format_table(header, rows, markdown=True)


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="steps of each network (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the table, and leave the page as it is")
    arguments = parser.parse_args()
    size = " x ".join(str(value) for value in PATCH_SIZE)
    machine = f"{platform.machine()} CPU, one thread, torch {version('torch')}, Python {platform.python_version()}"
    text = (
        f"Patch {size}, 1 channel, 14 classes, batch 1, float32, training mode; {machine}; medians of "
        f"{arguments.rounds} rounds.\n\n{measure(arguments.rounds)}"
    )
    print(text)
    if not arguments.dry_run:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
