"""Reading 3D images through SimpleITK, as nnU-Net does; and writing them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.grids import Grid
from nnunetv2_ext.images.nifti import explain_refusal, is_nifti, read_nifti_header, require_whole_nifti, unreadable
from nnunetv2_ext.images.whole import require_whole_gipl, require_whole_metaimage, require_whole_tiff

__all__ = ["grid_of", "placement_of", "read_header", "read_volume", "require_whole", "set_grid", "write_volume"]

_CHECKS = {
    ".mha": require_whole_metaimage,
    ".gipl": require_whole_gipl,
    ".tif": require_whole_tiff,
    ".tiff": require_whole_tiff,
}


def require_whole(path: Path) -> None:
    """Raise if an image is cut off or damaged; SimpleITK would make up what is missing.

    Raises:
        UserError: naming the file.
    """
    if is_nifti(path):
        require_whole_nifti(path)
    elif path.is_file() and path.suffix.lower() in _CHECKS:
        _CHECKS[path.suffix.lower()](path)


def read_header(path: Path, dimension: int = 3) -> sitk.ImageFileReader:
    """Read size, spacing, origin and direction of an image without its voxels.

    Raises:
        UserError: if it cannot be read, or has another number of dimensions.
    """
    if is_nifti(path):
        read_nifti_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _refused(path, error) from error
    _require_dimension(path, reader.GetDimension(), dimension)
    return reader


def read_volume(path: Path, dimension: int = 3) -> sitk.Image:
    """Read an image.

    Raises:
        UserError: if it cannot be read, or has another number of dimensions.
    """
    require_whole(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise _refused(path, error) from error
    _require_dimension(path, image.GetDimension(), dimension)
    return image


def _refused(path: Path, error: RuntimeError) -> UserError:
    return explain_refusal(path, error) if is_nifti(path) else unreadable(path, error)


def _require_dimension(path: Path, found: int, wanted: int) -> None:
    if found != wanted:
        raise UserError(f"{path} has {found} dimensions instead of {wanted}: it is another file.")


def placement_of(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """Return the matrix from indices to mm of the first three axes, (4, 4), in SimpleITK's coordinates."""
    dims, used = image.GetDimension(), min(image.GetDimension(), 3)
    direction = np.reshape(image.GetDirection(), (dims, dims))[:used, :used]
    placement = np.eye(4)
    placement[:used, :used] = direction * np.asarray(image.GetSpacing()[:used])
    placement[:used, 3] = image.GetOrigin()[:used]
    return placement


def grid_of(image: sitk.Image | sitk.ImageFileReader) -> Grid:
    """Return the voxels of an image as SimpleITK sees them; of a 4D image those of each channel."""
    # The header alone may state negative sizes, whose sign SimpleITK moves to the direction when it reads the voxels.
    spacing = tuple(abs(size) for size in image.GetSpacing()[:3])
    return Grid(image.GetSize()[:3], spacing, {"SimpleITK": placement_of(image)})


def set_grid(image: sitk.Image, wanted: sitk.Image | sitk.ImageFileReader) -> None:
    """Place a 3D image where another one lies; of a 4D image where each of its channels does."""
    placement, spacing = placement_of(wanted), np.abs(wanted.GetSpacing()[:3])
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(placement[:3, 3].tolist())
    image.SetDirection((placement[:3, :3] / spacing).ravel().tolist())


def write_volume(image: sitk.Image, path: Path) -> None:
    """Write an image, compressed.

    Raises:
        OSError: if it could not be written.
    """
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(f"{path} could not be written: {str(error).strip().splitlines()[-1]}") from error
