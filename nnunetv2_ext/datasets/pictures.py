"""Reading and writing 2D colour images and their masks, which come as instances, as black and white, or as JPEG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nnunetv2_ext.datasets.source import Case
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.pictures import open_picture

__all__ = ["THRESHOLD", "instance_mask", "read_mask", "read_picture", "write_case"]

WHITE, THRESHOLD = 255, 128
# A mask's share of pixels that are neither nearly black nor nearly white; JPEG makes some along the border.
MOST_GREY, NEARLY = 0.05, 64


def read_picture(path: Path) -> Image.Image:
    """Read a picture as RGB with 8 bits a channel; an alpha channel is left out.

    Raises:
        UserError: if it cannot be read, or is no picture with 8 bits a channel.
    """
    picture = open_picture(path)
    if picture.mode not in ("RGB", "RGBA", "L", "P"):
        raise UserError(f"{path} is a picture of the kind {picture.mode}, not RGB with 8 bits: take the original file.")
    return picture.convert("RGB")


def _grey(path: Path) -> np.ndarray:
    """Read a mask as grey values of 8 bits, (Y, X); of several channels the first."""
    picture = open_picture(path)
    if picture.mode in ("1", "P"):
        picture = picture.convert("RGB" if picture.mode == "P" else "L")
    array = np.asarray(picture)
    if array.dtype != np.uint8:
        raise UserError(
            f"{path} is a picture of the kind {picture.mode}, not a mask with 8 bits: take the original file."
        )
    return array if array.ndim == 2 else array[..., 0]


def instance_mask(path: Path) -> np.ndarray:
    """Read a map with one number for each instance, (Y, X), True inside any.

    Raises:
        UserError: if the file holds colours instead of numbers.
    """
    picture = open_picture(path)
    if picture.mode not in ("1", "L", "P", "I", "I;16"):
        raise UserError(f"{path} holds colours ({picture.mode}), not one number for each instance: it is another file.")
    # The number of an instance is the palette's index, so the palette is not applied.
    return np.asarray(picture) > 0


def read_mask(path: Path, threshold: int | None = None) -> np.ndarray:
    """Read a mask, (Y, X), True where it is white.

    Masks as they are published hold grey noise: from compression, or nearly black where something was wiped out.

    Args:
        path: the file.
        threshold: value from which on a pixel is foreground, whatever the mask looks like; by default 128, for a mask
            that is black and white apart from noise.

    Raises:
        UserError: without a threshold, if much is grey or nothing white: it is a map of instances or another file.
    """
    grey = _grey(path)
    if threshold is not None:
        return grey >= threshold
    share = float(np.mean((grey > NEARLY) & (grey < WHITE - NEARLY)))
    if share > MOST_GREY:
        raise UserError(
            f"{path} is not black and white: {share:.0%} of its pixels are grey, more than compression leaves; take "
            "the original, or say with --threshold from which value on a pixel is foreground."
        )
    mask = grey >= THRESHOLD
    if grey.any() and not mask.any():
        raise UserError(
            f"{path} has no white, but values up to {grey.max()}: it holds numbers of classes or instances; take the "
            "original, or say with --threshold 1 that every number is foreground."
        )
    return mask


def write_case(
    case: Case, images: Sequence[Path], label: Path | None, *, link: bool, read_mask: Callable[[Path], np.ndarray]
) -> dict[int, float]:
    """Write a picture and its mask as png; see `CaseWriter`.

    Nothing is linked: a mask's values always change, and nnU-Net wants images and masks of one format.

    Args:
        case: what to write.
        images: the picture to write.
        label: the mask to write, as 0 and 1.
        link: has no effect.
        read_mask: reads a mask as (Y, X), True in the foreground.
    """
    (source,), (target,) = case.images, images
    picture = read_picture(source)
    picture.save(target, compress_level=3)
    if label is None or case.label is None:
        return {}
    mask = read_mask(case.label)
    if mask.shape != picture.size[::-1]:
        wrong, right = (f"{x} x {y}" for x, y in (mask.shape[::-1], picture.size))
        raise UserError(
            f"{case.label} has {wrong} pixels, but its image {source.name} has {right}: it belongs to another image or "
            "was resized."
        )
    Image.fromarray(mask.astype(np.uint8)).save(label)
    return {1: float(mask.sum())} if mask.any() else {}
