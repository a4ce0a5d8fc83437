"""Reading a prediction and its reference, and bringing them onto the same voxels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from nnunetv2_ext.images.grids import require_same_grid, same_grid, turn_between
from nnunetv2_ext.images.label_maps import LabelImage, read_label_image
from nnunetv2_ext.images.labels import LabelMap

__all__ = ["on_one_grid", "read_pair"]

_WHITE = 255


def read_pair(reference: Path, prediction: Path, labels: LabelMap) -> tuple[LabelImage, LabelImage, tuple[str, ...]]:
    """Read a prediction and its reference; see `on_one_grid`.

    Args:
        reference: label map of the reference.
        prediction: label map of the prediction.
        labels: what the values mean.

    Returns:
        The prediction, the reference, and what was assumed, one sentence each.

    Raises:
        UserError: naming the file, if one cannot be read, or if they do not have the same voxels.
    """
    prediction_map, reference_map, remarks = on_one_grid(read_label_image(prediction), read_label_image(reference))
    pair = []
    for kind, image in (("prediction", prediction_map), ("reference", reference_map)):
        if _is_black_and_white(image, labels):
            image = replace(image, labels=(image.labels == _WHITE).astype(np.uint8))
            remarks = (*remarks, f"The {kind} is a mask of 0 and 255; 255 counts as 1")
        pair.append(image)
    return pair[0], pair[1], remarks


def _is_black_and_white(image: LabelImage, labels: LabelMap) -> bool:
    """Check whether a file is a mask of 0 and 255 and the only class is 1, so that white can mean nothing else."""
    if [labels.values(name) for name in labels.classes] != [(1,)] or _WHITE in (labels.ignore, *labels.unscored):
        return False
    return int(image.labels.max()) == _WHITE and not ((image.labels > 0) & (image.labels < _WHITE)).any()


def on_one_grid(prediction: LabelImage, reference: LabelImage) -> tuple[LabelImage, LabelImage, tuple[str, ...]]:
    """Bring a prediction onto its reference's voxels, without resampling.

    Voxels that are stored in another order of the axes are turned. A side that states no voxel size takes that of the
    other.

    Raises:
        UserError: naming both files and what differs.
    """
    remarks = []
    if (prediction.spacing is None) != (reference.spacing is None):
        silent, stated = ("prediction", reference) if prediction.spacing is None else ("reference", prediction)
        size = " x ".join(f"{edge:g}" for edge in stated.spacing or ())
        other = "reference" if silent == "prediction" else "prediction"
        remarks.append(f"The {silent} states no voxel size; that of the {other} is taken, {size} mm")
        if reference.spacing is None:
            reference = replace(reference, grid=replace(reference.grid, spacing=prediction.spacing))
    if not same_grid(prediction.grid, reference.grid):
        turn = turn_between(prediction.grid, reference.grid)
        if turn is None:
            remedy = f"bring the prediction into the geometry of {reference.path}"
            require_same_grid(
                prediction.grid, reference.grid, prediction.path, f"its reference {reference.path.name}", remedy
            )
        else:
            turned = np.ascontiguousarray(turn.apply(prediction.labels))
            prediction = LabelImage(prediction.path, turned, prediction.grid.turned(turn))
            remarks.append("The prediction's axes run otherwise than the reference's, through the same voxels; turned")
    return prediction, reference, tuple(remarks)
