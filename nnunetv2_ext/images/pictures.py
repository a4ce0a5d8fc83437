"""Reading 2D pictures and grey label maps as nnU-Net reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from nnunetv2_ext.errors import UserError

__all__ = ["open_picture", "read_grey"]


def open_picture(path: Path) -> Image.Image:
    """Read a picture in the mode that its file has.

    Raises:
        UserError: naming the file, if it cannot be read.
    """
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(f"{path} cannot be read as a picture ({error}): download or unpack it again.") from error
    return picture


def read_grey(path: Path) -> np.ndarray:
    """Read a PNG or BMP of one channel, (rows, columns), as nnU-Net does.

    Raises:
        UserError: naming the file, if it cannot be read, or has colours, a palette or an alpha channel.
    """
    from skimage.io import imread

    mode = open_picture(path).mode
    if mode == "P":
        raise UserError(
            f"{path} has a palette, of which nnU-Net reads the colours instead of the numbers: write the numbers as "
            "grey values, as in `Image.fromarray(np.asarray(Image.open(path))).save(path)`."
        )
    if mode == "LA":
        raise UserError(
            f"{path} has an alpha channel, which nnU-Net does not read in a label map: write it without, as in "
            "`Image.open(path).getchannel(0).save(path)`."
        )
    if mode in ("RGB", "RGBA", "CMYK"):
        raise UserError(f"{path} is a colour image; a label map has one channel of numbers.")
    return imread(path)
