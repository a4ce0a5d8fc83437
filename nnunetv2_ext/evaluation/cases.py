"""The scores of one case: from a pair of label maps to a number for each class and metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.ndimage import find_objects

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.evaluation.metrics import Overlap, SurfaceDistances, surface_distances
from nnunetv2_ext.evaluation.pairs import read_pair
from nnunetv2_ext.evaluation.renumbered import describe_renumbering, find_renumbering
from nnunetv2_ext.images.label_maps import LabelImage
from nnunetv2_ext.images.labels import LabelMap

__all__ = ["CaseScores", "MaskPair", "score_files", "score_pair"]

# More different values than any label map has; a table of pairs of values stays small below.
_MOST_VALUES = 4096
_COUNTED_AT_ONCE = 2**20  # voxels; whole volumes of 64-bit numbers would need gigabytes


@dataclass(frozen=True)
class MaskPair:
    """The masks of one class in one case, for the functions that score them.

    Attributes:
        name: the class.
        overlap: counts of the whole image.
        spacing: voxel size in mm, or None where the files hold none.
        tolerance: tolerance of the NSD, for this class; None where the protocol has none.
        partly_ignored: whether the reference leaves voxels of this case open.
        cut: function that gives prediction and reference, cut to the box around both.
    """

    name: str
    overlap: Overlap
    spacing: tuple[float, ...] | None
    tolerance: float | None
    partly_ignored: bool
    cut: Callable[[], tuple[np.ndarray, np.ndarray]]

    @cached_property
    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and reference as boolean arrays; made only when a surface is looked at."""
        return self.cut()

    @cached_property
    def distances(self) -> SurfaceDistances:
        """Distances between the borders of two masks that are not empty, in mm."""
        return surface_distances(*self.masks, self.spacing)

    @cached_property
    def distances_in_voxels(self) -> SurfaceDistances:
        """The same in voxels."""
        return surface_distances(*self.masks)

    @property
    def any_predicted(self) -> bool:
        """Whether the prediction has the class."""
        return self.overlap.predicted > 0

    @property
    def any_referenced(self) -> bool:
        """Whether the reference has the class."""
        return self.overlap.referenced > 0


@dataclass(frozen=True)
class CaseScores:
    """What was found for one case.

    Attributes:
        reference: label map of the reference.
        prediction: label map of the prediction.
        has_spacing: whether the files say how large a voxel is.
        metrics: metrics per class; NaN where one is not defined.
        overlaps: counts per class.
        meetings: how often each value of the reference (rows) meets each value of the prediction (columns).
        remarks: what was assumed, one sentence each.
    """

    reference: Path
    prediction: Path
    has_spacing: bool
    metrics: Mapping[str, Mapping[str, float]]
    overlaps: Mapping[str, Overlap]
    meetings: np.ndarray
    remarks: tuple[str, ...] = ()


def score_files(
    reference: Path,
    prediction: Path,
    labels: LabelMap,
    score: Callable[[MaskPair], dict[str, float]],
    tolerances: Mapping[str, float],
    needs_spacing: bool,
) -> CaseScores:
    """Score one case from its two files.

    Args:
        reference: label map of the reference.
        prediction: label map of the prediction.
        labels: what the values mean.
        score: function that gives the metrics of a class.
        tolerances: tolerances of the NSD, for each class that has one.
        needs_spacing: whether `score` has no meaning without the size of a voxel.

    Raises:
        UserError: naming the file, if the two do not fit together or hold unknown labels.
    """
    predicted, wanted, remarks = read_pair(reference, prediction, labels)
    if needs_spacing and len(wanted.spacing or ()) != 3:
        raise UserError(
            f"{reference} states no voxel size of three axes in mm, which this protocol needs: choose a protocol for "
            "pictures, or state the size in the file."
        )
    return replace(score_pair(predicted, wanted, labels, score, tolerances), remarks=remarks)


def score_pair(
    prediction: LabelImage,
    reference: LabelImage,
    labels: LabelMap,
    score: Callable[[MaskPair], dict[str, float]],
    tolerances: Mapping[str, float],
) -> CaseScores:
    """Score a pair of label maps on the same grid; see `score_files`."""
    table = _count_pairs(prediction, reference, labels)
    ignored = table[labels.ignore].sum() if labels.ignore is not None and labels.ignore < len(table) else 0
    if ignored:
        table[labels.ignore] = 0
    total, values = table.sum(), np.arange(len(table))
    boxes = [find_objects(image.labels, max_label=len(table) - 1) for image in (prediction, reference)]
    metrics, overlaps = {}, {}
    for name in labels.classes:
        own = labels.values(name)
        chosen = np.isin(values, own)
        tp, predicted, referenced = (
            int(part.sum()) for part in (table[chosen][:, chosen], table[:, chosen], table[chosen])
        )
        overlaps[name] = Overlap(tp, predicted - tp, referenced - tp, int(total) - predicted - referenced + tp)
        box = _joint_box([found[value - 1] for found in boxes for value in own if value < len(table)])

        def cut(box: tuple[slice, ...] = box, own: Sequence[int] = own) -> tuple[np.ndarray, np.ndarray]:
            parts = [image.labels[box] for image in (prediction, reference)]
            if len(own) == 1:
                return parts[0] == own[0], parts[1] == own[0]
            return np.isin(parts[0], own), np.isin(parts[1], own)

        metrics[name] = score(
            MaskPair(name, overlaps[name], reference.spacing, tolerances.get(name), bool(ignored), cut)
        )
    return CaseScores(reference.path, prediction.path, reference.spacing is not None, metrics, overlaps, table)


def _count_pairs(prediction: LabelImage, reference: LabelImage, labels: LabelMap) -> np.ndarray:
    """Count how often each value of the reference (rows) meets each value of the prediction (columns)."""
    for image in (reference, prediction):
        for value in (int(image.labels.min()), int(image.labels.max())):
            if not 0 <= value < _MOST_VALUES:
                raise _unknown(image, value, labels)
    size = 1 + max(int(image.labels.max()) for image in (prediction, reference))
    flat, counts = (reference.labels.ravel(), prediction.labels.ravel()), np.zeros(size * size, dtype=np.intp)
    for start in range(0, flat[0].size, _COUNTED_AT_ONCE):
        rows, columns = (part[start : start + _COUNTED_AT_ONCE].astype(np.intp) for part in flat)
        counts += np.bincount(rows * size + columns, minlength=size * size)
    table = counts.reshape(size, size)
    renumbered = find_renumbering(table)
    for image, found in ((reference, table.any(axis=1)), (prediction, table.any(axis=0))):
        known = labels.known_values() | ({labels.ignore} if image is reference else set())
        for value in map(int, np.flatnonzero(found)):
            if value not in known:
                raise _unknown(image, value, labels, renumbered)
    return table


def _unknown(image: LabelImage, value: int, labels: LabelMap, renumbered: Mapping[int, int] | None = None) -> UserError:
    remedy = "name another map with --labels, or convert the file"
    if renumbered:
        remedy = describe_renumbering(renumbered, labels)
    return UserError(
        f"{image.path} holds the label {value}, which {labels.name} does not know ({labels.describe()}); {remedy}."
    )


def _joint_box(boxes: list[tuple[slice, ...] | None]) -> tuple[slice, ...]:
    """Return the smallest box around some boxes; it is empty where none is given."""
    found = [box for box in boxes if box is not None]
    if not found:
        return (slice(0, 0),)
    return tuple(
        slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in zip(*found, strict=True)
    )
