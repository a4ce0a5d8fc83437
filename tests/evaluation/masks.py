"""Pairs of masks for comparisons with other implementations: random, smooth and degenerate ones, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import gaussian_filter

__all__ = ["SPACINGS", "blob", "mask_pairs", "with_label"]

SPACINGS = {2: ((1.0, 1.0), (0.7, 1.9)), 3: ((1.0, 1.0, 1.0), (2.5, 0.8, 0.8), (0.3, 1.1, 4.0))}


def blob(rng: np.random.Generator, shape: tuple[int, ...], part: float = 0.3, smoothing: float = 2.0) -> np.ndarray:
    """Draw a smooth random mask that fills a part of the array, up to its border."""
    field = gaussian_filter(rng.standard_normal(shape), smoothing, mode="wrap")
    return field > np.quantile(field, 1 - part)


def with_label(*voxels: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Make a mask of single voxels."""
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(np.transpose(voxels))] = True
    return mask


def mask_pairs(dims: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Return names and pairs (prediction, reference) of masks that are not empty."""
    rng = np.random.default_rng(20)
    shape, corner, centre = (14, 17, 19)[-dims:], (0,) * dims, (6, 7, 8)[-dims:]
    for number in range(3):
        yield f"noise {number}", rng.random(shape) > 0.5 + 0.2 * number, rng.random(shape) > 0.8
    for number in range(3):
        yield f"blobs {number}", blob(rng, shape), blob(rng, shape)
    base = blob(rng, shape)
    yield "equal", base, base.copy()
    yield "shifted", np.roll(base, 1, axis=0), base
    yield "nearly all", ~with_label(centre, shape=shape), ~with_label(corner, shape=shape)
    yield "all", np.ones(shape, dtype=bool), base
    yield "one voxel each", with_label(corner, shape=shape), with_label(centre, shape=shape)
    yield "one voxel against a blob", with_label(tuple(size - 1 for size in shape), shape=shape), base
    yield "the same voxel", with_label(centre, shape=shape), with_label(centre, shape=shape)
    flat = np.zeros(shape, dtype=bool)
    flat[0] = True
    yield "a face of the array", flat, flat[::-1]
    yield "one slice", np.ones((1, *shape[1:]), dtype=bool), blob(rng, (1, *shape[1:]))
    hollow = np.ones(shape, dtype=bool)
    hollow[tuple(slice(3, -3) for _ in shape)] = False
    yield "hollow", hollow, base
