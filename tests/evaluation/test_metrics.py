"""The metrics equal MedPy's, MONAI's and DeepMind's on random and degenerate masks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import medpy.metric.binary as medpy
import numpy as np
import pytest
import surface_distance
import torch
from monai.metrics import compute_average_surface_distance, compute_surface_dice

from nnunetv2_ext.evaluation import metrics
from tests.evaluation.masks import SPACINGS, blob, mask_pairs

# The libraries that are compared with use old names of others.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:surface_distance"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
]

PAIRS = [
    pytest.param(prediction, reference, spacing, id=f"{name}, spacing {spacing}")
    for dims in (2, 3)
    for name, prediction, reference in mask_pairs(dims)
    for spacing in SPACINGS[dims]
]
each_pair = pytest.mark.parametrize(("prediction", "reference", "spacing"), PAIRS)
exactly = {"rel": 1e-6, "abs": 1e-6}


@pytest.fixture(autouse=True)
def _keep_denormals() -> Iterator[None]:
    """MONAI builds a balanced tree of points, which crashes at coordinates of 0 where denormals are flushed to zero."""
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(True)


def tensor(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask.copy())[None, None]


@each_pair
def test_overlap_is_medpys(prediction, reference, spacing) -> None:
    overlap = metrics.count_overlap(prediction, reference)
    assert overlap.tp + overlap.fp + overlap.fn + overlap.tn == reference.size
    assert metrics.dice(overlap) == pytest.approx(medpy.dc(prediction, reference), **exactly)
    assert metrics.iou(overlap) == pytest.approx(medpy.jc(prediction, reference), **exactly)
    assert metrics.sensitivity(overlap) == pytest.approx(medpy.sensitivity(prediction, reference), **exactly)
    if not reference.all():
        assert metrics.specificity(overlap) == pytest.approx(medpy.specificity(prediction, reference), **exactly)
    assert metrics.accuracy(overlap) == pytest.approx(np.mean(prediction == reference), **exactly)


@each_pair
def test_distances_are_medpys(prediction, reference, spacing) -> None:
    distances = metrics.surface_distances(prediction, reference, spacing)
    theirs = {"result": prediction, "reference": reference, "voxelspacing": spacing}
    assert metrics.hausdorff_95(distances) == pytest.approx(medpy.hd95(**theirs), **exactly)
    assert metrics.average_surface_distance(distances) == pytest.approx(medpy.asd(**theirs), **exactly)
    assert metrics.average_symmetric_surface_distance(distances) == pytest.approx(medpy.assd(**theirs), **exactly)


@each_pair
def test_average_distances_are_monais(prediction, reference, spacing) -> None:
    distances = metrics.surface_distances(prediction, reference, spacing)
    for symmetric, ours in (
        (False, metrics.average_surface_distance(distances)),
        (True, metrics.average_symmetric_surface_distance(distances)),
    ):
        theirs = compute_average_surface_distance(
            tensor(prediction), tensor(reference), include_background=True, symmetric=symmetric, spacing=spacing
        )
        assert ours == pytest.approx(theirs.item(), **exactly)


@each_pair
def test_surface_dice_is_deepminds(prediction, reference, spacing) -> None:
    theirs = surface_distance.compute_surface_distances(reference, prediction, spacing)
    # Multiples of the spacing too: many distances are then exactly the tolerance. Only where two nearest points are
    # equally far along different axes, as 11 x 0.3 and 3 x 1.1, rounding decides which of them is found.
    for tolerance in (0.0, spacing[0], 2 * spacing[-1], 1.0, 3.7):
        expected = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance)
        assert metrics.surface_dice(prediction, reference, tolerance, spacing) == pytest.approx(expected, **exactly)


@pytest.mark.parametrize("spacing", SPACINGS[3])
def test_surface_dice_is_monais_with_subvoxels(spacing) -> None:
    rng = np.random.default_rng(3)
    for _ in range(3):
        prediction, reference = blob(rng, (14, 17, 19)), blob(rng, (14, 17, 19))
        theirs = compute_surface_dice(
            tensor(prediction), tensor(reference), [2.0], include_background=True, spacing=spacing, use_subvoxels=True
        )
        assert metrics.surface_dice(prediction, reference, 2.0, spacing) == pytest.approx(theirs.item(), **exactly)


def test_every_cell_has_deepminds_area() -> None:
    """Each of the 256 ways in which 2 x 2 x 2 voxels can be filled, alone in an array."""
    spacing = (0.4, 1.3, 2.9)
    for code in range(1, 256):
        mask = np.array([code >> bit & 1 for bit in range(8)], dtype=bool).reshape(2, 2, 2)
        theirs = surface_distance.compute_surface_distances(mask, mask, spacing)["surfel_areas_gt"].sum()
        areas = metrics._areas(np.array(spacing))
        assert areas[metrics._cells(mask)].sum() == pytest.approx(theirs, **exactly)


def test_areas_of_a_large_ball_sum_to_its_surface() -> None:
    """Marching cubes on a binary ball overestimates its smooth surface by less than a tenth."""
    grid = np.ogrid[-30:31, -30:31, -30:31]
    ball = sum(axis**2 for axis in grid) <= 25**2
    area = metrics._areas(np.ones(3))[metrics._cells(ball)].sum()
    assert 1.0 < area / (4 * math.pi * 25**2) < 1.1


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 7)])
def test_empty_masks(shape) -> None:
    empty, full = np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    for pair in ((empty, empty), (empty, full), (full, empty)):
        with pytest.raises(ValueError, match="not empty"):
            metrics.surface_distances(*pair)
    assert math.isnan(metrics.surface_dice(empty, empty, 1.0))
    assert metrics.surface_dice(full, empty, 1.0) == metrics.surface_dice(empty, full, 1.0) == 0
    both = metrics.count_overlap(empty, empty)
    assert math.isnan(metrics.dice(both))
    assert math.isnan(metrics.iou(both))
    assert math.isnan(metrics.sensitivity(both))
    assert metrics.specificity(both) == metrics.accuracy(both) == 1
    assert metrics.dice(metrics.count_overlap(full, empty)) == metrics.dice(metrics.count_overlap(empty, full)) == 0
    assert math.isnan(metrics.specificity(metrics.count_overlap(full, full)))


def test_what_lies_around_the_masks_changes_nothing() -> None:
    rng = np.random.default_rng(5)
    pair = [np.pad(blob(rng, (8, 9, 10)), 1) for _ in range(2)]
    far = [np.pad(mask, ((3, 40), (0, 7), (21, 0))) for mask in pair]
    fortran = [np.asfortranarray(mask) for mask in far]
    for spacing in SPACINGS[3]:
        expected = metrics.surface_distances(*pair, spacing)
        for other in (far, fortran):
            got = metrics.surface_distances(*other, spacing)
            assert np.array_equal(got.to_reference, expected.to_reference)
            assert np.array_equal(got.to_prediction, expected.to_prediction)
            assert metrics.surface_dice(*other, 1.0, spacing) == metrics.surface_dice(*pair, 1.0, spacing)


def test_bad_input_is_refused() -> None:
    mask = np.ones((3, 4), dtype=bool)
    with pytest.raises(ValueError, match=r"shape \(3, 4\), the reference \(3,\)"):
        metrics.count_overlap(mask, mask[:, 0])
    with pytest.raises(ValueError, match="boolean"):
        metrics.surface_distances(mask, mask.astype(int))
    for spacing in ((1.0,), (1.0, 0.0)):
        with pytest.raises(ValueError, match="positive number for each of 2 axes"):
            metrics.surface_dice(mask, mask, 1.0, spacing)


@pytest.mark.parametrize("shape", [(20, 20), (9, 20, 20)])
def test_flushing_denormals_to_zero_is_harmless(shape) -> None:
    """torch can be told to, for the sake of speed; many points with a coordinate of 0 crash some search trees then."""
    reference = np.ones(shape, dtype=bool)
    prediction = np.zeros(shape, dtype=bool)
    prediction[..., :2] = True
    expected = metrics.surface_distances(prediction, reference)
    torch.set_flush_denormal(True)
    assert np.array_equal(metrics.surface_distances(prediction, reference).to_prediction, expected.to_prediction)
