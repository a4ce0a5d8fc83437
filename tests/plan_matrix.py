"""Configurations that nnU-Net's planner makes: patch sizes and strides of real and of tiny datasets, 3D and 2D."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nnunetv2_ext.architectures.geometry import Geometry

WIDEST_NARROW = 32
Z, ALL, PLANE = (1, 2, 2), (2, 2, 2), (2, 2)


@dataclass(frozen=True)
class Plan:
    """One row.

    Attributes:
        name: short name.
        patch_size: voxels per axis.
        poolings: strides after the first stage.
        thin: leading stages whose kernel is one voxel wide along the first axis.
    """

    name: str
    patch_size: tuple[int, ...]
    poolings: tuple[tuple[int, ...], ...]
    thin: int = 0

    def geometry(self, patch_size: tuple[int, ...] | None = None) -> Geometry:
        """Return the row's geometry, with another patch size if one is given."""
        axes = len(self.patch_size)
        base = Geometry.from_strides(patch_size or self.patch_size, self.poolings)
        kernels = [(1, 3, 3) if stage < self.thin else (3,) * axes for stage in range(base.n_stages)]
        return Geometry(base.patch_size, base.strides, kernels, base.features, base.n_conv_per_stage)

    def narrow(self, patch_size: tuple[int, ...] | None = None) -> Geometry:
        """Return the row's geometry with widths that a test can afford to compute with; a plan may have any."""
        base = self.geometry(patch_size)
        return replace(base, features=tuple(min(width // 4, WIDEST_NARROW) for width in base.features))

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Product of the strides per axis."""
        return tuple(math.prod(axis) for axis in zip(*self.poolings, strict=True))

    def small(self) -> Geometry:
        """Return the row's strides with a bottom of 2 x 1 x 1 or 2 x 2 positions, the least that norms take, narrow."""
        bottom = (2, 1, 1) if len(self.patch_size) == 3 else (2, 2)
        return self.narrow(tuple(n * stride for n, stride in zip(bottom, self.total_stride, strict=True)))

    def odd_voxels(self) -> int:
        """Count the voxels of the patch of `odd`."""
        return math.prod(self.odd().patch_size)

    def odd(self) -> Geometry:
        """Return the row's strides with a bottom of 3 x 2 x 5 positions, narrow."""
        return self.narrow(tuple(n * stride for n, stride in zip((3, 2, 5), self.total_stride, strict=False)))


PLANS_3D = (
    Plan("A1", (48, 192, 192), (Z, ALL, ALL, ALL, Z), 1),
    Plan("A2", (40, 224, 192), (Z, ALL, ALL, ALL, Z), 1),
    Plan("A3", (40, 224, 224), (Z, ALL, ALL, ALL, Z), 1),
    Plan("A4", (56, 192, 160), (Z, ALL, ALL, ALL, Z), 1),
    Plan("A5", (64, 192, 160), (Z, ALL, ALL, ALL, ALL), 1),
    Plan("A6", (80, 256, 256), (Z, ALL, ALL, ALL, ALL, Z), 1),
    Plan("A7", (56, 320, 256), (Z, ALL, ALL, ALL, Z, Z), 1),
    Plan("A8", (80, 288, 224), (Z, ALL, ALL, ALL, ALL), 1),
    Plan("B1", (20, 256, 224), (Z, ALL, ALL, Z, Z), 1),
    Plan("B2", (28, 256, 256), (Z, ALL, ALL, Z, Z, Z), 1),
    Plan("B3", (20, 320, 256), (Z, Z, ALL, ALL, Z, Z), 2),
    Plan("B4", (16, 320, 320), (Z, Z, Z, ALL, ALL, Z), 3),
    Plan("B5", (12, 384, 384), (Z, Z, Z, ALL, Z, Z), 3),
    Plan("B6", (10, 384, 320), (Z, Z, Z, ALL, Z, Z), 3),
    Plan("C1", (128, 128, 128), (ALL,) * 5),
    Plan("C2", (112, 160, 128), (ALL, ALL, ALL, ALL, Z)),
    Plan("C3", (80, 192, 160), (ALL, ALL, ALL, ALL, Z)),
    Plan("C4", (64, 192, 192), (ALL, ALL, ALL, ALL, Z)),
    Plan("C5", (96, 160, 160), (ALL, ALL, ALL, ALL, Z)),
    Plan("C6", (160, 192, 160), (ALL,) * 5),
    Plan("C7", (192, 192, 192), (ALL,) * 5),
    Plan("C8", (112, 256, 256), (ALL, ALL, ALL, ALL, Z, Z)),
    Plan("D1", (40, 56, 40), (ALL,) * 3),
    Plan("D2", (40, 48, 40), (ALL,) * 3),
    Plan("D3", (24, 32, 24), (ALL,) * 2),
    Plan("D4", (8, 32, 32), (Z, Z, ALL), 2),
    Plan("D5", (32, 32, 28), (ALL, ALL, (2, 2, 1))),
    Plan("D6", (10, 12, 10), (ALL,)),
)

PLANS_2D = (
    Plan("E1", (512, 512), (PLANE,) * 7),
    Plan("E2", (256, 224), (PLANE,) * 5),
    Plan("E3", (320, 256), (PLANE,) * 6),
    Plan("E4", (192, 160), (PLANE,) * 5),
    Plan("E5", (56, 40), (PLANE,) * 3),
    Plan("E6", (640, 384), (PLANE,) * 6),
    Plan("E7", (896, 640), (PLANE,) * 7),
    Plan("E8", (32, 24), (PLANE,) * 2),
)

PLANS = (*PLANS_3D, *PLANS_2D)


def distinct_strides() -> list[Plan]:
    """Return the first row of each pattern of strides: rows that differ in patch size alone are left out."""
    first: dict[tuple, Plan] = {}
    for plan in PLANS:
        first.setdefault(plan.poolings, plan)
    return list(first.values())
