"""Measure what the networks cost on a CPU, and write the tables of docs/benchmarks.md.

For each network, batch 1, float32 and training mode: parameters, the memory that autograd keeps for the backward pass
(the bytes of the distinct storages it saves, parameters not counted), and process time of a forward and backward pass
on one thread. The networks of one table take turns, so that a change of the machine's speed meets all of them; the
ratio to the first row in the same run is what to compare.

Usage: python -m benchmarks.cost [TABLE ...] [--rounds N] [--dry-run]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor, nn

from benchmarks.page import write_block
from nnunetv2_ext.architectures.cost import bytes_kept_for_backward
from nnunetv2_ext.architectures.da_transunet import DATransUNet
from nnunetv2_ext.architectures.danie import DANIE
from nnunetv2_ext.architectures.danie import PRESETS as DANIE_PRESETS
from nnunetv2_ext.architectures.dca import DCA
from nnunetv2_ext.architectures.dca_planned import DCAPlannedNetwork
from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.nnformer import NNFormer
from nnunetv2_ext.architectures.peca_net import PRESETS, PECANet
from nnunetv2_ext.architectures.swin_unet import SwinUNet
from nnunetv2_ext.architectures.swin_unetr import SwinUNETR
from nnunetv2_ext.architectures.unets.double_unet import DoubleUNet
from nnunetv2_ext.architectures.unets.multi_res_unet import MultiResUNet
from nnunetv2_ext.architectures.unets.r2unet import R2UNet
from nnunetv2_ext.architectures.unets.resunet_pp import ResUNetPP
from nnunetv2_ext.architectures.unets.unet import UNet
from nnunetv2_ext.architectures.unets.vnet import VNet
from nnunetv2_ext.io.tables import format_table

PATCH_3D = PRESETS["synapse"]["patch_size"]

# What nnU-Net's planner makes for the Synapse patch at 3 x 0.76 x 0.76 mm.
PLAN_3D = Geometry(
    patch_size=PATCH_3D,
    strides=[(1, 1, 1), (1, 2, 2)] + [(2, 2, 2)] * 4,
    kernel_sizes=[(1, 3, 3)] + [(3, 3, 3)] * 5,
    features=(32, 64, 128, 256, 320, 320),
    n_conv_per_stage=[2] * 6,
)


def planned_network() -> nn.Module:
    """Build the network that nnU-Net makes of the plan."""
    return PlainConvUNet(
        input_channels=1,
        n_stages=PLAN_3D.n_stages,
        features_per_stage=PLAN_3D.features,
        conv_op=nn.Conv3d,
        kernel_sizes=PLAN_3D.kernel_sizes,
        strides=PLAN_3D.strides,
        n_conv_per_stage=PLAN_3D.n_conv_per_stage,
        num_classes=14,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


class OnMaps(nn.Module):
    """A DCA module with encoder maps of its own, so that it is called like a network."""

    def __init__(self, channels: tuple[int, ...], grid: int) -> None:
        super().__init__()
        self.dca = DCA(channels=channels, spatial_dims=2, token_grid=(grid, grid))
        # Not parameters: what the module keeps of them for the backward pass counts.
        self.maps = [
            torch.randn(1, width, 224 >> stage, 224 >> stage, requires_grad=True)
            for stage, width in enumerate(channels)
        ]

    def forward(self, _image: Tensor) -> Tensor:
        return torch.cat([output.flatten() for output in self.dca(self.maps)])


@dataclass(frozen=True)
class Comparison:
    """One table: networks that are called with the same input, the first of which is the measure of the others."""

    title: str
    input_size: tuple[int, ...]
    networks: dict[str, Callable[[], nn.Module]]


CHECKPOINTING = ", `nnUNet_ext_checkpointing=1`"


def with_reca_and_checkpointing(
    networks: dict[str, Callable[..., nn.Module]], *sizes: int, **settings: Any
) -> dict[str, Callable[[], nn.Module]]:
    """Name each network with self-attention and with RecA, and the latter with recomputation."""
    return {
        name + (" with RecA" if reca else "") + CHECKPOINTING * checkpointing: partial(
            network, *sizes, reca=reca, checkpointing=checkpointing, **settings
        )
        for name, network in networks.items()
        for reca, checkpointing in ((False, False), (True, False), (True, True))
    }


U_NETS: dict[str, Callable[..., nn.Module]] = {
    "U-Net": UNet,
    "V-Net": VNet,
    "R2U-Net": R2UNet,
    "ResUNet++": ResUNetPP,
    "DoubleU-Net": DoubleUNet,
    "MultiResUNet": MultiResUNet,
}

COMPARISONS = {
    "peca_net": Comparison(
        "14 classes",
        (1, *PATCH_3D),
        {
            "nnU-Net's PlainConvUNet": planned_network,
            "PECA-Net": lambda: PECANet(**PRESETS["synapse"]),
            "PECA-Net, `nnUNet_ext_checkpointing=1`": lambda: PECANet(**PRESETS["synapse"], checkpointing=True),
        },
    ),
    "dca_planned": Comparison(
        "14 classes",
        (1, *PATCH_3D),
        {
            "nnU-Net's PlainConvUNet": planned_network,
            "the same with DCA": lambda: DCAPlannedNetwork(1, 14, **DCAPlannedNetwork.settings_from_plan(PLAN_3D)),
        },
    ),
    "dca_module": Comparison(
        "encoder maps of a 224 x 224 image",
        (3, 224, 224),
        {
            "DCA, 4 stages, 784 tokens": lambda: OnMaps((32, 64, 128, 256), 28),
            "DCA, 3 stages, 3136 tokens": lambda: OnMaps((32, 64, 128), 56),
        },
    ),
    "dca_unets": Comparison(
        "one class",
        (3, 224, 224),
        {
            name + (" with DCA" if dca else ""): lambda network=network, dca=dca: network(3, 1, dca=dca)
            for name, network in U_NETS.items()
            for dca in (False, True)
        },
    ),
    "reca_3d": Comparison(
        "14 classes",
        (1, 96, 96, 96),
        with_reca_and_checkpointing({"SwinUNETR": SwinUNETR, "nnFormer": NNFormer}, 1, 14, patch_size=(96, 96, 96)),
    ),
    "reca_2d": Comparison(
        "9 classes",
        (1, 224, 224),
        with_reca_and_checkpointing({"Swin-Unet": SwinUNet, "DA-TransUNet": DATransUNet}, 1, 9, patch_size=(224, 224)),
    ),
    "danie": Comparison(
        "9 classes",
        (3, 256, 256),
        {
            f"DANIE-{size}" + CHECKPOINTING * checkpointing: partial(
                DANIE, 3, 9, patch_size=(256, 256), checkpointing=checkpointing, **settings
            )
            for size, settings in DANIE_PRESETS.items()
            for checkpointing in (False, True)
        },
    ),
}


def step_seconds(network: nn.Module, x: Tensor) -> float:
    """Return the process time of a forward and backward pass, in seconds."""
    start = time.process_time()
    network(x).square().mean().backward()
    return time.process_time() - start


def measure(comparison: Comparison, rounds: int) -> str:
    """Measure the networks of one table and give it, with a line that says what was measured."""
    networks = {name: build().train() for name, build in comparison.networks.items()}
    x = torch.randn(1, *comparison.input_size)
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
                f"{kept[name] / kept[base]:.2f}",
                f"{statistics.median(seconds[name]):.1f}",
                f"{statistics.median(ratios):.2f}",
            )
        )
    header = (
        "network",
        "parameters",
        "kept for backward, MiB",
        "ratio of memory",
        "forward + backward, s",
        "ratio of times",
    )
    channels, *size = comparison.input_size
    machine = f"{platform.machine()} CPU, one thread, torch {version('torch')}, Python {platform.python_version()}"
    what = (
        f"Input {channels} x {' x '.join(map(str, size))}, {comparison.title}, batch 1, float32, training mode; "
        f"{machine}; medians of {rounds} rounds."
    )
    return f"{what}\n\n{format_table(header, rows, markdown=True)}"


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(COMPARISONS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="steps of each network (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the tables, and leave the page as it is")
    arguments = parser.parse_args()
    unknown = set(arguments.tables) - set(COMPARISONS)
    if unknown:
        parser.error(f"no table {', '.join(sorted(unknown))}: choose from {', '.join(COMPARISONS)}")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for name in arguments.tables or COMPARISONS:
        text = measure(COMPARISONS[name], arguments.rounds)
        print(f"{name}: {text}\n", flush=True)
        if not arguments.dry_run:
            write_block(f"cost {name}", text)


if __name__ == "__main__":
    main()
