"""Writing 3D cases: geometry and labels are checked, and files that fit are copied or linked."""

from __future__ import annotations

import gzip
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_ext.datasets.source import Case
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.grids import require_same_grid, same_grid, turn_between
from nnunetv2_ext.images.label_maps import whole_numbers
from nnunetv2_ext.images.nifti import is_compressed
from nnunetv2_ext.images.volumes import (
    grid_of,
    placement_of,
    read_header,
    read_volume,
    require_whole,
    set_grid,
    write_volume,
)

__all__ = [
    "cases_with_label",
    "labels_of",
    "largest_label",
    "place_file",
    "require_all_labels",
    "require_largest",
    "write_case",
    "write_label",
]


def place_file(source: Path, target: Path, *, link: bool) -> None:
    """Copy a file, or make a symbolic link to it; one that is not compressed, though its target is to be, is packed."""
    if target.name.endswith(".gz") and not is_compressed(source):
        with source.open("rb") as unpacked, gzip.GzipFile(target, "wb", compresslevel=4, mtime=0) as packed:
            shutil.copyfileobj(unpacked, packed)
    elif link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)


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
    grid, wanted = grid_of(label), grid_of(image)
    turn = None if same_grid(grid, wanted) else turn_between(grid, wanted)
    if turn is None:
        remedy = "it belongs to another image or was resampled"
        require_same_grid(grid, wanted, source, f"its image {image_path.name}", remedy)
    stored = sitk.GetArrayViewFromImage(label)
    array = whole_numbers(stored)
    present = np.empty(0) if array is None else np.unique(array)
    known = {0, *labels.values()}
    unknown = [int(value) for value in present if value not in known]
    if unknown or array is None:
        found = "values between whole numbers" if array is None else f"the label {unknown[0]}"
        raise UserError(
            f"{source} has {found}; known are 0 and {min(labels.values())} to {max(labels.values())} "
            f"({', '.join(labels)}): it is another version of the dataset, or not a label."
        )
    # Only checked labels index the table, so a huge or negative one cannot.
    table = np.zeros(max(known) + 1, dtype=np.uint8)
    for value in known - {0}:
        table[value] = value if label_map is None else label_map.get(value, 0)
    written = table[array.astype(np.uint8)]
    same_header = np.array_equal(placement_of(label), placement_of(image))
    if label_map is None and same_header and stored.dtype.kind in "iu":
        place_file(source, target, link=link)
    else:
        # A label whose voxels are its image's in another order of the axes is turned to its image's.
        result = sitk.GetImageFromArray(written if turn is None else turn.apply(written.T).T)
        set_grid(result, image)
        write_volume(result, target)
    voxel = math.prod(wanted.spacing or ())
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
    if label is None or case.label is None:
        return {}
    return write_label(case.label, label, header, source, labels=labels, label_map=label_map, link=link)


def labels_of(path: Path) -> list[int]:
    """Return the labels of a file without the background.

    Raises:
        UserError: if it cannot be read as a 3D image of whole numbers.
    """
    image = read_volume(path)  # by name, because a view does not keep its image alive
    labels = whole_numbers(sitk.GetArrayViewFromImage(image))
    if labels is None:
        raise UserError(f"{path} has values between whole numbers: it is another version of the dataset, or no label.")
    return [int(value) for value in np.unique(labels) if value]


def cases_with_label(sizes: Mapping[str, Mapping[int, float]], label: int) -> int:
    """Count the cases in which a label occurs."""
    return sum(label in found for found in sizes.values())


def largest_label(sizes: Mapping[str, Mapping[int, float]], candidates: Sequence[int]) -> int | None:
    """Return the label with the largest mean volume over the cases that have it, None if no case has any."""
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
