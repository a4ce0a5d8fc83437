"""Reading 2D pictures and grey label maps as nnU-Net reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from nnunetv2_ext.errors import UserError

__all__ = ["open_picture", "read_grey"]


def open_picture(path: Path) -> Image.Image:
    """Read a picture in the mode that its file has.

    Raises:
        UserError: naming the file, if it cannot be read.
    """
    try:
        picture: Image.Image = Image.open(path)
        picture.load()
    except UnidentifiedImageError as error:
        unnamed = _read_unnamed_colours(path)
        if unnamed is None:
            raise UserError(f"{path} cannot be read as a picture ({error}): download or unpack it again.") from error
        picture = unnamed
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(f"{path} cannot be read as a picture ({error}): download or unpack it again.") from error
    return picture


def _read_unnamed_colours(path: Path) -> Image.Image | None:
    """Read a TIFF of three or four samples of 8 bits that calls itself black and white; None for any other file.

    CVC-ClinicDB's pictures are such files (PhotometricInterpretation BlackIsZero), which Pillow does not know. All else
    is left to Pillow, because it decodes every compression.
    """
    # Damage shows in tifffile as errors of many types, and as a file without pages.
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            array = page.asarray()
            samples_first = page.axes == "SYX"
            if page.photometric != tifffile.PHOTOMETRIC.MINISBLACK or page.axes not in ("YXS", "SYX"):
                return None
    except Exception:
        return None
    if samples_first:
        array = np.moveaxis(array, 0, -1)
    if array.dtype != np.uint8 or array.shape[-1] not in (3, 4):
        return None
    return Image.fromarray(np.ascontiguousarray(array[..., :3]))


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
