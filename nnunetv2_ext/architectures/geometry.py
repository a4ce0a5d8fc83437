"""What a plan of nnU-Net tells a network, as one small frozen record that knows nothing of nnU-Net."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Geometry", "PlannedNetwork", "default_network", "halving_stride", "stage_grids"]

DEFAULT_BASE_FEATURES = 32
MAX_FEATURES = {2: 512, 3: 320}


def _as_table(name: str, rows: Sequence[Sequence[int]], spatial_dims: int) -> tuple[tuple[int, ...], ...]:
    table = tuple(tuple(int(value) for value in row) for row in rows)
    for row in table:
        if len(row) != spatial_dims or min(row) < 1:
            raise ValueError(f"{name} {table}: every entry must hold {spatial_dims} whole numbers of at least 1.")
    return table


@dataclass(frozen=True)
class PlannedNetwork:
    """The network that a plan names, as the plans file writes it.

    Attributes:
        class_name: full name of its class.
        arguments: its constructor's arguments, without input channels, classes and deep supervision.
        imports: the arguments among them that are names of something to import.
    """

    class_name: str
    arguments: Mapping[str, Any]
    imports: tuple[str, ...]


@dataclass(frozen=True)
class Geometry:
    """Sizes of one nnU-Net configuration.

    A stage is one level of resolution; stage 0 is the input's own.

    Attributes:
        patch_size: voxels per axis, in the axis order of the network's input; its length, 2 or 3, is the dimension.
        strides: per stage, the stride per axis that leads to it from the stage before; the first is all ones.
        kernel_sizes: per stage, the convolution kernel per axis.
        features: per stage, the channels of the planned network.
        n_conv_per_stage: per stage, the convolutions (or residual blocks) of the planned network's encoder.
        network: the planned network itself, for methods that extend it; None where there is no plan. Not compared: two
            geometries of the same sizes are equal.

    Raises:
        ValueError: if the fields contradict each other; one sentence says how.
    """

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    features: tuple[int, ...]
    n_conv_per_stage: tuple[int, ...]
    network: PlannedNetwork | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        patch_size = tuple(int(size) for size in self.patch_size)
        if len(patch_size) not in (2, 3) or min(patch_size) < 1:
            raise ValueError(f"Patch size {patch_size} must hold 2 or 3 whole numbers of at least 1.")
        # The record is frozen: lists, as a plans file holds them, are turned into tuples this way.
        set_field = object.__setattr__
        set_field(self, "patch_size", patch_size)
        set_field(self, "strides", _as_table("Strides", self.strides, len(patch_size)))
        set_field(self, "kernel_sizes", _as_table("Kernel sizes", self.kernel_sizes, len(patch_size)))
        set_field(self, "features", tuple(int(value) for value in self.features))
        set_field(self, "n_conv_per_stage", tuple(int(value) for value in self.n_conv_per_stage))
        if not self.strides or set(self.strides[0]) != {1}:
            raise ValueError(
                f"Strides {self.strides}: the first entry belongs to the full resolution and must be all ones."
            )
        for name in ("kernel_sizes", "features", "n_conv_per_stage"):
            if len(getattr(self, name)) != len(self.strides):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {len(self.strides)} stages; give one per stage."
                )

    @classmethod
    def from_strides(cls, patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> Geometry:
        """Make a geometry from a patch size and strides alone, with the widths and kernels nnU-Net uses by default.

        Args:
            patch_size: voxels per axis.
            strides: per stage; the leading all-ones entry may be left out.
        """
        spatial_dims = len(patch_size)
        stages = [tuple(stride) for stride in strides]
        if not stages or set(stages[0]) != {1}:
            stages.insert(0, (1,) * spatial_dims)
        limit = MAX_FEATURES.get(spatial_dims, min(MAX_FEATURES.values()))
        return cls(
            patch_size=tuple(patch_size),
            strides=tuple(stages),
            kernel_sizes=((3,) * spatial_dims,) * len(stages),
            features=tuple(min(DEFAULT_BASE_FEATURES * 2**stage, limit) for stage in range(len(stages))),
            n_conv_per_stage=(2,) * len(stages),
        )

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.patch_size)

    @property
    def n_stages(self) -> int:
        """Levels of resolution, the input's own included."""
        return len(self.strides)

    @property
    def cumulative_strides(self) -> tuple[tuple[int, ...], ...]:
        """Per stage, its stride against the input, per axis."""
        return tuple(
            tuple(math.prod(stride[axis] for stride in self.strides[: stage + 1]) for axis in range(self.spatial_dims))
            for stage in range(self.n_stages)
        )

    def grid(self, stage: int) -> tuple[int, ...]:
        """Return the positions per axis at a stage: the patch size divided by the stage's stride, rounded up."""
        return tuple(
            -(-size // stride) for size, stride in zip(self.patch_size, self.cumulative_strides[stage], strict=True)
        )

    def padded_size(self, multiple: Sequence[int]) -> tuple[int, ...]:
        """Return the smallest size per axis that holds the patch and is a multiple of `multiple`."""
        return tuple(-(-size // factor) * factor for size, factor in zip(self.patch_size, multiple, strict=True))


def stage_grids(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Divide a patch by the strides of successive stages.

    Raises:
        ValueError: where a stride does not divide what is left of an axis; the sentence names the axis.
    """
    total = [math.prod(axis) for axis in zip(*strides, strict=True)]
    if len(total) != len(patch_size):
        raise ValueError(f"Patch size {tuple(patch_size)} has {len(patch_size)} axes, the strides have {len(total)}.")
    for axis, (size, stride) in enumerate(zip(patch_size, total, strict=True)):
        if size % stride:
            raise ValueError(
                f"Patch size {tuple(patch_size)}: axis {axis} has {size} voxels, which its strides, {stride} in all, "
                f"do not divide; use {-(-size // stride) * stride} voxels, or plan the experiment again."
            )
    grids, grid = [], tuple(patch_size)
    for stride in strides:
        grid = tuple(size // step for size, step in zip(grid, stride, strict=True))
        grids.append(grid)
    return grids


def halving_stride(grid: Sequence[int]) -> tuple[int, ...]:
    """Return the stride of one more level below a grid: 2 along axes that are even and have four positions at least."""
    return tuple(2 if size % 2 == 0 and size >= 4 else 1 for size in grid)


def default_network(geometry: Geometry) -> PlannedNetwork:
    """Return the network that nnU-Net's default planner would name for a geometry that comes without one."""
    dims = geometry.spatial_dims
    return PlannedNetwork(
        class_name="dynamic_network_architectures.architectures.unet.PlainConvUNet",
        arguments={
            "n_stages": geometry.n_stages,
            "features_per_stage": geometry.features,
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": geometry.kernel_sizes,
            "strides": geometry.strides,
            "n_conv_per_stage": geometry.n_conv_per_stage,
            "n_conv_per_stage_decoder": (2,) * (geometry.n_stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        imports=("conv_op", "norm_op", "dropout_op", "nonlin"),
    )
