"""The slice of a volume that shows an error best, turned as a radiologist looks at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunetv2_ext.images.label_maps import LabelImage

__all__ = ["Slice", "choose_slice"]


@dataclass(frozen=True)
class Slice:
    """One slice of a volume, turned so that the patient's right is on the left and the head, or the front, is up.

    Attributes:
        axis: across which it lies; None for a picture.
        index: its number.
        count: number of slices along that axis.
        rows: axis that runs down.
        columns: axis that runs to the right.
        flips: whether rows and columns run backwards.
        aspect: height of a voxel over its width.
    """

    axis: int | None
    index: int
    count: int
    rows: int
    columns: int
    flips: tuple[bool, bool]
    aspect: float

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Return the slice of an array, (rows, columns)."""
        if self.axis is None:
            return array
        plane = np.take(array, self.index, axis=self.axis)
        plane = plane if self.rows < self.columns else plane.T
        return plane[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def describe(self) -> str:
        """Name the slice."""
        if self.axis is None:
            return ""
        return f"Slice {self.index + 1} of {self.count} along axis {self.axis}, in which the first of them errs most."


def choose_slice(reference: LabelImage, prediction: np.ndarray, scored: Sequence[int]) -> Slice:
    """Choose the slice with the most errors, across the axis of the thickest voxels."""
    labels = reference.labels
    if labels.ndim == 2:
        return Slice(None, 0, 1, 0, 1, (False, False), 1.0)
    spacing = reference.spacing or (1.0, 1.0, 1.0)
    placement = reference.grid.placements.get("SimpleITK")
    # A 3D TIFF has its planes first, and states no position.
    axis = 0 if placement is None else 2
    if max(spacing) > 1.5 * sorted(spacing)[1]:
        axis = int(np.argmax(spacing))
    wrong = np.isin(labels, scored) | np.isin(prediction, scored)
    wrong &= labels != prediction
    others = tuple(other for other in range(3) if other != axis)
    errors = wrong.sum(axis=others)
    if not errors.any():
        errors = np.isin(labels, scored).sum(axis=others)
    index = int(errors.argmax())
    if placement is None:
        rows, columns = others
        flips = (False, False)
    else:
        world = {other: int(np.abs(placement[:3, other]).argmax()) for other in others}
        columns, rows = sorted(others, key=world.__getitem__)
        backwards = {other: placement[world[other], other] < 0 for other in others}
        # mm grow to the patient's left, to the back and to the head; the head is up, the back is down.
        flips = (bool(backwards[rows] != (world[rows] == 2)), bool(backwards[columns]))
    return Slice(axis, index, labels.shape[axis], rows, columns, flips, spacing[rows] / spacing[columns])
