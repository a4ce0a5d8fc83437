"""What fits on which GPU: patch and batch that planning finds for each trainer, as a table.

Predicted, not measured: no GPU takes part. Predictions for one target serve the others of a row too, so that the
slowest plan of a row, most often the first, says how long one takes. The tables go into docs/planning.md.

Usage: python -m benchmarks.planning [TRAINER ...] [--shapes CT MRI ACDC] [--targets 8 12 16 24 40 80] [--print]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from benchmarks.page import PAGE, write_block
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.tables import format_table

TARGETS = (8.0, 12.0, 16.0, 24.0, 40.0, 80.0)
# Spacing in mm, median shape in voxels, channels, classes with background, training cases.
SHAPES: dict[str, tuple[tuple[float, ...], tuple[int, ...], int, int, int]] = {
    "CT": ((3.0, 0.76, 0.76), (148, 512, 512), 1, 14, 24),
    "MRI": ((1.0, 1.0, 1.0), (138, 169, 138), 4, 4, 484),
    "ACDC": ((5.0, 1.56, 1.56), (18, 256, 216), 1, 4, 200),
}
TRAINERS = ("", "PECANet", "DCA", "DCAUNet", "NNFormerRecA", "SwinUNETRRecA")
TRAINERS_2D = ("SwinUNetRecA", "DATransUNetRecA", "DANIE_S")
TITLES = {
    "CT": "Abdominal CT: {2} channel, {3} classes, median {1} voxels of {0} mm",
    "MRI": "Brain MRI: {2} channels, {3} classes, median {1} voxels of {0} mm",
    "ACDC": "ACDC: {2} channel, {3} classes, median {1} voxels of {0} mm",
}


def write_shape(root: Path, number: int, name: str) -> str:
    """Write what nnU-Net's planner reads of a dataset; return its number."""
    spacing, shape, channels, classes, cases = SHAPES[name]
    folder = root / "raw" / f"Dataset{number}_{name}"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    for channel in range(channels):
        nibabel.save(image, folder / "imagesTr" / f"case_{channel:04d}.nii.gz")
    nibabel.save(image, folder / "labelsTr" / "case.nii.gz")
    content = {
        "channel_names": {str(channel): "MRI" for channel in range(channels)},
        "labels": {"background": 0, **{f"class {label}": label for label in range(1, classes)}},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    fingerprint = {
        "spacings": [list(spacing)],
        "shapes_after_crop": [list(shape)],
        "foreground_intensity_properties_per_channel": {},
        "median_relative_size_after_cropping": 1.0,
    }
    planned = root / "preprocessed" / folder.name
    planned.mkdir(parents=True)
    (planned / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    return str(number)


def plan_row(dataset: str, trainer: str, targets: list[float]) -> list[str]:
    """Plan one trainer for each target; the last cell has the seconds of process time of the slowest plan."""
    from nnunetv2_ext.planning.plan import plan_dataset

    name = f"nnUNetTrainer{trainer}"
    configuration = "2d" if trainer in TRAINERS_2D else "3d_fullres"
    row, slowest = [f"`{name}`, {configuration[:2].upper()}"], 0.0
    known: dict[Any, Any] = {}
    for target in targets:
        start = time.process_time()
        try:
            planning = plan_dataset(dataset, [name], target=target, configurations=[configuration], known=known)
        except UserError:
            row.append("none")
            continue
        finally:
            slowest = max(slowest, time.process_time() - start)
        each = planning.configurations[0]
        memory = each.memory[name].total / 2**30
        row.append(f"{' x '.join(map(str, each.patch_size))}, {each.batch_size} ({memory:.1f})")
    return [*row, f"{slowest:.0f}"]


def main() -> None:
    """Print each row as it is found, and write one table per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainers", nargs="*", default=[*TRAINERS, *TRAINERS_2D])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--targets", nargs="+", type=float, default=list(TARGETS))
    parser.add_argument("--print", action="store_true", help="print the rows instead of writing the page")
    arguments = parser.parse_args()
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ.update(
            nnUNet_raw=f"{root}/raw", nnUNet_preprocessed=f"{root}/preprocessed", nnUNet_results=f"{root}/results"
        )
        for number, shape in enumerate(arguments.shapes, start=900):
            dataset = write_shape(root, number, shape)
            rows = []
            for trainer in arguments.trainers:
                rows.append(plan_row(dataset, trainer, arguments.targets))
                print(f"| {shape}: {' | '.join(rows[-1])} |", flush=True)
            tables.append(make_table(shape, arguments.targets, rows))
    if not arguments.print:
        write_block("planned", "\n\n".join(tables), page=PAGE.with_name("planning.md"))


def make_table(shape: str, targets: list[float], rows: list[list[str]]) -> str:
    """Write the table of one dataset, with its title."""
    values = (" x ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in SHAPES[shape])
    header = ["trainer", *(f"{target:g} GB" for target in targets), "slowest plan, s"]
    return f"{TITLES[shape].format(*values)}.\n\n{format_table(header, rows, markdown=True, padded=False)}"


if __name__ == "__main__":
    main()
