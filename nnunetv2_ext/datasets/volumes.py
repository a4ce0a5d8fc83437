"""Reading and writing 3D images: their geometry and labels are checked, and files that fit are copied or linked."""

from __future__ import annotations

import gzip
import itertools
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.datasets.source import Case
from nnunetv2_ext.errors import UserError

__all__ = [
    "cases_with_label",
    "labels_of",
    "largest_label",
    "place_file",
    "read_header",
    "read_volume",
    "require_all_labels",
    "require_largest",
    "write_case",
    "write_label",
    "write_volume",
]

# Corners of an image and its label may lie this far apart; headers in single precision differ by less.
TOLERANCE_VOXELS = 0.1
TOLERANCE_LABEL = 1e-3  # labels in files with a scale factor are not exactly whole


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
    return UserError(f"{path} cannot be read as an image ({reason}): download or unpack it again.")


def require_whole(path: Path) -> None:
    """Raise if a compressed file is cut off or damaged; SimpleITK would give zeros in place of what is missing.

    Raises:
        UserError: naming the file.
    """
    if path.suffix != ".gz":
        return
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _unreadable(path, error) from error


def read_header(path: Path, dimension: int = 3) -> sitk.ImageFileReader:
    """Read size, spacing, origin and direction of an image without its voxels.

    Raises:
        UserError: if it cannot be read, or has another number of dimensions.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    if reader.GetDimension() != dimension:
        raise UserError(f"{path} has {reader.GetDimension()} dimensions instead of {dimension}: it is another file.")
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
        raise _unreadable(path, error) from error
    if image.GetDimension() != dimension:
        raise UserError(f"{path} has {image.GetDimension()} dimensions instead of {dimension}: it is another file.")
    return image


def write_volume(image: sitk.Image, path: Path) -> None:
    """Write an image, compressed.

    Raises:
        OSError: if it could not be written.
    """
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(f"{path} could not be written: {str(error).strip().splitlines()[-1]}") from error


def place_file(source: Path, target: Path, *, link: bool) -> None:
    """Copy a file, or make a symbolic link to it."""
    if link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)


def _grid(image: sitk.Image | sitk.ImageFileReader) -> tuple[np.ndarray, np.ndarray]:
    """Give the matrix from voxels to mm of the first three axes, (3, 3), and the origin, (3,)."""
    dimension = image.GetDimension()
    direction = np.reshape(image.GetDirection(), (dimension, dimension))[:3, :3]
    return direction * np.asarray(image.GetSpacing()[:3]), np.asarray(image.GetOrigin()[:3])


def _require_same_grid(
    image: sitk.Image | sitk.ImageFileReader, label: sitk.Image, image_path: Path, label_path: Path
) -> bool:
    """Raise unless a label lies on its image's voxels; tell whether even the headers are the same."""
    size, label_size = image.GetSize()[:3], label.GetSize()
    if size != label_size:
        wrong, right = (" x ".join(str(edge) for edge in edges) for edges in (label_size, size))
        raise UserError(
            f"{label_path} has {wrong} voxels, but its image {image_path.name} has {right}: it belongs to another "
            "image or was resampled."
        )
    (matrix, origin), (label_matrix, label_origin) = _grid(image), _grid(label)
    corners = np.array(list(itertools.product(*((0, edge - 1) for edge in size))), dtype=float).T
    shift = (label_matrix - matrix) @ corners + (label_origin - origin)[:, None]
    voxels = np.abs(np.linalg.solve(matrix, shift)).max()
    if voxels > TOLERANCE_VOXELS:
        raise UserError(
            f"{label_path} lies elsewhere than its image {image_path.name}, by up to {voxels:.3g} voxels (spacing, "
            "origin or direction differ): it belongs to another image or was resampled."
        )
    return bool(np.array_equal(matrix, label_matrix) and np.array_equal(origin, label_origin))


def write_label(
    source: Path,
    target: Path,
    image: sitk.Image | sitk.ImageFileReader,
    image_path: Path,
    *,
    labels: Mapping[str, int],
    label_map: Mapping[int, int] | None,
    link: bool,
) -> dict[int, float]:
    """Check a label against its image, and write it in the image's geometry.

    Args:
        source: the label's file.
        target: the file to write; a copy of or a link to the source where nothing has to change.
        image: the image, or its header.
        image_path: its file, for messages.
        labels: the labels that the source may hold, by name.
        label_map: new number of each label of the source, if they change.
        link: link instead of copying.

    Returns:
        The volume in mm^3 of each label that was written.

    Raises:
        UserError: if the label is damaged, or has another geometry or an unknown label.
    """
    label = read_volume(source)
    same_header = _require_same_grid(image, label, image_path, source)
    stored = sitk.GetArrayViewFromImage(label)
    array = stored if stored.dtype.kind in "iu" else np.rint(stored)
    present = np.unique(array)
    whole = array is stored or bool(np.abs(stored - array).max() <= TOLERANCE_LABEL)
    known = {0, *labels.values()}
    unknown = [int(value) for value in present if value not in known] if whole else []
    if unknown or not whole:
        found = f"the label {unknown[0]}" if whole else "values between whole numbers"
        raise UserError(
            f"{source} has {found}; known are 0 and {min(labels.values())} to {max(labels.values())} "
            f"({', '.join(labels)}): it is another version of the dataset, or not a label."
        )
    # Only checked labels index the table, so a huge or negative one cannot.
    table = np.zeros(max(known) + 1, dtype=np.uint8)
    for value in known - {0}:
        table[value] = value if label_map is None else label_map.get(value, 0)
    written = table[array.astype(np.uint8)]
    if label_map is None and same_header and stored.dtype.kind in "iu":
        place_file(source, target, link=link)
    else:
        result = sitk.GetImageFromArray(written)
        result.SetSpacing(image.GetSpacing()[:3])
        result.SetOrigin(image.GetOrigin()[:3])
        dimension = image.GetDimension()
        result.SetDirection(np.reshape(image.GetDirection(), (dimension, dimension))[:3, :3].ravel().tolist())
        write_volume(result, target)
    voxel = float(np.prod(image.GetSpacing()[:3]))
    counts = np.bincount(written.ravel())
    return {value: int(count) * voxel for value, count in enumerate(counts) if value and count}


def write_case(
    case: Case,
    images: Sequence[Path],
    label: Path | None,
    *,
    link: bool,
    labels: Mapping[str, int],
    label_map: Mapping[int, int] | None = None,
) -> dict[int, float]:
    """Write a case whose image is one 3D file; see `CaseWriter` and `write_label`."""
    (source,), (target,) = case.images, images
    require_whole(source)
    header = read_header(source)
    place_file(source, target, link=link)
    if label is None:
        return {}
    return write_label(case.label, label, header, source, labels=labels, label_map=label_map, link=link)


def labels_of(path: Path) -> list[int]:
    """Give the labels of a file without the background.

    Raises:
        UserError: if it cannot be read as a 3D image.
    """
    image = read_volume(path)  # by name, because a view does not keep its image alive
    return [int(value) for value in np.unique(np.rint(sitk.GetArrayViewFromImage(image))) if value]


def cases_with_label(sizes: Mapping[str, Mapping[int, float]], label: int) -> int:
    """Count the cases in which a label occurs."""
    return sum(label in found for found in sizes.values())


def largest_label(sizes: Mapping[str, Mapping[int, float]], candidates: Sequence[int]) -> int | None:
    """Give the label with the largest mean volume over the cases that have it, None if no case has any."""
    means = {}
    for label in candidates:
        volumes = [case[label] for case in sizes.values() if label in case]
        if volumes:
            means[label] = float(np.mean(volumes))
    return max(means, key=means.__getitem__) if means else None


def require_all_labels(sizes: Mapping[str, Mapping[int, float]], labels: Mapping[str, int], dataset: str) -> None:
    """Raise if a label occurs in no case: the files were relabelled then, or are another edition.

    Raises:
        UserError: naming the first such label.
    """
    for name, number in labels.items():
        if not cases_with_label(sizes, number):
            raise UserError(
                f"No case has the label {number} ({name}), which {dataset} has: the labels were changed, take the "
                "files as their owners publish them."
            )


def require_largest(
    sizes: Mapping[str, Mapping[int, float]], labels: Mapping[str, int], largest: str, dataset: str
) -> None:
    """Raise if another organ than the expected one has the largest mean volume: the labels have another order then.

    Raises:
        UserError: naming a file's case and both organs.
    """
    found = largest_label(sizes, list(labels.values()))
    if found not in (None, labels[largest]):
        name = next(name for name, number in labels.items() if number == found)
        case = next(case for case, volumes in sizes.items() if found in volumes)
        raise UserError(
            f"The label {found} ({name}) is the largest organ of these files, as in {case}; in {dataset} that is the "
            f"{largest}, {labels[largest]}: the labels have another order, take the files as their owners publish them."
        )
