"""Reading label maps with their geometry, in the file formats of nnU-Net."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunetv2_ext.errors import UserError

__all__ = ["FILE_ENDINGS", "LabelImage", "check_same_geometry", "read_label_image"]

# The longer ending first where one ends with the other.
FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".bmp", ".tiff", ".tif")
_NATURAL_ENDINGS = (".png", ".bmp", ".tiff", ".tif")
# Writers round the numbers of a header in different ways; a tenth of a voxel is more than that and less than a shift.
_LARGEST_SHIFT = 0.1


@dataclass(frozen=True)
class LabelImage:
    """A label map.

    Attributes:
        path: its file.
        labels: whole numbers, shape (x, y, z), or (rows, columns) of a 2D picture.
        spacing: voxel size in mm, in the order of the axes; None where the file does not say.
        affine: from indices to mm, shape (4, 4); None where the file does not say.
    """

    path: Path
    labels: np.ndarray
    spacing: tuple[float, ...] | None
    affine: np.ndarray | None


def read_label_image(path: Path) -> LabelImage:
    """Read a label map.

    Raises:
        UserError: naming the file, if it cannot be read or holds something else.
    """
    try:
        if path.name.endswith((".nii", ".nii.gz")):
            labels, spacing, affine = _read_nifti(path)
        elif path.name.endswith(_NATURAL_ENDINGS):
            labels, spacing, affine = _read_picture(path)
        else:
            labels, spacing, affine = _read_itk(path)
    except Exception as error:
        # Each reading library has its own types of errors for damaged files.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as an image ({reason}); write it anew.") from error
    if labels.ndim not in (2, 3) or not labels.size:
        raise UserError(f"{path} has the shape {labels.shape}; a label map has two or three axes.")
    if labels.ndim == 3 and path.name.endswith((".png", ".bmp")):
        raise UserError(f"{path} is a colour image; a label map has one channel of numbers.")
    if labels.dtype.kind not in "biuf":
        raise UserError(f"{path} holds {labels.dtype} instead of plain numbers; a label map is wanted.")
    if labels.dtype.kind == "f" and not np.array_equal(np.rint(labels), labels):
        raise UserError(f"{path} holds numbers that are not whole; a label map is wanted, not probabilities.")
    # Small numbers, in one memory order: all that follows goes over the memory once in a row.
    kind = np.uint8 if labels.min() >= 0 and labels.max() < 256 else np.int64
    return LabelImage(path, np.ascontiguousarray(labels, dtype=kind), spacing, affine)


def _read_nifti(path: Path) -> tuple[np.ndarray, tuple[float, ...], np.ndarray | None]:
    import nibabel

    image = nibabel.load(path)
    labels, zooms = np.asanyarray(image.dataobj), image.header.get_zooms()
    # SimpleITK, with which nnU-Net reads, leaves out axes of one entry behind the third.
    while labels.ndim > 3 and labels.shape[-1] == 1:
        labels, zooms = labels[..., 0], zooms[:-1]
    # Without a code the header states no position, and readers make up different ones.
    stated = image.header["qform_code"] > 0 or image.header["sform_code"] > 0
    return labels, tuple(float(zoom) for zoom in zooms), image.affine if stated else None


def _read_itk(path: Path) -> tuple[np.ndarray, tuple[float, ...], np.ndarray]:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ValueError("it has several channels")
    dims, spacing = image.GetDimension(), image.GetSpacing()
    affine = np.eye(4)
    affine[:dims, :dims] = np.reshape(image.GetDirection(), (dims, dims)) * spacing
    affine[:dims, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, spacing, affine


def _read_picture(path: Path) -> tuple[np.ndarray, tuple[float, ...] | None, None]:
    from skimage.io import imread

    labels = imread(path)
    # nnU-Net keeps the spacing of a 3D tif in a file beside it.
    beside = path.with_suffix(".json")
    if labels.ndim == 3 and path.name.endswith((".tif", ".tiff")) and beside.is_file():
        return labels, tuple(float(size) for size in json.loads(beside.read_text(encoding="utf-8"))["spacing"]), None
    return labels, None, None


def check_same_geometry(prediction: LabelImage, reference: LabelImage) -> None:
    """Check that two label maps lie on the same grid.

    Raises:
        UserError: naming both files and what differs.
    """
    remedy = f"bring the prediction into the geometry of {reference.path}"
    if prediction.labels.shape != reference.labels.shape:
        raise UserError(
            f"{prediction.path} has the shape {prediction.labels.shape}, its reference {reference.labels.shape}; "
            f"{remedy}."
        )
    if (prediction.spacing is None) != (reference.spacing is None) or (
        reference.spacing is not None and not np.allclose(prediction.spacing, reference.spacing, rtol=1e-3)
    ):
        raise UserError(
            f"{prediction.path} has the spacing {_rounded(prediction.spacing)}, its reference "
            f"{_rounded(reference.spacing)}; {remedy}."
        )
    if reference.affine is None or prediction.affine is None:
        return
    dims = reference.labels.ndim
    ends = [(0, size - 1) for size in reference.labels.shape] + [(0,)] * (3 - dims) + [(1,)]
    corners = np.array(list(itertools.product(*ends)), dtype=float)
    shift = np.linalg.norm(corners @ (prediction.affine - reference.affine).T, axis=1).max()
    if shift > _LARGEST_SHIFT * min(reference.spacing or (1.0,)):
        raise UserError(
            f"{prediction.path} lies elsewhere than its reference, by up to {shift:.3g} mm: origin or direction "
            f"differ; {remedy}."
        )


def _rounded(spacing: tuple[float, ...] | None) -> str:
    return "none" if spacing is None else "(" + ", ".join(f"{size:.6g}" for size in spacing) + ")"
