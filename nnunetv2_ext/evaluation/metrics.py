"""Metrics of a pair of masks: pure functions on arrays, in 2D and 3D.

Overlap metrics come from four counts. Surface metrics come from the distances between two surfaces, of which there are
two kinds:

- **border voxels**: voxels of the mask that have a face neighbour outside of it; outside the array is outside the mask.
  HD95, ASD and ASSD are made of the distances between border voxels' centres (MedPy's definitions).
- **surface elements** on the grid between the voxels: each 2 x 2 (x 2) cell that holds both inside and outside carries
  the piece of surface that marching cubes lays through it. NSD weights these pieces by their area (DeepMind's
  surface-distance).

A distance that is not defined (an empty mask) is an error here; what a report says instead is each protocol's own rule.

Shapes: every mask is a boolean array of the same shape (x, y) or (x, y, z); `spacing` has one entry per axis and gives
the distances its unit. Without it they are in voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.spatial import cKDTree

__all__ = [
    "Overlap",
    "SurfaceDistances",
    "accuracy",
    "average_surface_distance",
    "average_symmetric_surface_distance",
    "count_overlap",
    "dice",
    "hausdorff_95",
    "iou",
    "sensitivity",
    "specificity",
    "surface_dice",
    "surface_distances",
]


@dataclass(frozen=True)
class Overlap:
    """The four counts of voxels: true and false positives, false and true negatives."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def predicted(self) -> int:
        """Voxels of the prediction."""
        return self.tp + self.fp

    @property
    def referenced(self) -> int:
        """Voxels of the reference."""
        return self.tp + self.fn

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)


def count_overlap(prediction: np.ndarray, reference: np.ndarray) -> Overlap:
    """Count the voxels of a pair of masks."""
    _check_masks(prediction, reference)
    tp = int(np.count_nonzero(prediction & reference))
    fp, fn = int(np.count_nonzero(prediction)) - tp, int(np.count_nonzero(reference)) - tp
    return Overlap(tp, fp, fn, reference.size - tp - fp - fn)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def dice(overlap: Overlap) -> float:
    """2 |A and B| / (|A| + |B|); NaN where both masks are empty."""
    return _ratio(2 * overlap.tp, overlap.predicted + overlap.referenced)


def iou(overlap: Overlap) -> float:
    """|A and B| / |A or B|, also called Jaccard index; NaN where both masks are empty."""
    return _ratio(overlap.tp, overlap.tp + overlap.fp + overlap.fn)


def sensitivity(overlap: Overlap) -> float:
    """Part of the reference that was found, TP / (TP + FN); NaN where the reference is empty."""
    return _ratio(overlap.tp, overlap.referenced)


def specificity(overlap: Overlap) -> float:
    """Part of the reference's background that was left alone, TN / (TN + FP); NaN where there is no background."""
    return _ratio(overlap.tn, overlap.tn + overlap.fp)


def accuracy(overlap: Overlap) -> float:
    """Part of all voxels that are right, (TP + TN) / all."""
    return _ratio(overlap.tp + overlap.tn, overlap.predicted + overlap.fn + overlap.tn)


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between the border voxels of two masks.

    Attributes:
        to_reference: distances from each border voxel of the prediction to the nearest one of the reference.
        to_prediction: distances from each border voxel of the reference to the nearest one of the prediction.
    """

    to_reference: np.ndarray
    to_prediction: np.ndarray


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float] | None = None
) -> SurfaceDistances:
    """Measure from each border voxel of either mask to the other mask's border.

    Raises:
        ValueError: for masks of different shapes, a wrong number of spacings, or an empty mask.
    """
    prediction, reference, sampling = _crop(prediction, reference, spacing)
    if not prediction.any() or not reference.any():
        raise ValueError("A surface distance needs two masks that are not empty.")
    ours, theirs = _border(prediction), _border(reference)
    return SurfaceDistances(_distances(ours, theirs, sampling), _distances(theirs, ours, sampling))


def hausdorff_95(distances: SurfaceDistances) -> float:
    """95th percentile, linearly interpolated, of the distances of both directions pooled (MedPy's `hd95`)."""
    return float(np.percentile(np.concatenate([distances.to_reference, distances.to_prediction]), 95))


def average_surface_distance(distances: SurfaceDistances) -> float:
    """Mean distance from the prediction's border to the reference's, one direction (MedPy's `asd`)."""
    return float(distances.to_reference.mean())


def average_symmetric_surface_distance(distances: SurfaceDistances) -> float:
    """Mean of the distances of both directions pooled (MedPy's `assd`)."""
    return float(np.concatenate([distances.to_reference, distances.to_prediction]).mean())


def surface_dice(
    prediction: np.ndarray, reference: np.ndarray, tolerance: float, spacing: Sequence[float] | None = None
) -> float:
    """Part of both surfaces, by area, that lies within a tolerance of the other one (NSD, DeepMind's surface dice).

    Args:
        prediction: mask.
        reference: mask.
        tolerance: largest distance that counts as agreement, in the unit of `spacing`.
        spacing: see the module.

    Returns:
        A number from 0 to 1; 0 where one mask is empty, NaN where both are.

    Raises:
        ValueError: for masks of different shapes or a wrong number of spacings.
    """
    prediction, reference, sampling = _crop(prediction, reference, spacing)
    areas = _areas(sampling)
    codes = [_cells(mask) for mask in (prediction, reference)]
    surfaces = [(code != 0) & (code != areas.size - 1) for code in codes]
    near = whole = 0.0
    for own, other, code in ((0, 1, codes[0]), (1, 0, codes[1])):
        area = areas[code[surfaces[own]]]
        whole += area.sum()
        if surfaces[other].any():
            near += area[_distances(surfaces[own], surfaces[other], sampling, tolerance) <= tolerance].sum()
    return float(near / whole) if whole else math.nan


def _check_masks(prediction: np.ndarray, reference: np.ndarray) -> None:
    if prediction.shape != reference.shape:
        raise ValueError(f"The prediction has the shape {prediction.shape}, the reference {reference.shape}.")
    if prediction.dtype != bool or reference.dtype != bool:
        raise ValueError("Masks are boolean arrays: compare a label map with a label first, as labels == 1.")


def _crop(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut both masks to the box around the two: nothing outside of it has a part in any distance."""
    _check_masks(prediction, reference)
    sampling = np.ones(reference.ndim) if spacing is None else np.asarray(spacing, dtype=float)
    if sampling.shape != (reference.ndim,) or not (sampling > 0).all():
        raise ValueError(f"The spacing {spacing} is not one positive number for each of {reference.ndim} axes.")
    box = []
    for axis in range(reference.ndim):
        others = tuple(other for other in range(reference.ndim) if other != axis)
        occupied = np.flatnonzero(prediction.any(axis=others) | reference.any(axis=others))
        box.append(slice(occupied[0], occupied[-1] + 1) if occupied.size else slice(0, 0))
    # One memory order for all that follows, or the passes below would run across the memory.
    return np.ascontiguousarray(prediction[tuple(box)]), np.ascontiguousarray(reference[tuple(box)]), sampling


def _border(mask: np.ndarray) -> np.ndarray:
    """Find the voxels of a mask that have a face neighbour outside of it."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        along, kept = np.moveaxis(mask, axis, 0), np.moveaxis(inside, axis, 0)
        kept[1:] &= along[:-1]
        kept[:-1] &= along[1:]
        kept[0] = kept[-1] = False
    return mask & ~inside


def _cells(mask: np.ndarray) -> np.ndarray:
    """Number each cell between 2 x 2 (x 2) voxels by which of them are inside; one more cell than voxels per axis.

    Bit i of the number belongs to the corner whose offsets are the binary digits of i, the last axis first.
    """
    cells = np.zeros([size + 1 for size in mask.shape], dtype=np.uint8)
    for bit, corner in enumerate(np.ndindex(*(2,) * mask.ndim)):
        at = tuple(slice(1 - offset, 1 - offset + size) for offset, size in zip(corner, mask.shape, strict=True))
        cells[at] |= mask.view(np.uint8) << np.uint8(bit)
    return cells


def _distances(
    source: np.ndarray, target: np.ndarray, spacing: np.ndarray, tolerance: float | None = None
) -> np.ndarray:
    """Return the distance from each point of `source` to the nearest of `target`, in the order of `source[source]`.

    With a tolerance, distances above it are only known to be above it, and given as infinite: that search is shorter.
    """
    distances = np.zeros(np.count_nonzero(source))
    elsewhere = ~target[source]  # where both surfaces are the same, the distance is 0
    # Counted from 1: where the processor flushes denormal numbers to zero, the tree can crash on coordinates of 0.
    points, targets = np.argwhere(source)[elsewhere] + 1, np.argwhere(target) + 1
    # Surfaces fill a small part of their box, so a search among their points beats a transform of the whole box.
    tree = cKDTree(targets * spacing, leafsize=32, compact_nodes=False, balanced_tree=False)
    # The bound is exclusive, and the search rounds otherwise than below: a little more, and what is near is then exact.
    bound = math.inf if tolerance is None else tolerance * (1 + 1e-6) + 1e-9
    found, nearest = tree.query(points * spacing, distance_upper_bound=bound)
    within = np.isfinite(found)
    # Whole steps times the spacing, as a distance transform does it: what is exactly at the tolerance stays there.
    steps = (points[within] - targets[nearest[within]]) * spacing
    found[within] = np.sqrt((steps * steps).sum(axis=1))
    distances[elsewhere] = found
    return distances


def _areas(spacing: np.ndarray) -> np.ndarray:
    """Return the area (3D) or length (2D) of the surface in a cell, for each number that `_cells` gives."""
    if spacing.size == 2:
        straight = {0b0011: spacing[1], 0b1100: spacing[1], 0b0101: spacing[0], 0b1010: spacing[0]}
        corner = math.hypot(*spacing) / 2
        corners_cut = (0, 1, 2, 1, 0)
        return np.array([straight.get(code, corner * corners_cut[code.bit_count()]) for code in range(16)])
    scale = np.array([spacing[1] * spacing[2], spacing[0] * spacing[2], spacing[0] * spacing[1]])
    return np.array([np.linalg.norm(normals * scale, axis=1).sum() for normals in _triangles()])


@cache
def _triangles() -> list[np.ndarray]:
    """Triangulate the surface in each of the 256 cells of 2 x 2 x 2 voxels by marching cubes.

    Returns:
        For each cell the normals of its triangles, as long as the area at a spacing of 1, shape (triangles, 3).
    """
    from skimage.measure import marching_cubes

    normals = [np.zeros((0, 3))] * 256
    for code in range(1, 255):
        # Inside and outside share their surface. Tables of marching cubes differ where most corners are inside; there
        # the surface is that of the corners outside.
        shown = code if code.bit_count() <= 4 else 255 - code
        corners = np.array([shown >> bit & 1 for bit in range(8)], dtype=np.float32).reshape(2, 2, 2)
        vertices, faces, *_ = marching_cubes(corners, 0.5, method="lorensen")
        a, b, c = vertices[faces].astype(float).transpose(1, 0, 2)
        normals[code] = np.cross(b - a, c - a) / 2
    return normals
