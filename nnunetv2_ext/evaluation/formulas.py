"""Words, formulas and rules for empty masks that several protocols share."""

from __future__ import annotations

from collections.abc import Callable

from nnunetv2_ext.evaluation.cases import MaskPair
from nnunetv2_ext.evaluation.metrics import (
    Overlap,
    accuracy,
    dice,
    hausdorff_95,
    iou,
    sensitivity,
    specificity,
    surface_dice,
)
from nnunetv2_ext.evaluation.rules import (
    BOTH_EMPTY,
    NOT_DEFINED,
    ONE_EMPTY,
    REFERENCE_EMPTY,
    REFERENCE_FULL,
    Exemption,
    Metric,
)

__all__ = [
    "ASSD",
    "DICE",
    "HD95",
    "IOU",
    "NO_SPACING",
    "NSD",
    "ONE_OR_ZERO",
    "UNDEFINED_OR_ZERO",
    "hd95_in_voxels",
    "nsd",
    "of_counts",
    "overlap_metrics",
]

DICE = "2TP / (2TP + FP + FN)"
IOU = "TP / (TP + FP + FN)"
_BORDER = "border = voxels with a face neighbour outside the mask"
HD95 = f"95th percentile of the border distances of both directions pooled (MedPy's `hd95`); {_BORDER}"
ASSD = "mean of the border distances of both directions pooled (MedPy's `assd`)"
NSD = "part of both surfaces, by area on the half-voxel grid, within the tolerance (DeepMind's surface dice)"
NO_SPACING = "no spacing used, although papers print it as mm"

UNDEFINED_OR_ZERO = (Exemption(BOTH_EMPTY, NOT_DEFINED), Exemption(ONE_EMPTY, 0.0))
ONE_OR_ZERO = (Exemption(BOTH_EMPTY, 1.0), Exemption(ONE_EMPTY, 0.0))


def of_counts(function: Callable[[Overlap], float]) -> Callable[[MaskPair], float]:
    """Make a formula of a function of the four counts."""
    return lambda pair: function(pair.overlap)


def hd95_in_voxels(pair: MaskPair) -> float:
    """Compute HD95 without the size of a voxel."""
    return hausdorff_95(pair.distances_in_voxels)


def nsd(pair: MaskPair) -> float:
    """Compute the NSD at the tolerance of the class.

    Raises:
        ValueError: if there is none.
    """
    if pair.tolerance is None:
        raise ValueError(f"The NSD of {pair.name} needs a tolerance.")
    return surface_dice(*pair.masks, pair.tolerance, pair.spacing)


def overlap_metrics(all_of_them: str) -> tuple[Metric, ...]:
    """Make the metrics of counts that have no other rule for empty masks than that of their formula."""
    return (
        Metric("Dice", DICE, of_counts(dice), UNDEFINED_OR_ZERO),
        Metric("IoU", IOU, of_counts(iou), UNDEFINED_OR_ZERO),
        Metric("sensitivity", "TP / (TP + FN)", of_counts(sensitivity), (Exemption(REFERENCE_EMPTY, NOT_DEFINED),)),
        Metric("specificity", "TN / (TN + FP)", of_counts(specificity), (Exemption(REFERENCE_FULL, NOT_DEFINED),)),
        Metric("accuracy", f"(TP + TN) / all {all_of_them}", of_counts(accuracy)),
    )
