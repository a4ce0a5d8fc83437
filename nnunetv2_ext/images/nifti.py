"""NIfTI files: what their header states, and whether they are whole.

SimpleITK, with which nnU-Net reads them, gives zeros in place of voxels that are missing and of numbers that are not
finite, and takes the voxels of `x.nii` for `x.nii.gz` where both lie in one folder. All of that is found here first.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.grids import Grid

if TYPE_CHECKING:
    import nibabel

__all__ = [
    "explain_refusal",
    "is_compressed",
    "is_nifti",
    "read_nifti_header",
    "read_nifti_voxels",
    "require_whole_nifti",
    "stated_grid",
    "unreadable",
]

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20


def is_nifti(path: Path) -> bool:
    """Check whether a file is named as a NIfTI file."""
    return path.name.lower().endswith((".nii.gz", ".nii"))


def is_compressed(path: Path) -> bool:
    """Check whether the content of a file is compressed, whatever its name is."""
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def unreadable(path: Path, reason: object) -> UserError:
    """Return the error for a file that is damaged, or is none of its format."""
    lines = str(reason).strip().splitlines()
    words = " ".join(lines[-1].split()) if lines else type(reason).__name__
    return UserError(f"{path} cannot be read as an image ({words}): write, download or unpack it again.")


def _open(path: Path) -> IO[bytes]:
    # A file without compression that is named .nii.gz is read as SimpleITK reads it.
    return cast("IO[bytes]", gzip.open(path)) if is_compressed(path) else path.open("rb")


def read_nifti_header(path: Path) -> nibabel.Nifti1Header:
    """Read the header of a NIfTI file.

    Raises:
        UserError: naming the file, if it is missing, damaged, named after another form than it has, or has a file
            beside it that would be read instead.
    """
    import nibabel

    if not path.is_file():
        raise UserError(f"There is no file {path}: name one that exists.")
    try:
        with _open(path) as file:
            start = file.read(540)
    except (EOFError, OSError, zlib.error) as error:
        raise unreadable(path, error) from error
    kinds = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
    sizes = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    kind = next((kind for size, kind in kinds.items() if size in sizes and len(start) >= size), None)
    if kind is None:
        raise unreadable(path, "it does not begin with a NIfTI header")
    header = kind.from_fileobj(io.BytesIO(start), check=False)
    if not path.name.lower().endswith(".gz"):
        if is_compressed(path):
            raise UserError(f"{path} is compressed, though its name says that it is not: rename it to {path.name}.gz.")
    elif path.with_name(path.name[:-3]).exists():
        raise UserError(
            f"{path} and {path.name[:-3]} lie in one folder, where SimpleITK, with which nnU-Net reads, takes the "
            "voxels of one for the other: move one of them elsewhere."
        )
    return header


def require_whole_nifti(path: Path) -> nibabel.Nifti1Header:
    """Read the header of a NIfTI file, and check that all its voxels are there.

    Raises:
        UserError: naming the file, if it is cut off or damaged; see also `read_nifti_header`.
    """
    header = read_nifti_header(path)
    voxels = math.prod(header.get_data_shape()) * int(header["bitpix"]) // 8
    needed = max(int(header["vox_offset"]), int(header["sizeof_hdr"])) + voxels
    found = 0
    try:
        with _open(path) as file:
            while part := file.read(_CHUNK):
                found += len(part)
    except (EOFError, OSError, zlib.error) as error:
        raise unreadable(path, error) from error
    if found < needed:
        raise unreadable(path, f"it ends after {found} of {needed} bytes")
    return header


def read_nifti_voxels(path: Path, header: nibabel.Nifti1Header) -> np.ndarray:
    """Read the voxels of a file that is whole, scaled as its header says, without SimpleITK."""
    with _open(path) as file:
        file.seek(max(int(header["vox_offset"]), int(header["sizeof_hdr"])))
        count = math.prod(header.get_data_shape())
        stored = np.frombuffer(file.read(count * int(header["bitpix"]) // 8), header.get_data_dtype())
    slope, intercept = header.get_slope_inter()
    voxels = stored if slope in (None, 1.0) and not intercept else stored * (slope or 1.0) + (intercept or 0.0)
    return voxels.reshape(header.get_data_shape(), order="F")


def stated_grid(header: nibabel.Nifti1Header) -> Grid:
    """Return the voxels that a header states, as nibabel reads it; without axes of one entry behind the third."""
    size = list(header.get_data_shape())
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    spacing = tuple(abs(float(zoom)) for zoom in header.get_zooms()[: len(size)])
    # Without a code the header states no position, and readers make up different ones.
    stated = header["qform_code"] > 0 or header["sform_code"] > 0
    return Grid(tuple(size), spacing, {"nibabel": np.array(header.get_best_affine())} if stated else {})


def explain_refusal(path: Path, error: Exception) -> UserError:
    """Return what is wrong with a NIfTI file that is whole, and that SimpleITK refuses."""
    header = read_nifti_header(path)
    axes = header.get_best_affine()[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not lengths.all() or not np.isfinite(axes).all():
        return UserError(f"{path} states axes without a length: write its header anew with the true voxel size.")
    cosines = (axes / lengths).T @ (axes / lengths)
    angle = math.degrees(math.acos(min(1.0, float(np.abs(cosines[np.triu_indices(3, 1)]).max()))))
    if 90.0 - angle > 1e-3:
        return UserError(
            f"{path} has axes that are not at right angles ({angle:.4g} degrees), which SimpleITK, with which nnU-Net "
            "reads, refuses: if that is rounding, write it anew with nibabel after `image.set_qform(image.affine)` and "
            "`image.set_sform(image.get_qform())`; otherwise resample image and label with "
            "`nibabel.processing.resample_to_output` (labels with order=0)."
        )
    return unreadable(path, error)
