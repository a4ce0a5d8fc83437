"""Hold the predicted memory of training steps against what was measured on a GPU.

The peaks below belong to the networks of version 0.1.0. So the networks come from a checkout of that version, and the
prediction from this tree. The table, of eager steps or of compiled ones, goes into docs/planning.md.

Usage: python -m benchmarks.peaks CHECKOUT [NETWORK ...] [--compiled] [--print]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.page import PAGE, write_block

TREE = Path(__file__).resolve().parents[1]
PLANNING_PAGE = PAGE.with_name("planning.md")
MEBIBYTE = 2**20
# MiB of torch.cuda.max_memory_allocated, eager and compiled, on an NVIDIA H100 80 GB with torch 2.11.0+cu130, fp16
# autocast, 14 classes. 3D: patch 64 x 128 x 128, batch 2; 2D: 512 x 512, batch 12. Of each its name on the
# page, its dimensions, and the two peaks; None was not measured.
MEASURED: dict[str, tuple[str, int, int, int | None]] = {
    "nnUNetTrainer": ("nnU-Net's own, 3D", 3, 3052, 3110),
    "nnUNetTrainerPECANet": ("PECA-Net", 3, 2007, None),
    "nnUNetTrainerDCA": ("DCA on the planned network, 3D", 3, 3143, 3064),
    "nnUNetTrainerNNFormerRecA": ("nnFormer with RecA", 3, 4536, 4032),
    "nnUNetTrainerSwinUNETR": ("SwinUNETR", 3, 6056, None),
    "nnUNetTrainerSwinUNETRRecA": ("SwinUNETR with RecA", 3, 6151, 5689),
    "nnUNetTrainerDCAUNet": ("U-Net with DCA", 3, 4139, None),
    "nnUNetTrainerR2UNet": ("R2U-Net", 3, 4432, None),
    "nnUNetTrainerResUNetPP": ("ResUNet++", 3, 7708, None),
    "nnUNetTrainerDoubleUNet": ("DoubleU-Net", 3, 2706, None),
    "nnUNetTrainerMultiResUNet": ("MultiResUNet", 3, 3661, None),
    "nnUNetTrainer, 2D": ("nnU-Net's own, 2D", 2, 5153, 5239),
    "nnUNetTrainerSwinUNetRecA": ("Swin-Unet with RecA", 2, 7198, 4872),
    "nnUNetTrainerDATransUNetRecA": ("DA-TransUNet with RecA", 2, 14362, 9114),
    "nnUNetTrainerDANIE_S": ("DANIE-S", 2, 14065, None),
    "nnUNetTrainerDANIE_L": ("DANIE-L", 2, 16425, None),
    "nnUNetTrainerDCA, 2D": ("DCA on the planned network, 2D", 2, 5590, None),
}
STRIDES = {3: [(1, 1, 1), (1, 2, 2), *[(2, 2, 2)] * 4], 2: [(1, 1), *[(2, 2)] * 7]}
WIDTHS = {3: [32, 64, 128, 256, 320, 320], 2: [32, 64, 128, 256, 512, 512, 512, 512]}
SIZES = {3: ((64, 128, 128), 2), 2: ((512, 512), 12)}
CLASSES = 14
IMPORTS = ("conv_op", "norm_op", "dropout_op", "nonlin")
HEADER = ["network", "measured, MiB", "predicted, MiB", "ratio"]


def use_networks(checkout: str) -> None:
    """Let this process import `nnunetv2_ext` from a checkout, and from this tree what the checkout does not have."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, checkout)
    import nnunetv2_ext
    import nnunetv2_ext.architectures as architectures

    for package in (nnunetv2_ext, architectures):
        package.__path__.append(str(TREE.joinpath(*package.__name__.split("."))))


def _network_arguments(dims: int) -> dict[str, Any]:
    """Return the arguments of nnU-Net's own network in the plan."""
    stages = len(STRIDES[dims])
    return {
        "n_stages": stages,
        "features_per_stage": WIDTHS[dims],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * stages,
        "strides": [list(stride) for stride in STRIDES[dims]],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _find_builder(name: str, dims: int) -> tuple[Any, Any]:
    """Return a function that builds the network, and its recipe."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    from nnunetv2_ext.architectures.geometry import Geometry, PlannedNetwork
    from nnunetv2_ext.trainers import find_trainer
    from nnunetv2_ext.trainers.recipes import NNUNET

    arguments = _network_arguments(dims)
    planned = "dynamic_network_architectures.architectures.unet.PlainConvUNet", arguments, IMPORTS
    trainer: Any = find_trainer(name)
    if name == "nnUNetTrainer":
        return lambda: get_network_from_plans(*planned, 1, CLASSES, allow_init=False, deep_supervision=True), NNUNET
    geometry = Geometry(
        patch_size=SIZES[dims][0],
        strides=tuple(STRIDES[dims]),
        kernel_sizes=tuple((3,) * dims for _ in STRIDES[dims]),
        features=tuple(WIDTHS[dims]),
        n_conv_per_stage=(2,) * len(STRIDES[dims]),
        network=PlannedNetwork(*planned),
    )
    return lambda: trainer.build_network(geometry, 1, CLASSES), trainer.recipe


def _look_into_old_parts(memory: Any) -> None:
    """Let the prediction see what 0.1.0 hides: the inside of its operator, and its own name for torch's checkpoint."""
    import torch

    from nnunetv2_ext.architectures import reca
    from nnunetv2_ext.architectures.layers import recompute
    from nnunetv2_ext.planning import compiled, cuda

    recompute.checkpoint = lambda *values, **options: torch.utils.checkpoint.checkpoint(*values, **options)
    # As on CUDA, of which these tensors are not.
    reca.SCORES_AT_A_TIME = (reca.SCORES_AT_A_TIME[True],) * 2

    class Ledger(memory.Ledger):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if str(function) == "nnunetv2_ext.window_attention_backward.default":
                with self:
                    return reca._window_attention_backward._init_fn(*args)
            return super().__torch_dispatch__(function, types, args, kwargs)

    def find_workspace(function: Any, args: Any, result: Any) -> int:
        if str(function) != "nnunetv2_ext.window_attention_backward.default":
            return cuda.find_workspace(function, args, result)
        with memory.Ledger() as ledger:
            for tensor in args[:7]:
                if tensor is not None:
                    ledger.add(tensor)
            inputs = ledger.live
            results = reca._window_attention_backward._init_fn(*args)
        return ledger.peak - inputs - sum(each.nbytes for each in results)

    memory.Ledger = Ledger
    compiled.find_workspace = find_workspace


def predict(name: str, compiled: bool) -> float:
    """Return the predicted peak in MiB."""
    import torch

    from nnunetv2_ext.planning import memory

    torch.set_num_threads(1)
    _look_into_old_parts(memory)
    dims = MEASURED[name][1]
    build, recipe = _find_builder(name.removesuffix(", 2D"), dims)
    patch_size, batch_size = SIZES[dims]
    predicted = memory.predict_step(
        build,
        input_channels=1,
        num_classes=CLASSES,
        patch_size=patch_size,
        batch_size=batch_size,
        recipe=recipe,
        compiled=compiled,
    )
    return predicted.peak / MEBIBYTE


def make_row(checkout: str, name: str, compiled: bool) -> list[str]:
    """Predict in a process of its own, and return the name, what was measured, what was predicted, and the ratio."""
    label, _, *peaks = MEASURED[name]
    measured = peaks[compiled]
    if measured is None:
        raise SystemExit(f"No compiled step of {name} was measured.")
    with multiprocessing.get_context("spawn").Pool(1, use_networks, (checkout,)) as pool:
        predicted = pool.apply(predict, (name, compiled))
    return [label, f"{measured:,}", f"{predicted:,.0f}", f"{predicted / measured:.2f}"]


def main() -> None:
    """Print each row as it is found, and write the table."""
    from nnunetv2_ext.io.tables import format_table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of version 0.1.0")
    parser.add_argument("networks", nargs="*", help="some of them, as 'nnUNetTrainer, 2D'; all by default")
    parser.add_argument("--compiled", action="store_true", help="the table of compiled steps instead")
    parser.add_argument("--print", action="store_true", help="print the table instead of writing it into the page")
    arguments = parser.parse_args()
    compiled = arguments.compiled
    rows = []
    for name in arguments.networks or [name for name, peaks in MEASURED.items() if not compiled or peaks[3]]:
        start = time.perf_counter()
        rows.append(make_row(str(arguments.checkout.resolve()), name, compiled))
        print(f"| {' | '.join(rows[-1])} | ({time.perf_counter() - start:.0f} s)", flush=True)
    if not arguments.print:
        block = "compiled-peaks" if compiled else "peaks"
        write_block(block, format_table(HEADER, rows, markdown=True), page=PLANNING_PAGE)


if __name__ == "__main__":
    main()
