"""Measure what turning logits into a segmentation takes: class by class, as a submission does it, and as nnU-Net does.

Each way runs in a process of its own. Memory is the largest resident size above what the process had with the logits
in it; time is process time of one thread. The segmentations are compared.

Usage: python benchmarks/export.py [--classes N] [--from Z Y X] [--to Z Y X]
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import platform
import resource
import sys
import time
from importlib.metadata import version
from types import SimpleNamespace

import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.inference.segmentation import segment_by_class
from nnunetv2_ext.io.tables import format_table

RESAMPLING = "resample_data_or_seg_to_shape"  # what nnU-Net plans
WAYS = ("class by class", "nnU-Net")


def make_predictor(classes: int, scale: float) -> SimpleNamespace:
    """Make what the export asks of a predictor."""
    configuration = {
        "spacing": [scale] * 3,
        "architecture": {},
        "resampling_fn_probabilities": RESAMPLING,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    }
    plans = PlansManager(
        {
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "label_manager": "LabelManager",
            "configurations": {"3d_fullres": configuration},
        }
    )
    labels = {"background": 0, **{f"organ {number}": number for number in range(1, classes)}}
    return SimpleNamespace(
        plans_manager=plans,
        configuration_manager=plans.get_configuration("3d_fullres"),
        label_manager=plans.get_label_manager({"labels": labels}),
    )


def peak_mib() -> float:
    """Give the largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(way: str, classes: int, small: tuple[int, ...], large: tuple[int, ...]) -> tuple[float, float, str]:
    """Give memory in MiB, process time in s, and a fingerprint of the segmentation."""
    torch.set_num_threads(1)
    predictor = make_predictor(classes, large[0] / small[0])
    properties = {
        "spacing": [1.0, 1.0, 1.0],
        "shape_after_cropping_and_before_resampling": large,
        "shape_before_cropping": large,
        "bbox_used_for_cropping": [[0, edge] for edge in large],
    }
    logits = torch.randn(classes, *small, generator=torch.Generator().manual_seed(1)).half()
    before, start = peak_mib(), time.process_time()
    if way == WAYS[0]:
        segmentation = segment_by_class(logits, properties, predictor)
    else:
        segmentation = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, predictor.plans_manager, predictor.configuration_manager, predictor.label_manager, properties,
            num_threads_torch=1,
        )  # fmt: skip
    seconds = time.process_time() - start
    return peak_mib() - before, seconds, hashlib.sha256(segmentation.tobytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--from", dest="small", type=int, nargs=3, default=(100, 200, 200))
    parser.add_argument("--to", dest="large", type=int, nargs=3, default=(200, 512, 512))
    arguments = parser.parse_args()
    sizes = tuple(arguments.small), tuple(arguments.large)
    found = {}
    for way in WAYS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[way] = pool.apply(measure, (way, arguments.classes, *sizes))
    assert len({fingerprint for *_, fingerprint in found.values()}) == 1, "the segmentations differ"
    memory, seconds, _ = found[WAYS[0]]
    rows = [
        [way, f"{mib:,.0f}", f"{mib / memory:.2f}", f"{took:.1f}", f"{took / seconds:.2f}"]
        for way, (mib, took, _) in found.items()
    ]
    print(
        f"{arguments.classes} classes, {' x '.join(map(str, sizes[0]))} to {' x '.join(map(str, sizes[1]))} voxels; "
        f"{platform.machine()} CPU of {os.cpu_count()} cores, one thread; nnunetv2 {version('nnunetv2')}, torch "
        f"{torch.__version__}. The segmentations are equal.\n"
    )
    print(format_table(["way", "memory, MiB", "ratio", "process time, s", "ratio"], rows, markdown=True))


if __name__ == "__main__":
    main()
