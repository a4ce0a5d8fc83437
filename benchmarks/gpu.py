"""Measure whole training steps of trainers on a GPU beside nnU-Net's own, and write the table of docs/benchmarks.md.

A step is nnU-Net's `train_step`: autocast, loss, gradient scaler, clipping and optimiser, on synthetic data. For each
trainer, a process of its own measures it compiled, and another one eager, so that neither finds what the other compiled
or allocated. nnU-Net's own trainer is measured first, in the same run: ratios to it are what to compare.

Usage: python -m benchmarks.gpu [TRAINER ...] [--steps N] [--limit S] [--dry-run]
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.page import write_block
from nnunetv2_ext.catalog import BASELINE, TRAINERS
from nnunetv2_ext.io.tables import format_table

CLASSES = 14
DATASET, PLANS = "Dataset001_Synthetic", "nnUNetPlans"
CONFIGURATIONS = {2: "2d", 3: "3d_fullres"}
# Patch and strides as nnU-Net's planner makes them; the tiny ones are for a trial without a GPU.
SIZES = {
    (3, False): ((64, 128, 128), 2, [(1, 1, 1), (1, 2, 2)] + [(2, 2, 2)] * 4),
    (2, False): ((512, 512), 12, [(1, 1)] + [(2, 2)] * 7),
    (3, True): ((16, 32, 32), 2, [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)]),
    (2, True): ((64, 64), 2, [(1, 1)] + [(2, 2)] * 4),
}
# nnU-Net's autocast on a GPU; a CPU has no fast fp16.
HALF = {"cuda": ("fp16", torch.float16), "cpu": ("bf16", torch.bfloat16)}
# One trainer for each network; others are named on the command line.
DEFAULT = (
    *("nnUNetTrainerPECANet", "nnUNetTrainerDCA", "nnUNetTrainerSwinUNETRRecA", "nnUNetTrainerNNFormerRecA"),
    *("nnUNetTrainerDCAUNet", "nnUNetTrainerDCAVNet", "nnUNetTrainerDCAR2UNet", "nnUNetTrainerDCAResUNetPP"),
    *("nnUNetTrainerDCADoubleUNet", "nnUNetTrainerDCAMultiResUNet"),
    *("nnUNetTrainerSwinUNetRecA", "nnUNetTrainerDATransUNetRecA", "nnUNetTrainerDANIE_S", "nnUNetTrainerDANIE_L"),
)


def make_plans(dims: int, tiny: bool) -> dict[str, Any]:
    """Make the plans of nnU-Net's planner for a U-Net of these sizes."""
    patch, batch_size, strides = SIZES[dims, tiny]
    n_stages, widest = len(strides), 320 if dims == 3 else 512
    kernels = [[1 if size == 1 and stage == 1 else 3 for size in stride] for stage, stride in enumerate(strides)]
    operators = "torch.nn.modules"
    arguments = {
        "n_stages": n_stages,
        "features_per_stage": [min(32 * 2**stage, widest) for stage in range(n_stages)],
        "conv_op": f"{operators}.conv.Conv{dims}d",
        "kernel_sizes": kernels,
        "strides": [list(stride) for stride in strides],
        "n_conv_per_stage": [2] * n_stages,
        "n_conv_per_stage_decoder": [2] * (n_stages - 1),
        "conv_bias": True,
        "norm_op": f"{operators}.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "synthetic",
        "batch_size": batch_size,
        "patch_size": list(patch),
        "batch_dice": dims == 2,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arguments,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": DATASET,
        "plans_name": PLANS,
        "configurations": {CONFIGURATIONS[dims]: configuration},
        "label_manager": "LabelManager",
        "continue_training": False,
    }


def make_batch(trainer: Any, device: torch.device) -> dict[str, Any]:
    """Make smooth synthetic labels with every class, an image that shows them in noise, and targets for each output."""
    settings = trainer.configuration_manager
    size, batch_size = tuple(settings.patch_size), settings.batch_size
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch_size, 1, *(max(2, edge // 16) for edge in size), generator=generator)
    smooth = F.interpolate(coarse, size=size, mode="trilinear" if len(size) == 3 else "bilinear")
    place = (smooth - smooth.amin()) / (smooth.amax() - smooth.amin())
    labels = (place * CLASSES).floor().clamp(max=CLASSES - 1)
    image = place + 0.1 * torch.randn(labels.shape, generator=generator)
    scales = trainer._get_deep_supervision_scales()
    targets = [F.interpolate(labels, scale_factor=tuple(scale), mode="nearest").to(device) for scale in scales or []]
    return {"data": image.to(device), "target": targets or labels.to(device)}


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Time a call in seconds, until the device has finished it."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def measure(name: str, dims: int, device_type: str, compiled: bool, steps: int, tiny: bool) -> dict[str, float]:
    """Measure a trainer, in a process of its own whose folders for nnU-Net are set.

    Args:
        name: trainer.
        dims: dimensions of the plan.
        device_type: "cuda" or "cpu".
        compiled: whether nnU-Net compiles the network and the loss.
        steps: timed steps.
        tiny: whether to take the tiny sizes.

    Returns:
        Seconds of the first step, milliseconds of a step, and MiB; if not compiled also milliseconds of the inference
        of one patch and the relative error of the logits in half precision. NaN for what the device cannot say.
    """
    os.environ["nnUNet_compile"] = "t" if compiled else "f"
    torch.manual_seed(0)
    device = torch.device(device_type)
    labels = {"background": 0, **{f"class {value}": value for value in range(1, CLASSES)}}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    with contextlib.redirect_stdout(sys.stderr):
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        trainer_class = recursive_find_trainer_class_by_name(name)
        trainer = trainer_class(make_plans(dims, tiny), CONFIGURATIONS[dims], 0, dataset, device)
        trainer.initialize()
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
        batch = make_batch(trainer, device)
        trainer.network.train()

        found = {"first_s": seconds(lambda: trainer.train_step(batch), device)}
        for _ in range(min(steps, 2)):
            trainer.train_step(batch)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        found["step_ms"] = 1e3 * statistics.median(
            seconds(lambda: trainer.train_step(batch), device) for _ in range(steps)
        )
        found["mib"] = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else math.nan
        if not compiled:
            found |= measure_inference(trainer, batch["data"][:1], device, steps)
    return found


def measure_inference(trainer: Any, patch: torch.Tensor, device: torch.device, steps: int) -> dict[str, float]:
    """Time the inference of one patch in half precision, and compare its logits with those in float32."""
    trainer.optimizer.zero_grad(set_to_none=True)
    network = trainer.network.eval()
    trainer.set_deep_supervision_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        exact = network(patch)
        with torch.autocast(device.type, dtype=HALF[device.type][1]):
            half = network(patch).float()
            taken = statistics.median(seconds(lambda: network(patch), device) for _ in range(steps))
    return {"inference_ms": 1e3 * taken, "error": float((half - exact).norm() / exact.norm())}


def measure_apart(*arguments: Any, limit: float) -> dict[str, float] | str:
    """Measure in a new process.

    Returns:
        What `measure` found, or why it found nothing: out of time, or the error.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply_async(measure, arguments).get(timeout=limit)
        except multiprocessing.TimeoutError:
            return f"not finished in {limit:.0f} s"
        except Exception as error:
            return f"failed: {type(error).__name__}"


@contextlib.contextmanager
def nnunet_folders() -> Iterator[None]:
    """Set nnU-Net's folders to temporary ones, with the data set that its trainers look for at the start."""
    with tempfile.TemporaryDirectory() as folder:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[variable] = str(Path(folder, variable))
        data = Path(folder, "nnUNet_preprocessed", DATASET, "synthetic")
        data.mkdir(parents=True)
        (data / "case.b2nd").touch()
        yield


def make_row(name: str, compiled: dict | str | None, eager: dict | str, base: dict[str, float]) -> list[str]:
    """Lay out one trainer; `base` gets the times of the first one, to which the others are compared."""

    def time_and_memory(found: dict | str | None, key: str) -> list[str]:
        if not isinstance(found, dict):
            return [found or "-", "-"]
        ratio = found["step_ms"] / base.setdefault(key, found["step_ms"])
        mib = "-" if math.isnan(found["mib"]) else f"{found['mib']:,.0f}"
        return [f"{found['step_ms']:,.1f} ({ratio:.2f})", mib]

    row = [name, *time_and_memory(compiled, "compiled")]
    row += [f"{compiled['first_s']:.0f}" if isinstance(compiled, dict) else "-", *time_and_memory(eager, "eager")]
    return row + ([f"{eager['inference_ms']:,.1f}", f"{eager['error']:.0e}"] if isinstance(eager, dict) else ["-", "-"])


def describe(device: str, steps: int, tiny: bool) -> str:
    """Describe what the table was measured with: device, versions, sizes and command."""
    card = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "nnunetv2", "nnunetv2_ext"))
    sizes = "; ".join(
        f"{dims}D: patch {' x '.join(map(str, patch))}, batch {batch_size}"
        for (dims, is_tiny), (patch, batch_size, _) in SIZES.items()
        if is_tiny == tiny
    )
    command = shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])
    return (
        f"{card}; {versions}. {sizes}; {CLASSES} classes; medians of {steps} steps; half precision is "
        f"{HALF[device][0]}; in brackets the ratio to nnU-Net's trainer of that dimension. Command: `{command}`."
    )


HEADER = (
    *("trainer", "compiled step, ms", "MiB", "first step, s", "eager step, ms", "MiB"),
    *("inference of one patch, ms", "error of logits in half precision"),
)


def parse_trainers(parser: argparse.ArgumentParser, remedy: str) -> argparse.Namespace:
    """Parse the arguments of a benchmark of trainers.

    Args:
        parser: has the benchmark's own arguments, among them `-device` and `--steps`.
        remedy: what to do instead where there is no GPU.
    """
    parser.add_argument("trainers", nargs="*", metavar="TRAINER", help="trainers (default: one for each network)")
    parser.add_argument("--tiny", action="store_true", help="small patches, to try the script")
    parser.add_argument("--dry-run", action="store_true", help="print the table, and leave the page as it is")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.trainers) - {entry.name for entry in TRAINERS})
    if unknown:
        parser.error(f"no trainer {', '.join(unknown)}: `nnUNetv2_ext list` shows them")
    if arguments.steps < 1:
        parser.error("--steps must be at least 1")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"error: torch finds no GPU: run this where there is one, or {remedy}.")
    return arguments


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default: %(default)s)")
    parser.add_argument(
        "--limit", type=float, default=1800, metavar="S", help="seconds for each measurement (default: %(default)s)"
    )
    arguments = parse_trainers(parser, "try it with -device cpu --tiny")

    served = {entry.name: max(entry.dims) for entry in TRAINERS}
    chosen = arguments.trainers or DEFAULT
    rows = []
    with nnunet_folders():
        for dims in sorted({served[name] for name in chosen}, reverse=True):
            base: dict[str, float] = {}
            for name in (BASELINE.name, *(name for name in chosen if served[name] == dims)):
                found = [
                    measure_apart(
                        name, dims, arguments.device, compiled, arguments.steps, arguments.tiny, limit=arguments.limit
                    )
                    if arguments.device == "cuda" or not compiled
                    else None  # nnU-Net compiles on CUDA alone
                    for compiled in (True, False)
                ]
                rows.append(make_row(f"{name}, {dims}D", *found, base))
                print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    text = "\n\n".join([
        describe(arguments.device, arguments.steps, arguments.tiny),
        format_table(HEADER, rows, markdown=True, padded=False),
    ])  # fmt: skip
    print(text)
    # The page is about GPUs at the sizes of a real training.
    if arguments.device == "cuda" and not arguments.tiny and not arguments.dry_run:
        write_block("gpu", text)


if __name__ == "__main__":
    main()
