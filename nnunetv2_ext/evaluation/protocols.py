"""The protocols: which metrics a paper, challenge or framework reports, how it defines them, and what it does with
empty masks. All of it is data and one small function each; docs/commands/evaluate.md is made from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.evaluation.cases import MaskPair
from nnunetv2_ext.evaluation.metrics import (
    Overlap,
    accuracy,
    average_surface_distance,
    average_symmetric_surface_distance,
    count_overlap,
    dice,
    hausdorff_95,
    iou,
    sensitivity,
    specificity,
    surface_dice,
    surface_distances,
)

__all__ = ["FLARE22_TOLERANCES", "PROTOCOLS", "Metric", "Protocol", "find_protocol"]


@dataclass(frozen=True)
class Metric:
    """What a column of a report means.

    Attributes:
        name: as in the files.
        definition: the formula, in words.
        empty: what is reported where masks are empty.
        unit: of a distance: "mm" or "voxel"; empty for a number from 0 to 1 and for counts.
        shown: whether the table of means shows it; the files hold all.
    """

    name: str
    definition: str
    empty: str
    unit: str = ""
    shown: bool = True


@dataclass(frozen=True)
class Protocol:
    """A way to score.

    Attributes:
        name: what users type after `--protocol`.
        title: whose way it is, in a line.
        metrics: what it reports.
        score: gives the metrics of one class in one case.
        source: where the definitions come from.
        labels: its own map of labels (`labels.LABEL_MAPS`); None where only the data set can say.
        tolerances: of the NSD in mm, for each class; empty where the user chooses one, or where there is no NSD.
        default_tolerance: of the NSD where the user chooses it.
        needs_spacing: whether it has no meaning without the size of a voxel.
        pooled: the metrics that are also given for the counts of all cases together.
        notes: what a reader of the numbers has to know; what is not confirmed is said here.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    score: Callable[[MaskPair], dict[str, float]]
    source: str
    labels: str | None
    tolerances: Mapping[str, float] = field(default_factory=dict)
    default_tolerance: float | None = None
    needs_spacing: bool = False
    pooled: Mapping[str, Callable[[Overlap], float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_protocol(name: str) -> Protocol:
    """Find a protocol by its name.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in PROTOCOLS:
        raise UserError(f"There is no protocol {name!r}; there are {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


# Words that several protocols share

_DICE = "2TP / (2TP + FP + FN)"
_IOU = "TP / (TP + FP + FN)"
_BORDER = "border = voxels with a face neighbour outside the mask"
_HD95 = f"95th percentile of the border distances of both directions pooled (MedPy's `hd95`); {_BORDER}"
_ASSD = "mean of the border distances of both directions pooled (MedPy's `assd`)"
_NSD = "part of both surfaces, by area on the half-voxel grid, within the tolerance (DeepMind's surface dice)"
_NO_SPACING = "no spacing used, although papers print it as mm"
_NOT_DEFINED = "not defined, left out of the mean"


# nnU-Net


def _score_nnunet(pair: MaskPair) -> dict[str, float]:
    overlap = pair.overlap
    scores = {
        "Dice": dice(overlap),
        "IoU": iou(overlap),
        "sensitivity": sensitivity(overlap),
        "specificity": specificity(overlap),
        "accuracy": accuracy(overlap),
        "HD95": math.nan,
        "ASD": math.nan,
        "ASSD": math.nan,
        "NSD": math.nan,
        "FP": overlap.fp,
        "TP": overlap.tp,
        "FN": overlap.fn,
        "TN": overlap.tn,
        "n_pred": overlap.predicted,
        "n_ref": overlap.referenced,
    }
    if pair.partly_ignored:
        return scores  # where the reference is open, so is its surface
    if pair.any_predicted and pair.any_referenced:
        distances = surface_distances(*pair.masks, pair.spacing)
        scores["HD95"] = hausdorff_95(distances)
        scores["ASD"] = average_surface_distance(distances)
        scores["ASSD"] = average_symmetric_surface_distance(distances)
        scores["NSD"] = surface_dice(*pair.masks, pair.tolerance, pair.spacing)
    elif pair.any_predicted or pair.any_referenced:
        scores["NSD"] = 0.0
    return scores


_NNUNET_DISTANCE = f"{_NOT_DEFINED}, where either mask is empty or the case has voxels with the ignore label"
_NNUNET = Protocol(
    name="nnunet",
    title="nnU-Net's own scores, and distances in mm",
    metrics=(
        Metric("Dice", _DICE, f"both empty: {_NOT_DEFINED}; one empty: 0"),
        Metric("IoU", _IOU, f"both empty: {_NOT_DEFINED}; one empty: 0"),
        Metric("sensitivity", "TP / (TP + FN)", f"reference empty: {_NOT_DEFINED}"),
        Metric("specificity", "TN / (TN + FP)", f"reference fills the image: {_NOT_DEFINED}"),
        Metric("accuracy", "(TP + TN) / all voxels", "defined for all masks"),
        Metric("HD95", f"{_HD95}; with the reference's spacing", _NNUNET_DISTANCE, "mm"),
        Metric("ASD", "mean border distance, prediction to reference (MedPy's `asd`)", _NNUNET_DISTANCE, "mm"),
        Metric("ASSD", _ASSD, _NNUNET_DISTANCE, "mm"),
        Metric("NSD", _NSD, f"one empty: 0; both empty, or voxels with the ignore label: {_NOT_DEFINED}"),
        *(
            Metric(name, f"{text}, without those with the ignore label", "counts are always defined", shown=False)
            for name, text in {
                "FP": "false positive voxels", "TP": "true positive voxels", "FN": "false negative voxels",
                "TN": "true negative voxels", "n_pred": "voxels of the prediction", "n_ref": "voxels of the reference",
            }.items()
        ),
    ),
    score=_score_nnunet,
    source="nnU-Net 2.8.1 (Dice, IoU and counts); MedPy 0.5.2 and DeepMind's surface-distance 0.1 (distances)",
    labels=None,
    default_tolerance=1.0,
    notes=(
        "summary.json has the form of nnU-Net's, with these distances added: per label, or per region.",
        "nnU-Net itself reports no distances: their definitions are named in this table.",
    ),
)  # fmt: skip


# The papers on Synapse, and those that score as they do


def _score_transunet(pair: MaskPair) -> dict[str, float]:
    if not pair.any_predicted:
        return {"Dice": 0.0, "HD95": 0.0}
    if not pair.any_referenced:
        return {"Dice": 1.0, "HD95": 0.0}
    return {"Dice": dice(pair.overlap), "HD95": hausdorff_95(surface_distances(*pair.masks))}


_EMPTY_TRANSUNET = "prediction empty: {0}; only the reference empty: {1} (sic)"
_TRANSUNET = Protocol(
    name="transunet",
    title="TransUNet, Swin-Unet, RecA in 2D",
    metrics=(
        Metric("Dice", f"{_DICE} (MedPy's `dc`)", _EMPTY_TRANSUNET.format(0, 1)),
        Metric("HD95", f"{_HD95}; {_NO_SPACING}", _EMPTY_TRANSUNET.format(0, 0), "voxel"),
    ),
    score=_score_transunet,
    source="Beckschen/TransUNet, HuCaoFighting/Swin-Unet",
    labels="synapse-transunet",
    notes=(
        "An organ that was missed adds 0 to HD95, the best value; one that was made up adds a Dice of 1.",
        "Mean over the cases of each organ, then over the organs.",
        "The papers score predictions that were made at 224 x 224 and brought back to 512 x 512 by nearest neighbours.",
    ),
)


def _score_nnformer(pair: MaskPair) -> dict[str, float]:
    if not pair.any_predicted or not pair.any_referenced:
        return {"Dice": float(pair.any_predicted == pair.any_referenced), "HD95": 0.0}
    return {"Dice": dice(pair.overlap), "HD95": hausdorff_95(surface_distances(*pair.masks))}


_NNFORMER_METRICS = (
    Metric("Dice", _DICE, "both empty: 1; one empty: 0"),
    Metric("HD95", f"{_HD95}; {_NO_SPACING}", "one or both empty: 0", "voxel"),
)
_NNFORMER = Protocol(
    name="nnformer",
    title="nnFormer, UNETR++, PECA-Net",
    metrics=_NNFORMER_METRICS,
    score=_score_nnformer,
    source="282857341/nnFormer, Amshaker/unetr_plus_plus, ChenTong999/PECA-Net",
    labels="btcv-8",
    notes=(
        "An organ that was missed adds 0 to HD95, the best value.",
        "Synapse: trained on BTCV's 13 labels, eight of them reported. Tumour regions: --labels msd-braintumour.",
        "Mean over the cases of each class, then over the classes.",
    ),
)


def _score_danie(pair: MaskPair) -> dict[str, float]:
    if not pair.any_predicted or not pair.any_referenced:
        made_up = float(pair.any_predicted)
        return {"Dice": made_up, "IoU": made_up, "HD95": 0.0, "ASSD": 0.0}
    distances = surface_distances(*pair.masks)
    return {
        "Dice": dice(pair.overlap),
        "IoU": iou(pair.overlap),
        "HD95": hausdorff_95(distances),
        "ASSD": average_symmetric_surface_distance(distances),
    }


_DANIE = Protocol(
    name="danie",
    title="DANIE, and the CASCADE lineage that it belongs to",
    metrics=(
        Metric("Dice", f"{_DICE} (MedPy's `dc`)", _EMPTY_TRANSUNET.format(0, 1)),
        Metric("IoU", f"{_IOU} (MedPy's `jc`)", _EMPTY_TRANSUNET.format(0, 1)),
        Metric("HD95", f"{_HD95}; {_NO_SPACING}", _EMPTY_TRANSUNET.format(0, 0), "voxel"),
        Metric("ASSD", f"{_ASSD}; no spacing used", _EMPTY_TRANSUNET.format(0, 0), "voxel"),
    ),
    score=_score_danie,
    source="the DANIE paper (mDICE, mIoU, ASD on Synapse); SLDGroup/CASCADE (MedPy's dc, jc, hd95, assd)",
    labels="synapse-transunet",
    notes=(
        "Not confirmed: the paper does not say which function its ASD is. ASSD is that of its lineage.",
        "Not confirmed: for IoU and ASSD of empty masks the rules of Dice and HD95 are taken.",
        "The labels are in the order of the paper's table, TransUNet's. Files of CASCADE's own preprocessing have "
        "another: --labels synapse-cascade.",
        "On ACDC the paper reports Dice alone (--labels acdc), on GlaS Dice and IoU (--labels binary), on ISIC what "
        "the protocol isic gives.",
    ),
)

_ACDC = Protocol(
    name="acdc",
    title="ACDC as nnFormer, UNETR++ and PECA-Net score it",
    metrics=_NNFORMER_METRICS,
    score=_score_nnformer,
    source="282857341/nnFormer, ChenTong999/PECA-Net",
    labels="acdc",
    notes=(
        "TransUNet and DANIE report Dice alone here, with another rule for empty masks: protocol transunet with "
        "--labels acdc.",
        "Not confirmed: the challenge's own scores. They are not what is computed here.",
        "A frame is a case: mean over the frames of each class, then over the classes.",
    ),
)


# FLARE

FLARE22_TOLERANCES = {
    "liver": 5.0, "right kidney": 3.0, "spleen": 3.0, "pancreas": 5.0, "aorta": 2.0, "inferior vena cava": 2.0,
    "right adrenal gland": 2.0, "left adrenal gland": 2.0, "gallbladder": 2.0, "oesophagus": 3.0, "stomach": 5.0,
    "duodenum": 7.0, "left kidney": 3.0,
}  # fmt: skip
# The organisers score these only where the reference has them: their ends in the body are a matter of convention.
_FLARE22_IN_SLICES = ("aorta", "inferior vena cava", "oesophagus")
_FLARE22_LEAST_DICE = 0.2


def _score_flare21(pair: MaskPair) -> dict[str, float]:
    if not pair.any_predicted or not pair.any_referenced:
        both_empty = float(pair.any_predicted == pair.any_referenced)
        return {"DSC": both_empty, "NSD": both_empty}
    return {"DSC": dice(pair.overlap), "NSD": surface_dice(*pair.masks, pair.tolerance, pair.spacing)}


def _score_flare22(pair: MaskPair) -> dict[str, float]:
    if not pair.any_predicted or not pair.any_referenced:
        both_empty = float(pair.any_predicted == pair.any_referenced)
        return {"DSC": both_empty, "NSD": both_empty}
    masks, overlap = pair.masks, pair.overlap
    if pair.name in _FLARE22_IN_SLICES:
        slices = np.flatnonzero(masks[1].any(axis=(0, 1)))
        masks = tuple(mask[:, :, slices[0] : slices[-1]] for mask in masks)
        if not masks[1].size:
            return {"DSC": math.nan, "NSD": math.nan}
        overlap = count_overlap(*masks)
    dsc = dice(overlap)
    nsd = surface_dice(*masks, pair.tolerance, pair.spacing) if dsc >= _FLARE22_LEAST_DICE else 0.0
    return {"DSC": round(dsc, 4), "NSD": round(nsd, 4)}


_FLARE_EMPTY = "both empty: 1; one empty: 0"
_FLARE21 = Protocol(
    name="flare21",
    title="FLARE 2021, the organisers' scores",
    metrics=(
        Metric("DSC", _DICE, _FLARE_EMPTY),
        Metric("NSD", f"{_NSD}: 1 mm for all four organs", _FLARE_EMPTY),
    ),
    score=_score_flare21,
    source="JunMa11/FLARE (FLARE21), flare.grand-challenge.org",
    labels="flare21",
    tolerances={"liver": 1.0, "kidney": 1.0, "spleen": 1.0, "pancreas": 1.0},
    needs_spacing=True,
    notes=(
        "3D UX-Net's list of this data names 1 spleen and 3 liver, against the organisers; columns of papers that "
        "build on it, RecA in 3D among them, may be exchanged.",
        "Running time and memory, which the challenge ranks too, are not measured here.",
    ),
)
_FLARE22 = Protocol(
    name="flare22",
    title="FLARE 2022, the organisers' scores",
    metrics=(
        Metric(
            "DSC",
            f"{_DICE}, rounded to 4 decimals; {', '.join(_FLARE22_IN_SLICES)} only in the slices zmin : zmax of the "
            "reference (third array axis, the upper slice left out)",
            _FLARE_EMPTY,
        ),
        Metric(
            "NSD",
            f"{_NSD}: "
            + ", ".join(f"{name} {tolerance:g}" for name, tolerance in FLARE22_TOLERANCES.items())
            + " mm; rounded and cut to slices as DSC; 0 where DSC is below 0.2",
            _FLARE_EMPTY,
        ),
    ),
    score=_score_flare22,
    source="JunMa11/FLARE (FLARE22), flare22.grand-challenge.org",
    labels="flare22",
    tolerances=FLARE22_TOLERANCES,
    needs_spacing=True,
    notes=(
        f"Not confirmed: {', '.join(_FLARE22_IN_SLICES)} that the reference has in one slice alone; zmin : zmax holds "
        "no slice then, and the scores are left empty and out of the mean.",
        "Running time and memory, which the challenge ranks too, are not measured here.",
    ),
)


# 2D pictures with one class


def _score_isic(pair: MaskPair) -> dict[str, float]:
    return {name: metric(pair.overlap) for name, metric in _ISIC_METRICS.items()}


def _score_polyp(pair: MaskPair) -> dict[str, float]:
    return {name: metric(pair.overlap) for name, metric in _POLYP_METRICS.items()}


_ISIC_METRICS = {"Dice": dice, "IoU": iou, "sensitivity": sensitivity, "specificity": specificity, "accuracy": accuracy}
_POLYP_METRICS = {"Dice": dice, "IoU": iou}
_PICTURE_OVERLAP = f"both empty: {_NOT_DEFINED}; one empty: 0"
_ISIC = Protocol(
    name="isic",
    title="ISIC 2017 and 2018, lesion boundary, as DANIE reports it",
    metrics=(
        Metric("Dice", _DICE, _PICTURE_OVERLAP),
        Metric("IoU", _IOU, _PICTURE_OVERLAP),
        Metric("sensitivity", "TP / (TP + FN)", f"reference empty: {_NOT_DEFINED}"),
        Metric("specificity", "TN / (TN + FP)", f"reference fills the image: {_NOT_DEFINED}"),
        Metric("accuracy", "(TP + TN) / all pixels", "defined for all masks"),
    ),
    score=_score_isic,
    source="the DANIE paper (Dice, SE, SP, ACC); IoU is added",
    labels="binary",
    pooled=_ISIC_METRICS,
    notes=(
        "Not confirmed: whether the papers average over images or count the pixels of all images together. Both are "
        "given; say which one is compared.",
        "Not confirmed: the papers' rules for empty masks.",
        "Not confirmed: the size at which the papers score. Here it is the size of the files.",
    ),
)
_POLYP = Protocol(
    name="polyp",
    title="CVC-ClinicDB and Kvasir-SEG",
    metrics=(
        Metric("Dice", _DICE, _PICTURE_OVERLAP),
        Metric("IoU", _IOU, _PICTURE_OVERLAP),
    ),
    score=_score_polyp,
    source="gorkemcanates/Dual-Cross-Attention (Dice, IoU)",
    labels="binary",
    pooled=_POLYP_METRICS,
    notes=(
        "DCA prints the mean over test batches (17 images of CVC-ClinicDB, 25 of Kvasir-SEG) of scores with smoothing "
        "1 that count the pixels of a batch together, at 224 x 224. Which images met in a batch is not known, so its "
        "numbers cannot be repeated exactly; the counts of all images together are the nearest.",
        "Not confirmed: the rule for empty masks in per-image means. None occurs in data where every image shows a "
        "polyp and the network finds it.",
    ),
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (_NNUNET, _TRANSUNET, _NNFORMER, _DANIE, _FLARE21, _FLARE22, _ACDC, _ISIC, _POLYP)
}
