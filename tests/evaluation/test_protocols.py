"""Each protocol's definitions, rules for empty masks, tolerances and label maps."""

from __future__ import annotations

import math

import medpy.metric.binary as medpy
import numpy as np
import pytest
import surface_distance

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.evaluation.cases import score_pair
from nnunetv2_ext.evaluation.protocols import FLARE22_TOLERANCES, PROTOCOLS, find_protocol
from nnunetv2_ext.images.grids import Grid
from nnunetv2_ext.images.label_maps import LabelImage
from nnunetv2_ext.images.labels import LABEL_MAPS, LabelMap
from tests.evaluation.files import SPACING, random_labels, score_arrays

# It uses old names of others.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:surface_distance")

NOTHING = np.zeros((6, 7, 8), dtype=np.uint8)
ONE = NOTHING.copy()
ONE[2:5, 2:6, 1:7] = 1
exactly = {"rel": 1e-6, "abs": 1e-6, "nan_ok": True}


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    return random_labels(1, (20, 21, 12), 13), random_labels(2, (20, 21, 12), 13)


def lesions(overlap: int) -> tuple[np.ndarray, np.ndarray]:
    """Make two bars of ten voxels each along the second axis of which some are common; voxels are 1 mm long."""
    prediction, reference = np.zeros((2, 3, 30, 3), dtype=np.uint8)
    reference[1, :10, 1] = 1
    prediction[1, 10 - overlap : 20 - overlap, 1] = 1
    return prediction, reference


# Rules for empty masks


@pytest.mark.parametrize(
    ("protocol", "labels", "class_name", "both", "only_predicted", "only_referenced"),
    [
        ("transunet", None, "aorta", (0, 0), (1, 0), (0, 0)),
        ("nnformer", None, "spleen", (1, 0), (0, 0), (0, 0)),
        ("acdc", None, "right ventricle cavity", (1, 0), (0, 0), (0, 0)),
        ("danie", None, "aorta", (0, 0, 0, 0), (1, 1, 0, 0), (0, 0, 0, 0)),
        ("flare21", None, "liver", (1, 1), (0, 0), (0, 0)),
        ("flare22", None, "liver", (1, 1), (0, 0), (0, 0)),
        ("flare23", None, "liver", (1, 1), (0, 0), (0, 0)),
        ("flare24-t1", None, "lesion", (1, 1), (0, 0), (0, 0)),
        ("flare24-t2", None, "liver", (1, 1), (0, 0), (0, 0)),
        ("lesion", None, "lesion", (1, 1, 0), (0, 0, 1), (0, 0, math.nan)),
        ("polyp", None, "foreground", (math.nan, math.nan), (0, 0), (0, 0)),
        ("isic", None, "foreground", (*[math.nan] * 3, 1, 1), (0, 0, math.nan, 264 / 336, 264 / 336),
         (0, 0, 0, 1, 264 / 336)),
    ],
)  # fmt: skip
def test_empty_masks(protocol, labels, class_name, both, only_predicted, only_referenced) -> None:
    for prediction, reference, expected in (
        (NOTHING, NOTHING, both),
        (ONE, NOTHING, only_predicted),
        (NOTHING, ONE, only_referenced),
    ):
        scores = score_arrays(protocol, prediction, reference, (1.0, 1.0, 1.0), labels).metrics[class_name]
        assert list(scores) == [metric.name for metric in PROTOCOLS[protocol].metrics]
        assert list(scores.values()) == pytest.approx(list(expected), nan_ok=True)


def test_empty_masks_of_nnunet() -> None:
    for prediction, reference, dice, nsd in (
        (NOTHING, NOTHING, math.nan, math.nan),
        (ONE, NOTHING, 0, 0),
        (NOTHING, ONE, 0, 0),
    ):
        scores = score_arrays("nnunet", prediction, reference, SPACING, "binary", {"foreground": 1.0})
        scores = scores.metrics["foreground"]
        assert list(scores) == [metric.name for metric in PROTOCOLS["nnunet"].metrics]
        assert [scores["Dice"], scores["IoU"], scores["NSD"]] == pytest.approx([dice, dice, nsd], nan_ok=True)
        assert all(math.isnan(scores[name]) for name in ("HD95", "ASD", "ASSD"))


# Definitions, against the libraries that the papers and challenges use


def test_nnunet_measures_in_mm(pair) -> None:
    prediction, reference = pair
    tolerances = dict.fromkeys(LABEL_MAPS["btcv"].classes, 1.7)
    scores = score_arrays("nnunet", prediction, reference, SPACING, "btcv", tolerances)
    for name, value in LABEL_MAPS["btcv"].classes.items():
        masks, got = (prediction == value, reference == value), scores.metrics[name]
        assert got["HD95"] == pytest.approx(medpy.hd95(*masks, SPACING), **exactly)
        assert got["ASD"] == pytest.approx(medpy.asd(*masks, SPACING), **exactly)
        assert got["ASSD"] == pytest.approx(medpy.assd(*masks, SPACING), **exactly)
        distances = surface_distance.compute_surface_distances(*reversed(masks), SPACING)
        expected = surface_distance.compute_surface_dice_at_tolerance(distances, 1.7)
        assert got["NSD"] == pytest.approx(expected, **exactly)


@pytest.mark.parametrize("protocol", ["transunet", "nnformer", "danie", "acdc"])
def test_papers_measure_in_voxels(pair, protocol: str) -> None:
    labels = LABEL_MAPS[PROTOCOLS[protocol].labels]
    prediction, reference = (np.where(np.isin(part, list(labels.known_values())), part, 0) for part in pair)
    scores = score_arrays(protocol, prediction, reference, SPACING)
    assert scores.metrics.keys() == labels.classes.keys()
    for name, value in labels.classes.items():
        masks, got = (prediction == value, reference == value), scores.metrics[name]
        assert got["Dice"] == pytest.approx(medpy.dc(*masks), **exactly)
        assert got["HD95"] == pytest.approx(medpy.hd95(*masks), **exactly)
        if protocol == "danie":
            assert got["IoU"] == pytest.approx(medpy.jc(*masks), **exactly)
            assert got["ASSD"] == pytest.approx(medpy.assd(*masks), **exactly)


def deepminds(prediction: np.ndarray, reference: np.ndarray, tolerance: float) -> tuple[float, float]:
    distances = surface_distance.compute_surface_distances(reference, prediction, SPACING)
    return (
        surface_distance.compute_dice_coefficient(reference, prediction),
        surface_distance.compute_surface_dice_at_tolerance(distances, tolerance),
    )


@pytest.mark.parametrize("protocol", ["flare21", "flare22", "flare23", "flare24-t2"])
def test_flare_is_deepminds_surface_dice(pair, protocol: str) -> None:
    labels = LABEL_MAPS[PROTOCOLS[protocol].labels]
    prediction, reference = (np.where(part <= len(labels.classes), part, 0) for part in pair)
    prediction = np.where(reference % 2, reference, prediction)  # half of the organs are good enough for an NSD
    prediction[:, :, ::4] = pair[0][:, :, ::4] * (pair[0][:, :, ::4] <= len(labels.classes))
    if protocol == "flare23":
        reference[:4, :4, :4], prediction[1:6, :4, :4] = 14, 14
    scores = score_arrays(protocol, prediction, reference, SPACING)
    without_nsd = 0
    for name, value in labels.classes.items():
        masks, got = [prediction == value, reference == value], scores.metrics[name]
        if protocol != "flare21" and name in ("aorta", "inferior vena cava", "oesophagus"):
            slices = np.flatnonzero(masks[1].any(axis=(0, 1)))
            masks = [mask[:, :, slices[0] : slices[-1]] for mask in masks]
        dsc, nsd = deepminds(*masks, PROTOCOLS[protocol].tolerances[name])
        if protocol != "flare21":
            least = 0.1 if protocol == "flare23" else 0.2
            without_nsd += dsc < least
            dsc, nsd = round(dsc, 4), round(nsd if dsc >= least else 0.0, 4)
        assert [got["DSC"], got["NSD"]] == pytest.approx([dsc, nsd], **exactly)
    assert protocol == "flare21" or 0 < without_nsd < len(labels.classes)


def test_flare22_leaves_out_the_upper_slice_and_what_lies_beyond() -> None:
    reference, prediction = NOTHING.copy(), NOTHING.copy()
    reference[2:5, 2:5, 2:6] = 5  # aorta, slices 2 to 5
    prediction[2:5, 2:5, 2:5] = 5
    prediction[0, 0, 5:] = 5
    assert score_arrays("flare22", prediction, reference, SPACING).metrics["aorta"] == {"DSC": 1, "NSD": 1}
    # The same as liver, which has no such rule.
    liver = score_arrays("flare22", prediction * (prediction == 5) // 5, reference // 5, SPACING).metrics["liver"]
    assert liver["DSC"] == pytest.approx(2 * 27 / (30 + 36), abs=1e-4)


def test_flare22_says_where_its_slice_rule_leaves_nothing() -> None:
    reference = NOTHING.copy()
    reference[2:5, 2:5, 3] = 10
    scores = score_arrays("flare22", reference, reference, SPACING).metrics["oesophagus"]
    assert all(math.isnan(value) for value in scores.values())


@pytest.mark.parametrize(
    ("protocol", "overlap", "dsc", "has_nsd"),
    [
        ("flare24-t1", 1, 0.1, False),  # below 0.2
        ("flare24-t1", 2, 0.2, True),
        ("lesion", 1, 0.1, True),
    ],
)
def test_scores_of_a_lesion(protocol: str, overlap: int, dsc: float, has_nsd: bool) -> None:
    """By hand: Dice of two bars of ten, and which of their surfaces lie within 2 mm of the other's."""
    pair = lesions(overlap)
    scores = score_arrays(protocol, *pair, (1.0, 1.0, 1.0)).metrics["lesion"]
    assert scores["DSC"] == pytest.approx(dsc)
    expected = 0.0
    if has_nsd:
        masks = [part == 1 for part in pair]
        distances = surface_distance.compute_surface_distances(*reversed(masks), (1.0, 1.0, 1.0))
        expected = surface_distance.compute_surface_dice_at_tolerance(distances, 2.0)
        assert 0 < expected < 1
    assert scores["NSD"] == pytest.approx(round(expected, 4) if protocol == "flare24-t1" else expected)
    assert protocol == "flare24-t1" or math.isnan(scores["FPR"])


def test_flare23_keeps_what_flare22_gives_up() -> None:
    """A Dice of 0.1 to 0.2, and a tumour, which FLARE 2022 does not know."""
    prediction, reference = (part * 4 for part in lesions(1))  # pancreas, 5 mm
    reference[0, 25, 0] = prediction[0, 25, 0] = 14
    newer = score_arrays("flare23", prediction, reference, (1.0, 1.0, 1.0)).metrics
    assert newer["tumour"] == {"DSC": 1.0, "NSD": 1.0}
    assert newer["pancreas"]["DSC"] == 0.1
    assert newer["pancreas"]["NSD"] > 0
    older = score_arrays("flare22", prediction * (prediction < 14), reference * (reference < 14), (1.0, 1.0, 1.0))
    assert older.metrics["pancreas"] == {"DSC": 0.1, "NSD": 0.0}


def test_tumour_regions_overlap() -> None:
    reference = np.zeros((4, 4, 4), dtype=np.uint8)
    reference[0], reference[1], reference[2] = 1, 2, 3
    prediction = np.where(reference == 2, 3, reference)
    dice = {
        name: scores["Dice"]
        for name, scores in score_arrays("nnformer", prediction, reference, labels="msd-braintumour").metrics.items()
    }
    assert dice == pytest.approx({"ET": 2 * 16 / (16 + 32), "TC": 1.0, "WT": 1.0})


def test_ignored_voxels_count_nowhere() -> None:
    labels = LabelMap("test", {"one": 1, "both": (1, 2)}, "", ignore=3)
    reference, prediction = random_labels(5, classes=3), random_labels(6, classes=2)
    images = [LabelImage(None, part, Grid(part.shape, SPACING)) for part in (prediction, reference)]
    scores = score_pair(*images, labels, PROTOCOLS["nnunet"].score, {"one": 1.0, "both": 1.0})
    counted = reference != 3
    for name, values in (("one", [1]), ("both", [1, 2])):
        truth, guess = np.isin(reference, values)[counted], np.isin(prediction, values)[counted]
        got = scores.metrics[name]
        assert [got["TP"], got["TN"]] == [(truth & guess).sum(), (~truth & ~guess).sum()]
        assert [got["FP"], got["FN"]] == [(~truth & guess).sum(), (truth & ~guess).sum()]
        assert math.isnan(got["HD95"])
        assert math.isnan(got["NSD"])


# Data


def test_tolerances_of_flare() -> None:
    """JunMa11/FLARE: label, tolerance in mm."""
    organisers = {1: 5, 2: 3, 3: 3, 4: 5, 5: 2, 6: 2, 7: 2, 8: 2, 9: 2, 10: 3, 11: 5, 12: 7, 13: 3}
    by_value = {value: FLARE22_TOLERANCES[name] for name, value in LABEL_MAPS["flare22"].classes.items()}
    assert by_value == organisers
    assert PROTOCOLS["flare23"].tolerances == {**FLARE22_TOLERANCES, "tumour": 2}
    assert PROTOCOLS["flare24-t2"].tolerances == FLARE22_TOLERANCES
    assert PROTOCOLS["flare24-t1"].tolerances == PROTOCOLS["lesion"].tolerances == {"lesion": 2}
    by_value = {value: PROTOCOLS["flare21"].tolerances[name] for name, value in LABEL_MAPS["flare21"].classes.items()}
    assert by_value == {1: 1, 2: 1, 3: 1, 4: 1}


def test_label_maps_of_synapse() -> None:
    """The values of each eight-organ map, with the BTCV labels that TransUNet and CASCADE made them of."""
    btcv = LABEL_MAPS["btcv"].classes
    for name, origins in (
        ("synapse-transunet", (8, 4, 3, 2, 6, 11, 1, 7)),
        ("synapse-cascade", (1, 2, 3, 4, 11, 6, 7, 8)),
    ):
        labels = LABEL_MAPS[name]
        assert list(labels.classes.values()) == list(range(1, 9))
        assert tuple(btcv[organ] for organ in labels.classes) == origins
    reported = LABEL_MAPS["btcv-8"]
    assert sorted(reported.classes.values()) == [1, 2, 3, 4, 6, 7, 8, 11]
    assert {organ: btcv[organ] for organ in reported.classes} == reported.classes
    assert reported.known_values() == set(range(14))


def test_other_label_maps() -> None:
    assert LABEL_MAPS["flare21"].describe() == "1 liver, 2 kidney, 3 spleen, 4 pancreas"
    assert LABEL_MAPS["flare22"].describe() == (
        "1 liver, 2 right kidney, 3 spleen, 4 pancreas, 5 aorta, 6 inferior vena cava, 7 right adrenal gland, "
        "8 left adrenal gland, 9 gallbladder, 10 oesophagus, 11 stomach, 12 duodenum, 13 left kidney"
    )
    assert LABEL_MAPS["acdc"].describe() == (
        "1 right ventricle cavity, 2 myocardium, 3 left ventricle cavity"
    )  # fmt: skip
    assert LABEL_MAPS["msd-braintumour"].describe() == "3 ET, 2+3 TC, 1+2+3 WT"
    assert all(labels.source for labels in LABEL_MAPS.values())


def test_protocols_are_complete() -> None:
    for name, protocol in PROTOCOLS.items():
        assert find_protocol(name) is protocol
        assert protocol.source
        assert protocol.labels is None or protocol.labels in LABEL_MAPS
        assert all(metric.definition and metric.empty for metric in protocol.metrics)
        distances = [metric for metric in protocol.metrics if metric.name in ("HD95", "ASD", "ASSD")]
        assert all(metric.unit in ("mm", "voxel") for metric in distances)
    with pytest.raises(UserError, match="no protocol 'medpy'; there are nnunet, transunet"):
        find_protocol("medpy")
