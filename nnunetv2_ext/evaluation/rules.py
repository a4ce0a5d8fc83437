"""What a protocol is made of: metrics, each with its formula and its rule for empty masks.

A rule is data: the words of a report and the numbers in it come from the same object.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nnunetv2_ext.evaluation.cases import MaskPair
from nnunetv2_ext.evaluation.metrics import Overlap

__all__ = [
    "BOTH_EMPTY",
    "IGNORED_VOXELS",
    "NOT_DEFINED",
    "ONE_EMPTY",
    "ONE_OR_BOTH_EMPTY",
    "ONLY_REFERENCE_EMPTY",
    "PREDICTION_EMPTY",
    "REFERENCE_EMPTY",
    "REFERENCE_FULL",
    "REFERENCE_NOT_EMPTY",
    "Exemption",
    "Metric",
    "Protocol",
    "Situation",
]

NOT_DEFINED = math.nan


@dataclass(frozen=True)
class Situation:
    """A kind of pair of masks for which a formula may not hold.

    Attributes:
        words: text as in a report.
        holds: returns whether a pair is of this kind.
    """

    words: str
    holds: Callable[[MaskPair], bool]


BOTH_EMPTY = Situation("both empty", lambda pair: not pair.any_predicted and not pair.any_referenced)
ONE_EMPTY = Situation("one empty", lambda pair: pair.any_predicted != pair.any_referenced)
ONE_OR_BOTH_EMPTY = Situation("one or both empty", lambda pair: not (pair.any_predicted and pair.any_referenced))
PREDICTION_EMPTY = Situation("prediction empty", lambda pair: not pair.any_predicted)
REFERENCE_EMPTY = Situation("reference empty", lambda pair: not pair.any_referenced)
REFERENCE_NOT_EMPTY = Situation("reference not empty", lambda pair: pair.any_referenced)
ONLY_REFERENCE_EMPTY = Situation(
    "only the reference empty", lambda pair: pair.any_predicted and not pair.any_referenced
)
REFERENCE_FULL = Situation("reference fills the image", lambda pair: pair.overlap.fp + pair.overlap.tn == 0)
IGNORED_VOXELS = Situation("voxels with the ignore label", lambda pair: pair.partly_ignored)


@dataclass(frozen=True)
class Exemption:
    """What is reported in a situation instead of a formula's result.

    Attributes:
        situation: where it applies.
        value: what is reported; `NOT_DEFINED`: nothing, and the mean leaves the case out.
        remark: what a report adds.
    """

    situation: Situation
    value: float
    remark: str = ""

    @property
    def reported(self) -> str:
        """The value and the remark, as in a report."""
        words = "not defined, left out of the mean" if math.isnan(self.value) else f"{self.value:g}"
        return f"{words} {self.remark}".rstrip()


@dataclass(frozen=True)
class Metric:
    """A column of a report.

    Attributes:
        name: name as in the files.
        definition: the formula, in words.
        formula: computes it for a pair of masks of one class.
        exemptions: its rule for empty masks; the first whose situation holds counts.
        unit: unit of a distance: "mm" or "voxel"; empty for a number from 0 to 1 and for counts.
        shown: whether the table of means shows it; the files hold all.
    """

    name: str
    definition: str
    formula: Callable[[MaskPair], float]
    exemptions: tuple[Exemption, ...] = ()
    unit: str = ""
    shown: bool = True

    @property
    def empty(self) -> str:
        """What is reported where masks are empty, in words."""
        rules = [
            f"{', or '.join(exemption.situation.words for exemption in exemptions)}: {reported}"
            for reported, exemptions in itertools.groupby(self.exemptions, lambda exemption: exemption.reported)
        ]
        return "; ".join(rules) or "defined for all masks"

    def value(self, pair: MaskPair) -> float:
        """Score a pair of masks: by the rule for empty masks, or else by the formula."""
        for exemption in self.exemptions:
            if exemption.situation.holds(pair):
                return exemption.value
        return self.formula(pair)


@dataclass(frozen=True)
class Protocol:
    """A way to score.

    Attributes:
        name: what users type after `--protocol`.
        title: whose way it is, in a line.
        metrics: what it reports.
        source: where the definitions come from.
        labels: its own map of labels (`labels.LABEL_MAPS`); None where only the data set can say.
        tolerances: tolerances of the NSD in mm, for each class; empty where the user chooses one, or where there is no
            NSD.
        default_tolerance: tolerance of the NSD where the user chooses it.
        needs_spacing: whether it has no meaning without the size of a voxel.
        pooled: the metrics that are also given for the counts of all cases together.
        notes: what a reader of the numbers has to know; what is not confirmed is said here.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    source: str
    labels: str | None
    tolerances: Mapping[str, float] = field(default_factory=dict)
    default_tolerance: float | None = None
    needs_spacing: bool = False
    pooled: Mapping[str, Callable[[Overlap], float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def score(self, pair: MaskPair) -> dict[str, float]:
        """Return the metrics of one class in one case."""
        return {metric.name: metric.value(pair) for metric in self.metrics}
