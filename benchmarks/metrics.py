"""Measure the evaluator against MONAI, MedPy and DeepMind's surface-distance, on one made-up case.

The case: 96 x 256 x 256 voxels, eight organs, a prediction whose borders are wrong by a few voxels. The ways take
turns, so that a change of the machine's speed meets all of them; process time, the least of the rounds, one thread.
MONAI gets its one-hot tensors for free. The values are compared too.

Usage: python benchmarks/metrics.py [--rounds N] [--shape Z Y X]
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import medpy.metric.binary as medpy
import numpy as np
import surface_distance
import torch
from monai.metrics import compute_hausdorff_distance
from scipy.ndimage import gaussian_filter

from nnunetv2_ext.evaluation.cases import score_pair
from nnunetv2_ext.evaluation.protocols import PROTOCOLS
from nnunetv2_ext.images.grids import Grid
from nnunetv2_ext.images.label_maps import LabelImage
from nnunetv2_ext.images.labels import LABEL_MAPS
from nnunetv2_ext.io.tables import format_table

SPACING = (2.5, 0.8, 0.8)
LABELS = LABEL_MAPS["synapse-transunet"]
# Centre and half axes, as parts of the array: two large organs, four middle ones, two small ones.
ORGANS = (
    ((0.50, 0.45, 0.30), (0.30, 0.28, 0.22)), ((0.50, 0.40, 0.75), (0.25, 0.18, 0.14)),
    ((0.45, 0.75, 0.30), (0.18, 0.09, 0.09)), ((0.45, 0.75, 0.70), (0.18, 0.09, 0.09)),
    ((0.60, 0.70, 0.50), (0.12, 0.05, 0.16)), ((0.50, 0.55, 0.50), (0.45, 0.04, 0.04)),
    ((0.30, 0.30, 0.50), (0.08, 0.05, 0.05)), ((0.75, 0.25, 0.50), (0.06, 0.08, 0.06)),
)  # fmt: skip


def make_labels(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Draw the organs with borders that a smooth random field has moved."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(0, 1, size, dtype=np.float32) for size in shape), indexing="ij", sparse=True)
    field = gaussian_filter(rng.standard_normal(shape).astype(np.float32), (2, 6, 6))
    field *= 0.12 / field.std()
    labels = np.zeros(shape, dtype=np.uint8)
    for value, (centre, half_axes) in enumerate(ORGANS, start=1):
        radius = sum(((axis - c) / h) ** 2 for axis, c, h in zip(grid, centre, half_axes, strict=True))
        labels[np.sqrt(radius) + field < 1] = value
    return labels


def measure(rounds: int, shape: tuple[int, ...]) -> tuple[dict[str, float], float]:
    """Time all implementations; also give the largest difference of HD95 and NSD to MedPy and DeepMind."""
    reference, prediction = make_labels(shape, 1), make_labels(shape, 2)
    values = [LABELS.classes[name] for name in LABELS.classes]
    one_hot = [
        torch.from_numpy(np.stack([labels == value for value in values])[None]) for labels in (prediction, reference)
    ]
    images = [LabelImage(Path("case"), labels, Grid(labels.shape, SPACING)) for labels in (prediction, reference)]
    tolerances = dict.fromkeys(LABELS.classes, 2.0)
    pairs = [(prediction == value, reference == value) for value in values]

    def of_all(function: Callable) -> Callable:
        return lambda: [function(*pair) for pair in pairs]

    ways: dict[str, Callable] = {
        "this package: 9 metrics of `nnunet`": lambda: (
            score_pair(*images, LABELS, PROTOCOLS["nnunet"].score, tolerances).metrics
        ),
        "MONAI: HD95 alone": lambda: compute_hausdorff_distance(
            *one_hot, include_background=True, percentile=95, spacing=SPACING
        ),
        "surface-distance: NSD alone": of_all(
            lambda ours, theirs: surface_distance.compute_surface_dice_at_tolerance(
                surface_distance.compute_surface_distances(theirs, ours, SPACING), 2.0
            )
        ),
        "MedPy: HD95 alone": of_all(lambda ours, theirs: medpy.hd95(ours, theirs, SPACING)),
    }
    times, results = dict.fromkeys(ways, float("inf")), {}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            results[name] = way()
            times[name] = min(times[name], time.process_time() - start)
    own, _, nsd, hd95 = results.values()
    differences = [
        abs(own[name][metric] - value)
        for metric, theirs in (("NSD", nsd), ("HD95", hd95))
        for name, value in zip(LABELS.classes, theirs, strict=True)
    ]
    return times, max(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", type=int, nargs=3, default=(96, 256, 256))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    times, difference = measure(arguments.rounds, tuple(arguments.shape))
    own = next(iter(times.values()))
    rows = [[name, f"{seconds:.2f}", f"{seconds / own:.2f}"] for name, seconds in times.items()]
    packages = ", ".join(f"{name} {version(name)}" for name in ("monai", "medpy", "surface-distance", "scipy", "torch"))
    print(
        f"{' x '.join(map(str, arguments.shape))} voxels, {len(LABELS.classes)} organs; {platform.machine()} CPU of "
        f"{os.cpu_count()} cores, one thread, the least of {arguments.rounds} rounds; {packages}. Largest difference "
        f"to MedPy's HD95 and DeepMind's NSD: {difference:.0e}.\n"
    )
    print(format_table(["what", "process time, s", "ratio"], rows, markdown=True))


if __name__ == "__main__":
    main()
