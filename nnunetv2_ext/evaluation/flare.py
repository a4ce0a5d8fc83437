"""The protocols of the FLARE challenges of 2021 and 2022."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nnunetv2_ext.evaluation.cases import MaskPair
from nnunetv2_ext.evaluation.formulas import DICE, NSD, ONE_OR_ZERO, nsd, of_counts
from nnunetv2_ext.evaluation.metrics import count_overlap, dice
from nnunetv2_ext.evaluation.rules import NOT_DEFINED, Metric, Protocol

__all__ = ["FLARE21", "FLARE22", "FLARE22_TOLERANCES"]

FLARE22_TOLERANCES = {
    "liver": 5.0, "right kidney": 3.0, "spleen": 3.0, "pancreas": 5.0, "aorta": 2.0, "inferior vena cava": 2.0,
    "right adrenal gland": 2.0, "left adrenal gland": 2.0, "gallbladder": 2.0, "oesophagus": 3.0, "stomach": 5.0,
    "duodenum": 7.0, "left kidney": 3.0,
}  # fmt: skip
# The organisers score these only where the reference has them: their ends in the body are a matter of convention.
_FLARE22_IN_SLICES = ("aorta", "inferior vena cava", "oesophagus")
_FLARE22_LEAST_DICE = 0.2


def _cut_to_slices(pair: MaskPair) -> MaskPair | None:
    """Cut the classes of which FLARE 2022 scores some slices alone; None where no slice is left."""
    if pair.name not in _FLARE22_IN_SLICES:
        return pair
    slices = np.flatnonzero(pair.masks[1].any(axis=(0, 1)))
    prediction, reference = (mask[:, :, slices[0] : slices[-1]] for mask in pair.masks)
    if not reference.size:
        return None
    return replace(pair, overlap=count_overlap(prediction, reference), cut=lambda: (prediction, reference))


def _flare22_dsc(pair: MaskPair) -> float:
    part = _cut_to_slices(pair)
    return NOT_DEFINED if part is None else round(dice(part.overlap), 4)


def _flare22_nsd(pair: MaskPair) -> float:
    part = _cut_to_slices(pair)
    if part is None:
        return NOT_DEFINED
    return round(nsd(part), 4) if dice(part.overlap) >= _FLARE22_LEAST_DICE else 0.0


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
        "Running time and memory, which the challenge ranks too, are not measured here.",
    ),
)
FLARE22 = Protocol(
    name="flare22",
    title="FLARE 2022, the organisers' scores",
    metrics=(
        Metric(
            "DSC",
            f"{DICE}, rounded to 4 decimals; {', '.join(_FLARE22_IN_SLICES)} only in the slices zmin : zmax of the "
            "reference (third array axis, the upper slice left out)",
            _flare22_dsc,
            ONE_OR_ZERO,
        ),
        Metric(
            "NSD",
            f"{NSD}: "
            + ", ".join(f"{name} {tolerance:g}" for name, tolerance in FLARE22_TOLERANCES.items())
            + " mm; rounded and cut to slices as DSC; 0 where DSC is below 0.2",
            _flare22_nsd,
            ONE_OR_ZERO,
        ),
    ),
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
