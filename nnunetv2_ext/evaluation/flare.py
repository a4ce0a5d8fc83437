"""The protocols of the FLARE challenges since 2021."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from nnunetv2_ext.evaluation.cases import MaskPair
from nnunetv2_ext.evaluation.formulas import DICE, NSD, ONE_OR_ZERO, nsd, of_counts
from nnunetv2_ext.evaluation.metrics import count_overlap, dice
from nnunetv2_ext.evaluation.rules import NOT_DEFINED, REFERENCE_NOT_EMPTY, Exemption, Metric, Protocol

__all__ = ["FLARE21", "FLARE22", "FLARE22_TOLERANCES", "FLARE23", "FLARE24_T1", "FLARE24_T2", "LESION"]

FLARE22_TOLERANCES = {
    "liver": 5.0, "right kidney": 3.0, "spleen": 3.0, "pancreas": 5.0, "aorta": 2.0, "inferior vena cava": 2.0,
    "right adrenal gland": 2.0, "left adrenal gland": 2.0, "gallbladder": 2.0, "oesophagus": 3.0, "stomach": 5.0,
    "duodenum": 7.0, "left kidney": 3.0,
}  # fmt: skip
FLARE23_TOLERANCES = {**FLARE22_TOLERANCES, "tumour": 2.0}
LESION_TOLERANCES = {"lesion": 2.0}
# The organisers score these only where the reference has them: their ends in the body are a matter of convention.
_FLARE22_IN_SLICES = ("aorta", "inferior vena cava", "oesophagus")
_LEAST_DICE = 0.2
_FLARE23_LEAST_DICE = 0.1
_TIME_AND_MEMORY = "Running time and memory, which the challenge ranks too, are not measured here."
_ONE_SLICE = (
    f"Not confirmed: {', '.join(_FLARE22_IN_SLICES)} that the reference has in one slice alone; zmin : zmax holds "
    "no slice then, and the scores are left empty and out of the mean."
)


def _cut_to_slices(pair: MaskPair) -> MaskPair | None:
    """Cut the classes of which the organisers score some slices alone; None where no slice is left."""
    if pair.name not in _FLARE22_IN_SLICES:
        return pair
    slices = np.flatnonzero(pair.masks[1].any(axis=(0, 1)))
    prediction, reference = (mask[:, :, slices[0] : slices[-1]] for mask in pair.masks)
    if not reference.size:
        return None
    return replace(pair, overlap=count_overlap(prediction, reference), cut=lambda: (prediction, reference))


def _organisers_dsc(pair: MaskPair) -> float:
    part = _cut_to_slices(pair)
    return NOT_DEFINED if part is None else round(dice(part.overlap), 4)


def _organisers_nsd(pair: MaskPair, least_dice: float) -> float:
    part = _cut_to_slices(pair)
    if part is None:
        return NOT_DEFINED
    return round(nsd(part), 4) if dice(part.overlap) >= least_dice else 0.0


def _organisers_metrics(tolerances: Mapping[str, float], least_dice: float) -> tuple[Metric, Metric]:
    """Make the scores of the organisers' code since 2022, for classes with these tolerances in mm."""
    cut = [name for name in _FLARE22_IN_SLICES if name in tolerances]
    slices = (
        f"; {', '.join(cut)} only in the slices zmin : zmax of the reference (third array axis, the upper slice left "
        "out)"
        if cut
        else ""
    )
    as_dsc = "rounded and cut to slices as DSC" if cut else "rounded as DSC"
    listed = ", ".join(f"{name} {tolerance:g}" for name, tolerance in tolerances.items())
    return (
        Metric("DSC", f"{DICE}, rounded to 4 decimals{slices}", _organisers_dsc, ONE_OR_ZERO),
        Metric(
            "NSD",
            f"{NSD}: {listed} mm; {as_dsc}; 0 where DSC is below {least_dice:g}",
            partial(_organisers_nsd, least_dice=least_dice),
            ONE_OR_ZERO,
        ),
    )


FLARE21 = Protocol(
    name="flare21",
    title="FLARE 2021, the organisers' scores",
    metrics=(
        Metric("DSC", DICE, of_counts(dice), ONE_OR_ZERO),
        Metric("NSD", f"{NSD}: 1 mm for all four organs", nsd, ONE_OR_ZERO),
    ),
    source="JunMa11/FLARE (FLARE21), flare.grand-challenge.org",
    labels="flare21",
    tolerances={"liver": 1.0, "kidney": 1.0, "spleen": 1.0, "pancreas": 1.0},
    needs_spacing=True,
    notes=(
        "3D UX-Net's list of this data names 1 spleen and 3 liver, against the organisers; columns of papers that "
        "build on it, RecA in 3D among them, may be exchanged.",
        _TIME_AND_MEMORY,
    ),
)
FLARE22 = Protocol(
    name="flare22",
    title="FLARE 2022, the organisers' scores",
    metrics=_organisers_metrics(FLARE22_TOLERANCES, _LEAST_DICE),
    source="JunMa11/FLARE (FLARE22), flare22.grand-challenge.org",
    labels="flare22",
    tolerances=FLARE22_TOLERANCES,
    needs_spacing=True,
    notes=(_ONE_SLICE, _TIME_AND_MEMORY),
)
FLARE23 = Protocol(
    name="flare23",
    title="FLARE 2023, the organisers' scores",
    metrics=_organisers_metrics(FLARE23_TOLERANCES, _FLARE23_LEAST_DICE),
    source="JunMa11/FLARE (FLARE23/FLARE23_DSC_NSD_Eval.py)",
    labels="flare23",
    tolerances=FLARE23_TOLERANCES,
    needs_spacing=True,
    notes=(
        "The mean shown is over all 14 classes. The challenge reports the mean over the 13 organs, and the tumour "
        "apart: take both from the columns of the classes.",
        _ONE_SLICE,
        _TIME_AND_MEMORY,
    ),
)
FLARE24_T1 = Protocol(
    name="flare24-t1",
    title="FLARE 2024 task 1, lesions in CT of any region, the organisers' scores",
    metrics=_organisers_metrics(LESION_TOLERANCES, _LEAST_DICE),
    source="JunMa11/FLARE (FLARE24/T1_FLARE24_DSC_NSD_Eval.py)",
    labels="lesion",
    tolerances=LESION_TOLERANCES,
    needs_spacing=True,
    notes=(
        "The organisers give 0 to a case whose file has a value above 1; here such a file is refused, and named.",
        _TIME_AND_MEMORY,
    ),
)
FLARE24_T2 = Protocol(
    name="flare24-t2",
    title="FLARE 2024 tasks 2 and 3, abdominal organs, the organisers' scores",
    metrics=_organisers_metrics(FLARE22_TOLERANCES, _LEAST_DICE),
    source="JunMa11/FLARE (FLARE24/T2andT3_FLARE24_DSC_NSD_Eval.py)",
    labels="flare22",
    tolerances=FLARE22_TOLERANCES,
    needs_spacing=True,
    notes=(_ONE_SLICE, _TIME_AND_MEMORY),
)
LESION = Protocol(
    name="lesion",
    title="One kind of lesion, and false alarms in cases without one (pan-cancer CT of FLARE 2025 and 2026)",
    metrics=(
        Metric("DSC", DICE, of_counts(dice), ONE_OR_ZERO),
        Metric("NSD", f"{NSD}: 2 mm", nsd, ONE_OR_ZERO),
        Metric(
            "FPR",
            "1 if anything is predicted in a case without a lesion, else 0; the mean is the rate of false positives",
            lambda pair: float(pair.any_predicted),
            (Exemption(REFERENCE_NOT_EMPTY, NOT_DEFINED),),
        ),
    ),
    source="the challenge's pages of 2025 and 2026 (DSC and NSD at 2 mm); FPR is added",
    labels="lesion",
    tolerances=LESION_TOLERANCES,
    needs_spacing=True,
    notes=(
        "Not confirmed: the organisers' code of 2025 and 2026 was not found. That of 2024, protocol flare24-t1, rounds "
        "and gives no NSD below a DSC of 0.2; here neither is done.",
        "A case without a lesion has a DSC and an NSD of 1 or 0, so that a share of such cases moves the means: look "
        "at FPR, and at its number of cases.",
    ),
)
