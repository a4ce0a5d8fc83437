"""The protocols: which metrics a paper, challenge or framework reports, how it defines them, and what it does with
empty masks. All of it is data and small functions; docs/commands/evaluate.md is made from it.
"""

from __future__ import annotations

from collections.abc import Callable

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.evaluation.cases import MaskPair
from nnunetv2_ext.evaluation.flare import (
    FLARE21,
    FLARE22,
    FLARE22_TOLERANCES,
    FLARE23,
    FLARE24_T1,
    FLARE24_T2,
    LESION,
)
from nnunetv2_ext.evaluation.formulas import (
    ASSD,
    DICE,
    HD95,
    IOU,
    NO_SPACING,
    NSD,
    ONE_OR_ZERO,
    UNDEFINED_OR_ZERO,
    hd95_in_voxels,
    nsd,
    of_counts,
    overlap_metrics,
)
from nnunetv2_ext.evaluation.metrics import (
    Overlap,
    accuracy,
    average_surface_distance,
    average_symmetric_surface_distance,
    dice,
    hausdorff_95,
    iou,
    sensitivity,
    specificity,
)
from nnunetv2_ext.evaluation.rules import (
    IGNORED_VOXELS,
    NOT_DEFINED,
    ONE_OR_BOTH_EMPTY,
    ONLY_REFERENCE_EMPTY,
    PREDICTION_EMPTY,
    Exemption,
    Metric,
    Protocol,
)

__all__ = ["FLARE22_TOLERANCES", "PROTOCOLS", "find_protocol", "score_masks"]


def find_protocol(name: str) -> Protocol:
    """Find a protocol by its name.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in PROTOCOLS:
        raise UserError(f"There is no protocol {name!r}; there are {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def score_masks(pair: MaskPair, protocol: str) -> dict[str, float]:
    """Score by the name of a protocol: other processes are sent the name, since formulas cannot be pickled."""
    return PROTOCOLS[protocol].score(pair)


# nnU-Net

_NNUNET_COUNTS: dict[str, tuple[str, Callable[[Overlap], int]]] = {
    "FP": ("false positive voxels", lambda overlap: overlap.fp),
    "TP": ("true positive voxels", lambda overlap: overlap.tp),
    "FN": ("false negative voxels", lambda overlap: overlap.fn),
    "TN": ("true negative voxels", lambda overlap: overlap.tn),
    "n_pred": ("voxels of the prediction", lambda overlap: overlap.predicted),
    "n_ref": ("voxels of the reference", lambda overlap: overlap.referenced),
}
# Where the reference is open, so is its surface.
_NNUNET_DISTANCE = (Exemption(ONE_OR_BOTH_EMPTY, NOT_DEFINED), Exemption(IGNORED_VOXELS, NOT_DEFINED))
_NNUNET = Protocol(
    name="nnunet",
    title="nnU-Net's own scores, and distances in mm",
    metrics=(
        *overlap_metrics("voxels"),
        Metric(
            "HD95",
            f"{HD95}; with the reference's spacing",
            lambda pair: hausdorff_95(pair.distances),
            _NNUNET_DISTANCE,
            "mm",
        ),
        Metric(
            "ASD",
            "mean border distance, prediction to reference (MedPy's `asd`)",
            lambda pair: average_surface_distance(pair.distances),
            _NNUNET_DISTANCE,
            "mm",
        ),
        Metric("ASSD", ASSD, lambda pair: average_symmetric_surface_distance(pair.distances), _NNUNET_DISTANCE, "mm"),
        Metric("NSD", NSD, nsd, (Exemption(IGNORED_VOXELS, NOT_DEFINED), *UNDEFINED_OR_ZERO)),
        *(
            Metric(name, f"{text}, without those with the ignore label", of_counts(count), shown=False)
            for name, (text, count) in _NNUNET_COUNTS.items()
        ),
    ),
    source="nnU-Net 2.8.1 (Dice, IoU and counts); MedPy 0.5.2 and DeepMind's surface-distance 0.1 (distances)",
    labels=None,
    default_tolerance=1.0,
    notes=(
        "summary.json has the form of nnU-Net's, with these distances added: per label, or per region.",
        "nnU-Net itself reports no distances: their definitions are named in this table.",
    ),
)


# The papers on Synapse, and those that score as they do

_TRANSUNET_OVERLAP = (Exemption(PREDICTION_EMPTY, 0.0), Exemption(ONLY_REFERENCE_EMPTY, 1.0, "(sic)"))
_TRANSUNET_DISTANCE = (Exemption(PREDICTION_EMPTY, 0.0), Exemption(ONLY_REFERENCE_EMPTY, 0.0, "(sic)"))
_TRANSUNET = Protocol(
    name="transunet",
    title="TransUNet, Swin-Unet, RecA in 2D",
    metrics=(
        Metric("Dice", f"{DICE} (MedPy's `dc`)", of_counts(dice), _TRANSUNET_OVERLAP),
        Metric("HD95", f"{HD95}; {NO_SPACING}", hd95_in_voxels, _TRANSUNET_DISTANCE, "voxel"),
    ),
    source="Beckschen/TransUNet, HuCaoFighting/Swin-Unet",
    labels="synapse-transunet",
    notes=(
        "An organ that was missed adds 0 to HD95, the best value; one that was made up adds a Dice of 1.",
        "Mean over the cases of each organ, then over the organs.",
        "The papers score predictions that were made at 224 x 224 and brought back to 512 x 512 by nearest neighbours.",
    ),
)

_NNFORMER_METRICS = (
    Metric("Dice", DICE, of_counts(dice), ONE_OR_ZERO),
    Metric("HD95", f"{HD95}; {NO_SPACING}", hd95_in_voxels, (Exemption(ONE_OR_BOTH_EMPTY, 0.0),), "voxel"),
)
_NNFORMER = Protocol(
    name="nnformer",
    title="nnFormer, UNETR++, PECA-Net",
    metrics=_NNFORMER_METRICS,
    source="282857341/nnFormer, Amshaker/unetr_plus_plus, ChenTong999/PECA-Net",
    labels="btcv-8",
    notes=(
        "An organ that was missed adds 0 to HD95, the best value.",
        "Synapse: trained on BTCV's 13 labels, eight of them reported. Tumour regions: --labels msd-braintumour.",
        "Mean over the cases of each class, then over the classes.",
    ),
)

_DANIE = Protocol(
    name="danie",
    title="DANIE, and the CASCADE lineage that it belongs to",
    metrics=(
        *_TRANSUNET.metrics[:1],
        Metric("IoU", f"{IOU} (MedPy's `jc`)", of_counts(iou), _TRANSUNET_OVERLAP),
        *_TRANSUNET.metrics[1:],
        Metric(
            "ASSD",
            f"{ASSD}; no spacing used",
            lambda pair: average_symmetric_surface_distance(pair.distances_in_voxels),
            _TRANSUNET_DISTANCE,
            "voxel",
        ),
    ),
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
    source="282857341/nnFormer, ChenTong999/PECA-Net",
    labels="acdc",
    notes=(
        "TransUNet and DANIE report Dice alone here, with another rule for empty masks: protocol transunet with "
        "--labels acdc.",
        "Not confirmed: the challenge's own scores. They are not what is computed here.",
        "A frame is a case: mean over the frames of each class, then over the classes.",
    ),
)


# 2D pictures with one class

_ISIC = Protocol(
    name="isic",
    title="ISIC 2017 and 2018, lesion boundary, as DANIE reports it",
    metrics=overlap_metrics("pixels"),
    source="the DANIE paper (Dice, SE, SP, ACC); IoU is added",
    labels="binary",
    pooled={"Dice": dice, "IoU": iou, "sensitivity": sensitivity, "specificity": specificity, "accuracy": accuracy},
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
    metrics=_ISIC.metrics[:2],
    source="gorkemcanates/Dual-Cross-Attention (Dice, IoU)",
    labels="binary",
    pooled={"Dice": dice, "IoU": iou},
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
    for protocol in (
        *(_NNUNET, _TRANSUNET, _NNFORMER, _DANIE),
        *(FLARE21, FLARE22, FLARE23, FLARE24_T1, FLARE24_T2, LESION),
        *(_ACDC, _ISIC, _POLYP),
    )
}
