"""Pictures of the cases in which trainers did worst: image, reference and predictions, outlined on one slice."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from nnunetv2_ext.comparison.model import CaseFiles, Comparison, Dataset, Result
from nnunetv2_ext.comparison.report.numbers import format_number, with_unit
from nnunetv2_ext.comparison.report.slices import choose_slice
from nnunetv2_ext.comparison.report.svg import fit_text, visible_text
from nnunetv2_ext.comparison.report.tables import find_metric
from nnunetv2_ext.comparison.report.theme import LABELS
from nnunetv2_ext.comparison.report.words import list_names
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.label_maps import LabelImage, file_ending, read_label_image
from nnunetv2_ext.images.pictures import open_picture
from nnunetv2_ext.images.volumes import read_volume

__all__ = ["Panel", "Picture", "draw_worst_cases", "worst_cases"]

_LONGER_SIDE = 240  # pixels of a panel
_QUALITY = 82
_ORDINALS = {1: "worst case", 2: "second worst case", 3: "third worst case"}
_MARGIN = 0.2  # of the box around all masks
_LEAST_BOX = 24  # voxels


@dataclass(frozen=True)
class Panel:
    """One view of a case.

    Attributes:
        caption: what it shows, in a few words.
        svg: the drawing, as an element to put into a page.
    """

    caption: str
    svg: str


@dataclass(frozen=True)
class Picture:
    """The views of a case.

    Attributes:
        name: identifier, of lower-case letters, digits and hyphens.
        case: its name.
        why: trainers for which it is among the worst.
        remark: the slice, and what could not be shown.
        panels: image, reference, and a prediction per trainer.
        legend: each label's name and colour.
    """

    name: str
    case: str
    why: str
    remark: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, str], ...]

    def side_by_side(self) -> str:
        """Return all panels in one drawing, as a file of its own."""
        columns = min(4, len(self.panels))
        step = (_LONGER_SIDE + 8, _LONGER_SIDE + 24)
        parts = []
        for number, panel in enumerate(self.panels):
            x, y = number % columns * step[0], number // columns * step[1]
            caption = escape(visible_text(fit_text(panel.caption, _LONGER_SIDE, 11)))
            parts.append(f'<text x="{x}" y="{y + 14}" font-size="11" font-family="sans-serif">{caption}</text>')
            parts.append(panel.svg.replace("<svg ", f'<svg x="{x}" y="{y + 20}" ', 1))
        width, height = columns * step[0], math.ceil(len(self.panels) / columns) * step[1]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>{"".join(parts)}</svg>\n'
        )


def worst_cases(result: Result) -> dict[str, list[tuple[str, int]]]:
    """Return the cases to look at, each with the trainers for which it is among the worst, and at which place.

    Up to three cases per trainer, fewer where there are many trainers.
    """
    each = max(1, min(3, 10 // max(1, len(result.failures))))
    found: dict[str, list[tuple[str, int]]] = {}
    for place in range(each):
        for failure in result.failures:
            if place < len(failure.worst_cases):
                found.setdefault(failure.worst_cases[place], []).append((failure.trainer, place + 1))
    return found


def draw_worst_cases(comparison: Comparison, result: Result, room: int) -> tuple[list[Picture], list[str]]:
    """Draw the worst cases of a dataset, as far as their files are there and room is left.

    Args:
        comparison: names and files.
        result: result of the main metric on one dataset.
        room: bytes that all drawings together may take.

    Returns:
        The pictures, and sentences on the cases that could not be shown.
    """
    dataset = next(dataset for dataset in comparison.datasets if dataset.name == result.dataset)
    number = comparison.datasets.index(dataset) + 1
    files = {entry.case: entry for entry in comparison.files if entry.dataset == dataset.name}
    pictures: list[Picture] = []
    remarks: list[str] = []
    absent: list[str] = []
    for place, (case, trainers) in enumerate(worst_cases(result).items(), start=1):
        entry = files.get(case)
        if entry is None or entry.reference is None or not entry.predictions:
            absent.append(case)
            continue
        places = {rank: [trainer for trainer, own in trainers if own == rank] for _, rank in trainers}
        why = "; ".join(f"the {_ORDINALS[rank]} of {list_names(names)}" for rank, names in sorted(places.items()))
        try:
            picture = _draw_case(comparison, result, dataset, entry, trainers[0][0], f"worst-{number}-{place}")
        except (UserError, OSError) as error:
            remarks.append(f"{case}: no picture ({str(error).rstrip('.')}).")
            continue
        size = sum(len(panel.svg) for panel in picture.panels)
        if size > room:
            remarks.append(f"{case}: no picture, because the page would become too large.")
            continue
        room -= size
        pictures.append(replace(picture, why=why))
    if absent:
        remarks.append(f"No pictures of {', '.join(absent)}: the reference or the predictions are not there.")
    return pictures, remarks


def _draw_case(
    comparison: Comparison, result: Result, dataset: Dataset, files: CaseFiles, blamed: str, name: str
) -> Picture:
    assert files.reference is not None
    reference = read_label_image(files.reference)
    shown = [trainer for trainer in comparison.trainers if trainer in files.predictions]
    predictions = {trainer: _read_prediction(files.predictions[trainer], reference) for trainer in shown}
    image, remark = None, "Its image is not there."
    if files.images:
        image, remark = _read_image(files.images[0], reference), ""
    groups = {label: tuple(int(value) for value in re.findall(r"\d+", label)) for label in dataset.labels}
    scored = [value for values in groups.values() for value in values]
    cut = choose_slice(reference, predictions.get(blamed, next(iter(predictions.values()))), scored)
    planes = {trainer: cut.apply(labels) for trainer, labels in predictions.items()}
    truth = cut.apply(reference.labels)
    box = _box_around(np.logical_or.reduce([np.isin(plane, scored) for plane in (truth, *planes.values())]))
    height, width = truth[box].shape
    scale = _LONGER_SIDE / max(width, height * cut.aspect)
    size = (max(1, round(width * scale)), max(1, round(height * cut.aspect * scale)))
    ground = _encode(cut.apply(image)[box], size) if image is not None else ""
    metric = find_metric(comparison, result)
    row = result.units.index(files.case)
    colours = {label: LABELS[index % len(LABELS)] for index, label in enumerate(groups)}

    def panel(caption: str, plane: np.ndarray | None) -> Panel:
        outlines = "" if plane is None else _outline(plane[box], groups, colours, size)
        first = not panels
        return Panel(
            caption, _panel_svg(f"{files.case}: {caption}", outlines, ground if first else "", name, size, bool(ground))
        )

    panels: list[Panel] = []
    if ground:
        panels.append(panel("image", None))
    panels.append(panel("reference", truth))
    for trainer in shown:
        value = result.values[trainer][row] if trainer in result.values else math.nan
        score = with_unit(format_number(value, metric), metric) if math.isfinite(value) else "not defined"
        panels.append(panel(f"{trainer}, {metric.name} {score}", planes[trainer]))
    missing = [trainer for trainer in result.values if trainer not in shown]
    if missing:
        remark = f"{remark} No prediction of {', '.join(missing)} is there.".strip()
    remark = f"{cut.describe()} {remark}".strip()
    legend = tuple((dataset.labels[label], colour) for label, colour in colours.items())
    return Picture(name, files.case, "", remark, tuple(panels), legend)


def _read_prediction(path: Path, reference: LabelImage) -> np.ndarray:
    labels = read_label_image(path).labels
    _require_shape(path, labels.shape, reference)
    return labels


def _read_image(path: Path, reference: LabelImage) -> np.ndarray:
    """Read the first channel of an image, in the order of the reference's axes."""
    ending = file_ending(path)
    if ending in (".png", ".bmp") or (ending in (".tif", ".tiff") and reference.labels.ndim == 2):
        array = np.asarray(open_picture(path).convert("L"), dtype=np.float32)
    elif ending in (".tif", ".tiff"):
        import tifffile

        try:
            array = tifffile.imread(path).astype(np.float32)
        except Exception as error:  # tifffile has its own types of errors
            raise UserError(f"{path} cannot be read as an image ({error}): write it again.") from error
    else:
        import SimpleITK as sitk

        array = sitk.GetArrayFromImage(read_volume(path)).T.astype(np.float32)
    _require_shape(path, array.shape, reference)
    return array


def _require_shape(path: Path, shape: tuple[int, ...], reference: LabelImage) -> None:
    if shape != reference.labels.shape:
        raise UserError(
            f"{path} has the shape {shape}, but {reference.path} has {reference.labels.shape}: mend the files."
        )


def _box_around(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the box around a mask with a margin; all of it where it is empty."""
    if not mask.any():
        return slice(None), slice(None)
    bounds = []
    for axis in (0, 1):
        found = np.flatnonzero(mask.any(axis=1 - axis))
        low, high = int(found[0]), int(found[-1]) + 1
        margin = max(math.ceil(_MARGIN * (high - low)), (_LEAST_BOX - (high - low)) // 2, 2)
        bounds.append(slice(max(0, low - margin), min(mask.shape[axis], high + margin)))
    return bounds[0], bounds[1]


def _encode(plane: np.ndarray, size: tuple[int, int]) -> str:
    """Return a slice as a grey JPEG in base64, its window by the percentiles."""
    known = plane[np.isfinite(plane)]
    low, high = np.percentile(known, (1, 99)) if known.size else (0.0, 1.0)
    grey = np.clip((np.nan_to_num(plane) - low) / max(high - low, 1e-6), 0, 1)
    picture = Image.fromarray(np.round(255 * grey).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return base64.b64encode(file.getvalue()).decode()


def _outline(
    plane: np.ndarray, groups: Mapping[str, tuple[int, ...]], colours: Mapping[str, str], size: tuple[int, int]
) -> str:
    """Return the outlines of the labels as paths of an SVG."""
    from skimage.measure import approximate_polygon, find_contours  # slow to import, and many reports have no pictures

    scale = np.array([size[1] / plane.shape[0], size[0] / plane.shape[1]])
    paths = []
    for label, values in groups.items():
        # A border of background closes outlines at the edges.
        mask = np.pad(np.isin(plane, values), 1).astype(np.float32)
        lines = []
        for contour in find_contours(mask, 0.5):
            points = approximate_polygon((contour - 0.5) * scale, 0.4)
            lines.append("M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in points) + "Z")
        if lines:
            paths.append(f'<path d="{"".join(lines)}" fill="none" stroke="{colours[label]}" stroke-width="1.6"/>')
    return "".join(paths)


def _panel_svg(description: str, outlines: str, image: str, name: str, size: tuple[int, int], has_image: bool) -> str:
    """Return a panel; the first one of a case holds the image, and the others show it again."""
    width, height = size
    text = escape(visible_text(description))
    ground = f'<rect width="{width}" height="{height}" fill="#000000"/>'
    if image:
        data = f"data:image/jpeg;base64,{image}"
        ground = f'<image id="{name}-image" href="{data}" width="{width}" height="{height}"/>'
    elif has_image:
        ground = f'<use href="#{name}-image"/>'
    return (
        f'<svg class="panel" role="img" aria-label="{text}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}"><title>{text}</title>{ground}{outlines}</svg>'
    )
