"""Reading label maps with their voxels' places, in the file formats of nnU-Net."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.grids import Grid
from nnunetv2_ext.images.nifti import is_nifti, read_nifti_voxels, require_whole_nifti, stated_grid, unreadable
from nnunetv2_ext.images.pictures import read_grey
from nnunetv2_ext.images.volumes import grid_of, require_whole

__all__ = ["FILE_ENDINGS", "LabelImage", "case_name", "file_ending", "read_label_image", "whole_numbers"]

# The longer ending first where one ends with the other.
FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png", ".bmp", ".tiff", ".tif")
# Labels in files with a scale factor are not exactly whole.
_NEARLY_WHOLE = 1e-3


@dataclass(frozen=True)
class LabelImage:
    """A label map.

    Attributes:
        path: its file.
        labels: whole numbers, shape (x, y, z); (planes, rows, columns) of a 3D TIFF; (rows, columns) of a 2D picture.
        grid: where its voxels lie.
    """

    path: Path
    labels: np.ndarray
    grid: Grid

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Voxel size in mm, in the order of the axes; None where the file states none."""
        return self.grid.spacing


def file_ending(path: Path) -> str | None:
    """Return which of nnU-Net's endings a file's name has, whatever its case; None for another one."""
    return next((ending for ending in FILE_ENDINGS if path.name.lower().endswith(ending)), None)


def case_name(path: Path) -> str:
    """Return the name of a file without its ending."""
    return path.name[: len(path.name) - len(file_ending(path) or "")]


def whole_numbers(array: np.ndarray) -> np.ndarray | None:
    """Return labels as whole numbers: the array itself if it has such a type, or what it holds up to rounding.

    Returns:
        None where the numbers are no labels.
    """
    if array.dtype.kind in "iub":
        return array
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        return None
    whole = np.rint(array)
    return whole if not array.size or float(np.abs(array - whole).max()) <= _NEARLY_WHOLE else None


def read_label_image(path: Path) -> LabelImage:
    """Read a label map.

    Raises:
        UserError: naming the file, if it cannot be read or holds something else.
    """
    if is_nifti(path):
        stored, grid = _read_nifti(path)
    elif path.name.lower().endswith((".tif", ".tiff")):
        stored, grid = _read_tiff(path)
    elif path.name.lower().endswith((".png", ".bmp")):
        stored = read_grey(path)
        grid = Grid(stored.shape)
    else:
        stored, grid = _read_itk(path)
    if stored.ndim not in (2, 3) or not stored.size:
        raise UserError(f"{path} has the shape {stored.shape}; a label map has two or three axes.")
    labels = whole_numbers(stored)
    if labels is None:
        raise UserError(f"{path} holds numbers that are not whole; a label map is wanted, not probabilities.")
    # Small numbers, in one memory order: all that follows goes over the memory once in a row.
    kind = np.uint8 if labels.min() >= 0 and labels.max() < 256 else np.int64
    return LabelImage(path, np.ascontiguousarray(labels, dtype=kind), grid)


def _read_nifti(path: Path) -> tuple[np.ndarray, Grid]:
    header = require_whole_nifti(path)
    stated = stated_grid(header)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        # As nnU-Net does for headers that SimpleITK refuses: it takes nibabel.
        if header.get_data_dtype().kind not in "biuf":
            raise unreadable(path, error) from error
        return read_nifti_voxels(path, header).reshape(stated.size), stated
    labels, grid = _of_itk(path, image)
    if header.get_data_dtype().kind == "f" and not np.isfinite(read_nifti_voxels(path, header)).all():
        raise UserError(f"{path} holds numbers that are not whole, nor finite; a label map is wanted.")
    return labels, replace(grid, placements={**grid.placements, **stated.placements} if stated.placements else {})


def _read_itk(path: Path) -> tuple[np.ndarray, Grid]:
    require_whole(path)
    try:
        return _of_itk(path, sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise unreadable(path, error) from error


def _of_itk(path: Path, image: sitk.Image) -> tuple[np.ndarray, Grid]:
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise UserError(f"{path} holds several channels instead of plain numbers; a label map has one.")
    return sitk.GetArrayFromImage(image).T, grid_of(image)


def _read_tiff(path: Path) -> tuple[np.ndarray, Grid]:
    import tifffile

    require_whole(path)
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            coloured = page.samplesperpixel > 1 and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
            labels = file.asarray()
    except Exception as error:
        # tifffile has its own types of errors.
        raise unreadable(path, error) from error
    if coloured:
        raise UserError(f"{path} is a colour image; a label map has one channel of numbers.")
    # nnU-Net keeps the spacing of a 3D TIFF in a file beside it.
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return labels, Grid(labels.shape)
    spacing = _read_spacing(beside)
    if labels.ndim == 2:
        labels = labels[None]  # a file that states three voxel edges is a volume of one slice
    return labels, Grid(labels.shape, spacing)


def _read_spacing(path: Path) -> tuple[float, ...]:
    try:
        spacing = tuple(float(size) for size in json.loads(path.read_text(encoding="utf-8"))["spacing"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} states no spacing ({error!r}): write it as {{"spacing": [z, y, x]}} in mm.') from error
    if len(spacing) != 3 or not all(0 < size < float("inf") for size in spacing):
        raise UserError(f"{path} states the spacing {spacing}: write three lengths in mm, as [z, y, x].")
    return spacing
