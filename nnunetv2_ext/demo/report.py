"""What the demo leaves behind: tables of Dice, and a picture of CT, reference and prediction side by side."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch

from nnunetv2_ext.io.tables import format_table

__all__ = ["Scores", "draw_overlay", "read_scores", "scores_table", "write_report"]

WINDOW_HU, LEVEL_HU = 400.0, 40.0  # the usual window for an abdomen
BACKGROUND, TEXT, FAINT = "#101214", "#f2f2f2", "#9aa0a6"
COLOURS = ("#e69f00", "#cc79a7", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#0072b2")  # safe for colour-blind readers


@dataclass(frozen=True)
class Scores:
    """Dice of some cases.

    Attributes:
        organs: Names of the labels, in the order of their values.
        cases: Names of the cases.
        dice: One row per case, one column per organ; NaN where neither reference nor prediction has the organ.
    """

    organs: tuple[str, ...]
    cases: tuple[str, ...]
    dice: np.ndarray

    def organ_means(self) -> np.ndarray:
        """Average over the cases that have the organ, shape (organs,)."""
        return np.array([_mean(column) for column in self.dice.T])

    def mean(self) -> float:
        """Average over the organs, the way nnU-Net's `foreground_mean` does it."""
        return _mean(self.organ_means())


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else math.nan


def read_scores(summary_file: Path, dataset_json: Path) -> Scores:
    """Read what `nnUNetv2_evaluate_folder` wrote.

    Args:
        summary_file: nnU-Net's summary.json.
        dataset_json: The data set's description, for the names of the labels.

    Returns:
        The Dice of every case and organ.
    """
    values = json.loads(dataset_json.read_text(encoding="utf-8"))["labels"]
    organs = sorted((name for name, value in values.items() if value != 0), key=values.__getitem__)
    per_case = json.loads(summary_file.read_text(encoding="utf-8"))["metric_per_case"]
    per_case.sort(key=lambda case: case["prediction_file"])
    dice = [[case["metrics"][str(values[organ])]["Dice"] for organ in organs] for case in per_case]
    names = tuple(Path(case["prediction_file"]).name.removesuffix(".nii.gz") for case in per_case)
    return Scores(tuple(organs), names, np.array(dice, dtype=float))  # nnU-Net writes null or NaN for an absent organ


def scores_table(scores: Scores) -> str:
    """Lay the scores out as a Markdown table that reads well in a terminal: one row per organ, one column per case."""
    columns = np.column_stack([scores.dice.T, scores.organ_means()])  # (organs, cases + 1)
    last = [*(_mean(row) for row in scores.dice), scores.mean()]
    rows = [
        [name.replace("_", " "), *("-" if math.isnan(value) else f"{value:.3f}" for value in values)]
        for name, values in zip((*scores.organs, "**mean**"), [*columns, last], strict=True)
    ]
    return format_table(("organ", *scores.cases, "mean"), rows, markdown=True)


def write_report(scores: Scores, images: Path, references: Path, predictions: Path, folder: Path) -> None:
    """Write `dice.md`, `dice.csv` and `overlay.png`.

    Args:
        scores: What to report.
        images: Folder of the CTs, `CASE_0000.nii.gz`.
        references: Folder of the reference segmentations, `CASE.nii.gz`.
        predictions: Folder of the predicted segmentations, `CASE.nii.gz`.
        folder: Where to write; made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    title = "# Dice of the test cases\n\nDice = 2 |A and B| / (|A| + |B|); 1 is perfect.\n\n"
    (folder / "dice.md").write_text(title + scores_table(scores) + "\n", encoding="utf-8")
    with (folder / "dice.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case", *scores.organs])
        for name, row in zip(scores.cases, scores.dice, strict=True):
            writer.writerow([name, *("" if math.isnan(value) else f"{value:.4f}" for value in row)])
    draw_overlay(scores, images, references, predictions, folder / "overlay.png")


def draw_overlay(scores: Scores, images: Path, references: Path, predictions: Path, path: Path) -> None:
    """Draw CT, reference and prediction side by side: two cases in axial slices, the first in a coronal slice as well.

    Args:
        scores: Names of the cases and their Dice.
        images: Folder of the CTs.
        references: Folder of the reference segmentations.
        predictions: Folder of the predicted segmentations.
        path: The PNG to write.
    """
    rows = []
    for index, case in enumerate(scores.cases[:2]):
        image = sitk.ReadImage(str(images / f"{case}_0000.nii.gz"))
        volumes = [sitk.GetArrayFromImage(image)]
        for folder in (references, predictions):
            volumes.append(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}.nii.gz"))))
        x, y, z = image.GetSpacing()
        at = _busiest_slice(volumes[1], axis=0)
        rows.append((index, f"axial slice {at + 1} of {len(volumes[0])}", [v[at] for v in volumes], y / x))
        if index == 0:
            at = _busiest_slice(volumes[1], axis=1)
            text = f"coronal slice {at + 1} of {volumes[0].shape[1]}"
            rows.append((index, text, [v[::-1, at] for v in volumes], z / x))  # the head is up
    rows.sort(key=lambda row: row[1].startswith("coronal"))

    width = 12.0  # inches, three panels wide
    panel = width / 3 - 0.12
    heights = [panel * planes[0].shape[0] / planes[0].shape[1] * aspect for _, _, planes, aspect in rows]
    top, caption, bottom = 0.75, 0.34, 0.85
    height = top + sum(heights) + caption * len(rows) + bottom
    figure = Figure(figsize=(width, height), dpi=110, facecolor=BACKGROUND)
    _write(figure, 0.06, height - 0.42, "PECA-Net on the abdominal CT phantom, test cases", TEXT, 15, weight="bold")
    mean_text = f"mean Dice {scores.mean():.3f}"
    _write(figure, width - 0.06, height - 0.42, mean_text, TEXT, 15, weight="bold", horizontalalignment="right")
    y = height - top
    for (index, where, planes, aspect), panel_height in zip(rows, heights, strict=True):
        y -= caption
        dice = _mean(scores.dice[index])
        captions = (f"{scores.cases[index]}, {where}", "reference", f"prediction, mean Dice {dice:.3f}")
        y -= panel_height
        for column, text in enumerate(captions):
            left = 0.06 + column * (panel + 0.12)
            _write(figure, left, y + panel_height + 0.1, text, FAINT, 10.5)
            axes = figure.add_axes((left / width, y / height, panel / width, panel_height / height))
            _draw_panel(axes, planes[0], planes[column] if column else None, len(scores.organs), aspect)
    handles = [
        Patch(color=COLOURS[i % len(COLOURS)], label=f"{name.replace('_', ' ')}  {dice:.3f}")
        for i, (name, dice) in enumerate(zip(scores.organs, scores.organ_means(), strict=True))
    ]
    legend = figure.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.12 / height), ncols=len(handles), frameon=False,
        labelcolor=TEXT, fontsize=11, handlelength=1.0, handleheight=1.0, columnspacing=2.2,
    )  # fmt: skip
    legend.set_title("organ and its Dice, mean of the test cases", prop=FontProperties(size=9.5))
    legend.get_title().set_color(FAINT)
    figure.savefig(path, facecolor=BACKGROUND)


def _busiest_slice(labels: np.ndarray, axis: int) -> int:
    """Find the slice that shows most organs well: the largest sum of each organ's area over its largest area."""
    others = tuple(i for i in range(3) if i != axis)
    areas = np.array([(labels == value).sum(axis=others) for value in np.unique(labels) if value])
    if not len(areas):
        return labels.shape[axis] // 2
    return int(np.sqrt(areas / areas.max(axis=1, keepdims=True)).sum(axis=0).argmax())


def _draw_panel(axes: Axes, ct: np.ndarray, labels: np.ndarray | None, n_organs: int, aspect: float) -> None:
    """Show a slice (rows, columns) the way a radiologist looks at it: the patient's right is on the left."""
    low = LEVEL_HU - WINDOW_HU / 2
    grey = colormaps["gray"]
    axes.imshow(ct, cmap=grey, vmin=low, vmax=low + WINDOW_HU, aspect=aspect, interpolation="bicubic")
    for value in range(1, n_organs + 1) if labels is not None else ():
        mask = np.asarray(labels == value)
        if mask.any():
            colour = COLOURS[(value - 1) % len(COLOURS)]
            axes.contourf(mask, levels=[0.5, 1.5], colors=[to_rgba(colour, 0.45)])
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.3)
    axes.set_aspect(aspect)
    axes.set_axis_off()
    side: dict[str, Any] = {"transform": axes.transAxes, "color": FAINT, "fontsize": 10, "verticalalignment": "center"}
    axes.text(0.015, 0.5, "R", horizontalalignment="left", **side)
    axes.text(0.985, 0.5, "L", horizontalalignment="right", **side)


def _write(figure: Figure, x: float, y: float, text: str, colour: str, size: float, **style: Any) -> None:
    """Put text at a position in inches from the lower left corner."""
    width, height = figure.get_size_inches()
    figure.text(x / width, y / height, text, color=colour, fontsize=size, **style)
