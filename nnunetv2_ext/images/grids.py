"""Where the voxels of an image lie, and whether two images have the same ones: one notion, with one tolerance."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from nnunetv2_ext.errors import UserError

__all__ = ["TOLERANCE", "Grid", "Turn", "require_same_grid", "same_grid", "turn_between"]

# Writers round the numbers of a header in different ways; this part of the smallest voxel edge is more than that, and
# less than a shift that anyone would make.
TOLERANCE = 0.1
_SAME_SPACING = 1e-3


@dataclass(frozen=True)
class Grid:
    """The voxels of an image.

    Attributes:
        size: voxels along each axis.
        spacing: voxel size in mm, in the order of the axes; None where the file states none.
        placements: matrix from indices to mm, shape (4, 4), as each library reads it from the header; empty where the
            file states no position. Libraries differ where the forms in a header differ, and count mm from other sides.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...] | None = None
    placements: Mapping[str, np.ndarray] = field(default_factory=dict)

    def turned(self, turn: Turn) -> Grid:
        """Return the grid of an array that `Turn.apply` has turned."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1.0
        for new, (old, backwards) in enumerate(zip(turn.axes, turn.backwards, strict=True)):
            matrix[old, new] = -1.0 if backwards else 1.0
            if backwards:
                matrix[old, 3] = self.size[old] - 1
        return replace(
            self,
            size=tuple(self.size[axis] for axis in turn.axes),
            spacing=None if self.spacing is None else tuple(self.spacing[axis] for axis in turn.axes),
            placements={reader: placement @ matrix for reader, placement in self.placements.items()},
        )


@dataclass(frozen=True)
class Turn:
    """Another order and direction of axes.

    Attributes:
        axes: the old axis that each new one was.
        backwards: whether each new axis runs against the old one.
    """

    axes: tuple[int, ...]
    backwards: tuple[bool, ...]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Return a view of an array with these axes."""
        return np.transpose(array, self.axes)[tuple(slice(None, None, -1 if back else 1) for back in self.backwards)]


def _shift(grid: Grid, wanted: Grid) -> float:
    """Return by how many mm the corners of two grids of one size lie apart, at most.

    A grid that does not state its position is compared by its spacing, and one without a spacing not at all. Where two
    libraries read both headers, the reading in which the grids are nearer counts: the file was written by one of them.
    """
    if grid.spacing is None or wanted.spacing is None:
        return 0.0
    # The outer borders of the first and last voxels, so that the thickness of a single slice counts as well.
    ends = [(-0.5, size - 0.5) for size in wanted.size] + [(0.0,)] * (3 - len(wanted.size)) + [(1.0,)]
    corners = np.array(list(itertools.product(*ends)))
    both = grid.placements.keys() & wanted.placements.keys()
    pairs = [(grid.placements[reader], wanted.placements[reader]) for reader in both]
    if not pairs:
        pairs = [(_spread(grid.spacing), _spread(wanted.spacing))]
    return min(float(np.linalg.norm(corners @ (one - other).T, axis=1).max()) for one, other in pairs)


def _spread(spacing: tuple[float, ...]) -> np.ndarray:
    return np.diag([*spacing, *[1.0] * (4 - len(spacing))])


def same_grid(grid: Grid, wanted: Grid) -> bool:
    """Check whether two images have the same voxels, up to `TOLERANCE` of the smallest voxel edge.

    A side that states no spacing, or no position, contradicts nothing there.
    """
    return grid.size == wanted.size and _shift(grid, wanted) <= TOLERANCE * min(wanted.spacing or (1.0,))


def turn_between(grid: Grid, wanted: Grid) -> Turn | None:
    """Return how the axes of an image are turned to those of another that has its voxels at the same places.

    Returns:
        None where voxels lie elsewhere, or nowhere that is stated.
    """
    if len(grid.size) != 3 or len(wanted.size) != 3:
        return None
    for reader in grid.placements.keys() & wanted.placements.keys():
        steps = np.linalg.solve(wanted.placements[reader][:3, :3], grid.placements[reader][:3, :3])
        whole = np.rint(steps)
        if not np.array_equal(np.abs(whole).sum(axis=0), (1, 1, 1)) or not np.array_equal(
            np.abs(whole).sum(axis=1), (1, 1, 1)
        ):
            continue
        axes = tuple(int(axis) for axis in np.abs(whole).argmax(axis=1))
        turn = Turn(axes, tuple(bool(whole[new, old] < 0) for new, old in enumerate(axes)))
        if same_grid(grid.turned(turn), wanted):
            return turn
    return None


def require_same_grid(grid: Grid, wanted: Grid, path: Path, other: str, remedy: str) -> None:
    """Raise unless two images have the same voxels; see `same_grid`.

    Args:
        grid: voxels of the file.
        wanted: voxels that it should have.
        path: the file, for the message.
        other: what the other file is, as in `its reference case_1.nii.gz`.
        remedy: what to do, the end of the message.

    Raises:
        UserError: naming the file and what differs.
    """
    if same_grid(grid, wanted):
        return
    if grid.size != wanted.size:
        wrong, right = (" x ".join(map(str, size)) for size in (grid.size, wanted.size))
        raise UserError(f"{path} has {wrong} voxels, but {other} has {right}: {remedy}.")
    shift, reason = _shift(grid, wanted), "origin or direction differ"
    # Without a spacing on both sides there is no shift.
    if grid.spacing and wanted.spacing and not np.allclose(grid.spacing, wanted.spacing, rtol=_SAME_SPACING):
        reason = f"its spacing is {_rounded(grid.spacing)} mm instead of {_rounded(wanted.spacing)} mm"
    raise UserError(f"{path} lies elsewhere than {other}, by up to {shift:.3g} mm ({reason}): {remedy}.")


def _rounded(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{size:.6g}" for size in spacing)
