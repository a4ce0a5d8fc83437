"""The record that a plan becomes."""

from __future__ import annotations

import dataclasses

import pytest

from nnunetv2_ext.architectures.geometry import Geometry, stage_grids


def test_sizes_at_each_stage() -> None:
    geometry = Geometry.from_strides((20, 64, 48), [(1, 2, 2), (2, 2, 2), (2, 4, 2)])
    assert geometry.spatial_dims == 3
    assert geometry.n_stages == 4
    assert geometry.cumulative_strides == ((1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 16, 8))
    assert geometry.grid(0) == (20, 64, 48)
    assert geometry.grid(3) == (5, 4, 6)
    assert geometry.features == (32, 64, 128, 256)


def test_grid_of_a_patch_that_strides_do_not_divide_is_rounded_up() -> None:
    assert Geometry.from_strides((7, 9), [(2, 2), (2, 2)]).grid(2) == (2, 3)


def test_padded_size_is_the_next_multiple() -> None:
    assert Geometry.from_strides((20, 64, 49), [(2, 2, 2)]).padded_size((16, 32, 7)) == (32, 64, 49)


def test_leading_stage_of_ones_may_be_given_or_left_out() -> None:
    assert Geometry.from_strides((8, 8), [(2, 2)]) == Geometry.from_strides((8, 8), [(1, 1), (2, 2)])


def test_lists_of_a_plans_file_become_tuples() -> None:
    geometry = Geometry([8, 8], [[1, 1], [2, 2]], [[3, 3], [3, 3]], [32, 64], [2, 2])
    assert geometry == Geometry.from_strides((8, 8), [(2, 2)])
    assert hash(geometry) == hash(Geometry.from_strides((8, 8), [(2, 2)]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        geometry.patch_size = (4, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": (8,)}, "2 or 3 whole numbers"),
        ({"patch_size": (8, 0)}, "at least 1"),
        ({"strides": ((2, 2), (2, 2))}, "must be all ones"),
        ({"strides": ((1, 1, 1), (2, 2, 2))}, "hold 2 whole numbers"),
        ({"strides": ()}, "must be all ones"),
        ({"kernel_sizes": ((3, 3),)}, "1 entries for 2 stages"),
        ({"features": (32, 64, 128)}, "3 entries for 2 stages"),
        ({"n_conv_per_stage": (2,)}, "1 entries for 2 stages"),
    ],
)
def test_contradicting_fields_are_refused(changes: dict, words: str) -> None:
    fields = dataclasses.asdict(Geometry.from_strides((8, 8), [(2, 2)]))
    with pytest.raises(ValueError, match=words):
        Geometry(**{**fields, **changes})


def test_stage_grids_divides_stage_by_stage() -> None:
    assert stage_grids((16, 32), [(2, 4), (2, 2)]) == [(8, 8), (4, 4)]


@pytest.mark.parametrize(
    ("patch_size", "words"),
    [((16, 33), r"axis 1 has 33 voxels, which its strides, 8 in all, do not divide; use 40"), ((16, 32, 8), "3 axes")],
)
def test_stage_grids_names_the_axis_that_does_not_fit(patch_size: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        stage_grids(patch_size, [(2, 4), (2, 2)])
