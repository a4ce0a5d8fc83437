"""A finely sampled patient on which bodies are painted, and the scanner that turns it into voxels.

Coordinates are millimetres in an average patient, the way DICOM counts them: x grows to the patient's left, y to the
back, z to the head, the origin is the middle of the body. Each patient bends that space in its own way, so that a body
is written down once (an ellipsoid, a tube) and looks different in every case.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

__all__ = ["Canvas", "bspline_field"]

SUPERSAMPLING = 2  # painted samples per voxel edge; averaging them is the partial-volume effect
AIR = -1000.0  # HU

Point = Sequence[float] | np.ndarray  # along x, y, z in mm


def bspline_field(rng: np.random.Generator, axes: Sequence[np.ndarray], knot_mm: float) -> np.ndarray:
    """Draw a random smooth field from a cubic B-spline with random control points.

    Args:
        rng: Source of the control points.
        axes: Sample positions along z, y and x in mm, each ascending.
        knot_mm: Distance between control points: details are not smaller than this.

    Returns:
        Field over the grid of the axes with shape (Z, Y, X), mean 0, standard deviation about 1, float32.
    """
    bases = []
    for positions in axes:
        steps = (positions - positions[0]) / knot_mm
        distance = np.abs(steps[:, None] - np.arange(-1, int(steps[-1]) + 3)[None, :])
        basis = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6)
        bases.append((basis / 0.69).astype(np.float32))  # 0.69: rms of a unit-variance spline along one axis
    points = rng.standard_normal([basis.shape[1] for basis in bases]).astype(np.float32)
    field = np.tensordot(bases[0], points, axes=(1, 0))  # (Z, cy, cx)
    return (bases[1] @ field) @ bases[2].T  # (Z, Y, cx) -> (Z, Y, X)


class Canvas:
    """Hounsfield units and labels of one patient, before the scanner.

    Attributes:
        x, y, z: Coordinates of every sample in the average patient, in mm, shape (Z, Y, X).
        hu: Hounsfield units, same shape.
        labels: Label values, same shape.
        bumps: Two smooth fields (standard deviation 1) that roughen the surfaces of organs, same shape each.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        size: tuple[float, float, float],
        shift: tuple[float, float, float],
        bend_mm: float,
    ) -> None:
        """Set up an empty canvas, filled with air.

        Args:
            rng: Source of the deformation.
            shape: Voxels of the scan along z, y, x.
            spacing: Voxel size along z, y, x in mm.
            size: Size of the patient relative to the average one along z, y, x.
            shift: Where the average patient's origin lies in the scan along z, y, x in mm.
            bend_mm: Standard deviation of the smooth deformation.
        """
        self.axes = []
        for n, step in zip(shape, spacing, strict=True):
            count = n * SUPERSAMPLING
            self.axes.append((np.arange(count) - (count - 1) / 2) * step / SUPERSAMPLING)
        self.size, self.shift, self.bend_mm = size, shift, bend_mm
        bends = [bend_mm * bspline_field(rng, self.axes, 75.0) for _ in range(3)]
        grids = np.meshgrid(*self.axes, indexing="ij", sparse=True)
        self.z, self.y, self.x = (
            ((grid - offset) / scale).astype(np.float32) + bend
            for grid, offset, scale, bend in zip(grids, shift, size, bends, strict=True)
        )
        self.bumps = [bspline_field(rng, self.axes, 26.0) for _ in range(2)]
        self.hu = np.full(self.x.shape, AIR, np.float32)
        self.labels = np.zeros(self.x.shape, np.uint8)

    def window(self, centre: Point, radii: Point) -> tuple[slice, slice, slice]:
        """Find the samples that a body can reach, so that only those are computed.

        Args:
            centre: Middle of the body along x, y, z in mm.
            radii: Half extent of the body along x, y, z in mm.

        Returns:
            One slice per axis, in array order (z, y, x).
        """
        slices = []
        for axis, c, r, scale, offset in zip(
            self.axes, reversed(centre), reversed(radii), self.size, self.shift, strict=True
        ):
            reach = r + 4 * self.bend_mm + 4  # the bend is bell shaped: beyond 4 deviations nothing is left
            low, high = (c - reach) * scale + offset, (c + reach) * scale + offset
            slices.append(slice(int(np.searchsorted(axis, low)), int(np.searchsorted(axis, high))))
        z, y, x = slices
        return z, y, x

    def paint(
        self, where: tuple[slice, slice, slice], inside: np.ndarray, hu: float | np.ndarray, label: int = 0
    ) -> None:
        """Fill a body: whatever was there before is gone.

        Args:
            where: The window that `inside` covers.
            inside: True inside the body, shape of the window.
            hu: Hounsfield units, one value or one for each sample of the window.
            label: Label value of the body, 0 for tissue that has none.
        """
        self.hu[where] = np.where(inside, hu, self.hu[where])
        self.labels[where][inside] = label

    def ellipsoid(
        self, where: tuple[slice, slice, slice], centre: Point, radii: Point, tilt: float = 0.0
    ) -> np.ndarray:
        """Measure how deep each sample lies in an ellipsoid.

        Args:
            where: The window to compute.
            centre: Centre along x, y, z in mm.
            radii: Half axes along x, y, z in mm.
            tilt: How far the body leans to the patient's left per mm towards the head.

        Returns:
            About the distance to the surface in mm, positive inside, shape of the window.
        """
        z = self.z[where] - centre[2]
        x = self.x[where] - centre[0] - tilt * z
        y = self.y[where] - centre[1]
        norm = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2)
        return (1 - norm) * np.float32(np.mean(radii))

    def tube(
        self, where: tuple[slice, slice, slice], start: Sequence[float], end: Sequence[float], radius: float
    ) -> np.ndarray:
        """Measure how deep each sample lies in a straight tube with round ends.

        Args:
            where: The window to compute.
            start: One end along x, y, z in mm.
            end: The other end.
            radius: Radius in mm.

        Returns:
            Distance to the surface in mm, positive inside, shape of the window.
        """
        origin, axis = np.asarray(start, np.float32), np.subtract(end, start).astype(np.float32)
        dx, dy, dz = (grid[where] - middle for grid, middle in zip((self.x, self.y, self.z), origin, strict=True))
        along = np.clip((dx * axis[0] + dy * axis[1] + dz * axis[2]) / (axis @ axis), 0, 1)
        return radius - np.sqrt((dx - along * axis[0]) ** 2 + (dy - along * axis[1]) ** 2 + (dz - along * axis[2]) ** 2)

    def scan(self, rng: np.random.Generator, noise_hu: float) -> tuple[np.ndarray, np.ndarray]:
        """Scan the patient: partial volume, a reconstruction kernel's blur, and noise of the kind that it leaves.

        Args:
            rng: Source of the noise.
            noise_hu: Standard deviation of the noise in the middle of the patient in HU.

        Returns:
            CT in HU as int16 and labels as uint8 (the label that fills most of a voxel), both of the scan's shape.
        """
        ct = ndimage.gaussian_filter(_block_mean(self.hu), (0.0, 0.4, 0.4))
        kinds = np.unique(self.labels)
        share = np.stack([_block_mean((self.labels == kind).astype(np.float32)) for kind in kinds])
        labels = kinds[np.argmax(share, axis=0)]

        # Filtered back projection leaves noise in a band of frequencies; what is left of it after averaging over a
        # thick slice is strongest where the rays are longest, in the middle of the body.
        white = rng.standard_normal(ct.shape).astype(np.float32)
        band = ndimage.gaussian_filter(white, (0.0, 0.55, 0.55)) - ndimage.gaussian_filter(white, (0.0, 1.8, 1.8))
        white = rng.standard_normal(ct.shape).astype(np.float32)
        away = np.hypot(*np.meshgrid(*(np.linspace(-1, 1, n) for n in ct.shape[1:]), indexing="ij"))
        ct = ct + noise_hu * (1.15 - 0.5 * away) * (0.95 * band / band.std() + 0.3 * white)
        return np.clip(np.rint(ct), -1024, 3071).astype(np.int16), labels.astype(np.uint8)


def _block_mean(fine: np.ndarray) -> np.ndarray:
    """Average the samples of each voxel: (Z*s, Y*s, X*s) -> (Z, Y, X)."""
    z, y, x = (n // SUPERSAMPLING for n in fine.shape)
    return fine.reshape(z, SUPERSAMPLING, y, SUPERSAMPLING, x, SUPERSAMPLING).mean(axis=(1, 3, 5), dtype=np.float32)
