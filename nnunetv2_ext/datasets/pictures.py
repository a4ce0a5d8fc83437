"""Reading and writing 2D colour images and their masks, which come as instances, as black and white, or as JPEG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nnunetv2_ext.datasets.source import Case
from nnunetv2_ext.errors import UserError

__all__ = ["black_and_white_mask", "instance_mask", "read_picture", "threshold_mask", "write_case"]

BLACK, WHITE = 0, 255
# A mask's share of pixels that are neither nearly black nor nearly white; JPEG makes some along the border.
MOST_GREY, NEARLY = 0.05, 64


def _open(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(f"{path} cannot be read as a picture ({error}): download or unpack it again.") from error
    return picture


def read_picture(path: Path) -> Image.Image:
    """Read a picture as RGB with 8 bits a channel; an alpha channel is left out.

    Raises:
        UserError: if it cannot be read, or is no picture with 8 bits a channel.
    """
    picture = _open(path)
    if picture.mode not in ("RGB", "RGBA", "L", "P"):
        raise UserError(f"{path} is a picture of the kind {picture.mode}, not RGB with 8 bits: it is another file.")
    return picture.convert("RGB")


def _grey(path: Path) -> np.ndarray:
    """Read a mask as grey values of 8 bits, (Y, X); of several channels the first."""
    picture = _open(path)
    if picture.mode in ("1", "P"):
        picture = picture.convert("RGB" if picture.mode == "P" else "L")
    array = np.asarray(picture)
    if array.dtype != np.uint8:
        raise UserError(f"{path} is a picture of the kind {picture.mode}, not a mask with 8 bits: it is another file.")
    return array if array.ndim == 2 else array[..., 0]


def instance_mask(path: Path) -> np.ndarray:
    """Read a map with one number for each instance, (Y, X), True inside any.

    Raises:
        UserError: if the file holds colours instead of numbers.
    """
    picture = _open(path)
    if picture.mode not in ("1", "L", "P", "I", "I;16"):
        raise UserError(f"{path} holds colours ({picture.mode}), not one number for each instance: it is another file.")
    # The number of an instance is the palette's index, so the palette is not applied.
    return np.asarray(picture) > 0


def black_and_white_mask(path: Path, threshold: int | None = None) -> np.ndarray:
    """Read a mask that is black (0) and white (255), (Y, X), True where it is white.

    Args:
        path: the file.
        threshold: takes a mask with other values as well; True is then a value of at least this.

    Raises:
        UserError: without a threshold, for any other value.
    """
    grey = _grey(path)
    if threshold is not None:
        return grey >= threshold
    others = np.setdiff1d(np.unique(grey), (BLACK, WHITE))
    if others.size:
        shown = ", ".join(str(value) for value in others[:3]) + (", ..." if others.size > 3 else "")
        raise UserError(
            f"{path} has values between black and white ({shown} in {np.isin(grey, others).sum()} pixels): it is a map "
            "of instances or was compressed; take the original, or say with --threshold from which value on it is "
            "foreground."
        )
    return grey == WHITE


def threshold_mask(path: Path, threshold: int) -> np.ndarray:
    """Read a mask that was compressed as JPEG, (Y, X), True for values of at least the threshold.

    Raises:
        UserError: if it is not black and white apart from compression noise.
    """
    grey = _grey(path)
    share = float(np.mean((grey > NEARLY) & (grey < WHITE - NEARLY)))
    if share > MOST_GREY:
        raise UserError(
            f"{path} is not black and white: {share:.0%} of its pixels are grey, more than compression leaves; it is "
            "another file."
        )
    return grey >= threshold


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
    if label is None:
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
