"""What fits on which GPU: patch and batch that planning finds for each trainer, as a table.

    python -m benchmarks.planning [TRAINER ...] [--shapes CT MRI ACDC] [--targets 8 12 16 24 40 80]

Predicted, not measured: no GPU takes part. docs/planning.md has the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

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


def plan_row(dataset: str, trainer: str, targets: list[float], known: dict[Any, Any]) -> list[str]:
    """Plan one trainer for each target; predictions are shared between the targets."""
    from nnunetv2_ext.planning.plan import plan_dataset

    name = f"nnUNetTrainer{trainer}"
    configuration = "2d" if trainer in TRAINERS_2D else "3d_fullres"
    row = [name]
    for target in targets:
        try:
            planning = plan_dataset(dataset, [name], target=target, configurations=[configuration], known=known)
        except UserError:
            row.append("none")
            continue
        each = planning.configurations[0]
        memory = each.memory[name].total / 2**30
        row.append(f"{' x '.join(map(str, each.patch_size))}, {each.batch_size} ({memory:.1f})")
    return row


def main() -> None:
    """Print one table per shape, row by row as they are found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainers", nargs="*", default=[*TRAINERS, *TRAINERS_2D])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--targets", nargs="+", type=float, default=list(TARGETS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ.update(
            nnUNet_raw=f"{root}/raw", nnUNet_preprocessed=f"{root}/preprocessed", nnUNet_results=f"{root}/results"
        )
        for number, shape in enumerate(arguments.shapes, start=900):
            dataset = write_shape(root, number, shape)
            print(f"\n{shape}: spacing, median shape, channels, classes, cases {SHAPES[shape]}")
            header = ["trainer", *(f"{target:g} GB" for target in arguments.targets)]
            print(format_table(header, [], markdown=True, padded=False), flush=True)
            for trainer in arguments.trainers:
                row = plan_row(dataset, trainer, arguments.targets, {})
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
