"""Small folders of references and predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from nnunetv2_ext.evaluation.cases import CaseScores, score_pair
from nnunetv2_ext.evaluation.protocols import PROTOCOLS
from nnunetv2_ext.images.grids import Grid
from nnunetv2_ext.images.label_maps import LabelImage
from nnunetv2_ext.images.labels import LABEL_MAPS

__all__ = ["SPACING", "make_folders", "random_labels", "score_arrays", "write_nifti"]

SPACING = (0.8, 0.9, 2.5)


def random_labels(seed: int, shape: tuple[int, ...] = (13, 14, 9), classes: int = 3) -> np.ndarray:
    """Draw a label map of boxes, one a class, with some noise."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.uint8)
    for value in range(1, classes + 1):
        start = [int(rng.integers(0, size // 2)) for size in shape]
        labels[tuple(slice(at, at + size // 3) for at, size in zip(start, shape, strict=True))] = value
    noise = rng.random(shape) < 0.02
    labels[noise] = rng.integers(0, classes + 1, noise.sum())
    return labels


def write_nifti(
    path: Path, labels: np.ndarray, spacing: tuple[float, ...] = SPACING, origin: tuple[float, ...] = (5.0, -3.0, 7.0)
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)
    return path


def make_folders(
    root: Path,
    cases: int = 3,
    classes: int = 3,
    write: Callable[[Path, np.ndarray], Path] = write_nifti,
    ending: str = ".nii.gz",
    labels: dict | None = None,
    shape: tuple[int, ...] = (13, 14, 9),
) -> tuple[Path, Path]:
    """Make nnU-Net's layout: labelsTr with a dataset.json above it, and a folder of predictions."""
    reference, prediction = root / "Dataset001_Test" / "labelsTr", root / "predictions"
    for number in range(cases):
        write(reference / f"case_{number}{ending}", random_labels(number, shape, classes))
        write(prediction / f"case_{number}{ending}", random_labels(100 + number, shape, classes))
    names = {"background": 0, **{f"class {value}": value for value in range(1, classes + 1)}}
    description = {"labels": names if labels is None else labels, "file_ending": ending}
    (reference.parent / "dataset.json").write_text(json.dumps(description))
    return reference, prediction


def score_arrays(
    protocol: str,
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, ...] | None = None,
    labels: str | None = None,
    tolerances: dict[str, float] | None = None,
) -> CaseScores:
    """Score a pair of label maps by a protocol."""
    chosen = PROTOCOLS[protocol]
    images = [
        LabelImage(Path(name), array.astype(np.uint8), Grid(array.shape, spacing))
        for name, array in (("prediction", prediction), ("reference", reference))
    ]
    return score_pair(*images, LABEL_MAPS[labels or chosen.labels], chosen.score, tolerances or chosen.tolerances)
