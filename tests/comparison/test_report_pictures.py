"""The pictures of worst cases: the right slice the right way up, and a sentence for what is not there."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunetv2_ext.comparison.model import CaseFiles, Comparison
from nnunetv2_ext.comparison.report import write_report
from nnunetv2_ext.comparison.report.pictures import draw_worst_cases, worst_cases
from tests.comparison.example import make_example
from tests.comparison.pages import parse, problems

ROOM = 1_000_000


def write_volume(
    path: Path, voxels: np.ndarray, spacing: tuple[float, ...], direction: tuple[float, ...] | None = None
) -> Path:
    """Write voxels of shape (x, y, z)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetSpacing(spacing)
    if direction is not None:
        image.SetDirection(direction)
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def example(
    folder: Path, *, spacing: tuple[float, ...] = (1.0, 1.0, 3.0), direction: tuple[float, ...] | None = None
) -> Comparison:
    """Make a comparison on four cases; the label is high in y and low in x, and slice 5 has the error."""
    comparison = make_example(("A", "B<"), n_cases=4)
    files = []
    for case in comparison.datasets[0].cases:
        reference = np.zeros((40, 50, 9), np.uint8)
        reference[4:12, 30:46, 2:8] = 1
        reference[8:12, 34:40, 3:6] = 2
        wrong = reference.copy()
        wrong[4:8, 30:46, 5] = 0
        image = reference * np.float32(100) + np.linspace(0, 20, 40)[:, None, None].astype(np.float32)
        files.append(
            CaseFiles(
                comparison.datasets[0].name,
                case,
                (
                    write_volume(
                        folder / "images" / f"{case}_0000.nii.gz", image.astype(np.float32), spacing, direction
                    ),
                ),
                write_volume(folder / "labels" / f"{case}.nii.gz", reference, spacing, direction),
                {
                    "A": write_volume(folder / "a" / f"{case}.nii.gz", wrong, spacing, direction),
                    "B<": write_volume(folder / "b" / f"{case}.nii.gz", reference, spacing, direction),
                },
            )
        )
    return dataclasses.replace(comparison, files=tuple(files))


def test_pictures_are_in_the_report(tmp_path: Path) -> None:
    comparison = example(tmp_path)
    write_report(comparison, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert problems(page) == []
    root = parse(page)
    views = [element for element in root.all("div") if element.attributes.get("class") == "view"]
    shown = worst_cases(comparison.result("Dice"))
    assert len(views) == 4 * len(shown)
    captions = [view.all("p")[0].text() for view in views[:4]]
    value = comparison.result("Dice").values["A"][comparison.datasets[0].cases.index(next(iter(shown)))]
    assert captions[:2] == ["image", "reference"]
    assert captions[2] == f"A, Dice {value:.4f}"
    assert page.count("data:image/jpeg;base64,") == len(shown)
    assert "Slice 6 of 9 along axis 2" in root.text()
    assert (tmp_path / "report" / "figures" / "worst-1-1.svg").is_file()
    assert "](figures/worst-1-1.svg)" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def box(svg: str, number: int = 0) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of an outline, as parts of the panel."""
    width, height = (float(size) for size in re.findall(r'viewBox="0 0 (\S+) (\S+)"', svg)[0])
    outline = re.findall(r'<path d="([^"]*)"', svg)[number]
    points = np.array([[float(x), float(y)] for x, y in re.findall(r"([\d.-]+) ([\d.-]+)", outline)])
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return left / width, top / height, right / width, bottom / height


@pytest.mark.parametrize("direction", [None, (-1, 0, 0, 0, -1, 0, 0, 0, 1), (0, 1, 0, 1, 0, 0, 0, 0, -1)])
def test_patient_stands_the_same_way_in_every_header(tmp_path: Path, direction: tuple[float, ...] | None) -> None:
    """The small label lies at higher x and lower y than the large one; in mm where the axes point."""
    comparison = example(tmp_path, direction=direction)
    pictures, remarks = draw_worst_cases(comparison, comparison.result("Dice"), ROOM)
    assert not remarks
    reference = pictures[0].panels[1].svg
    large, small = box(reference), box(reference, 1)
    right = sum(small[::2]) - sum(large[::2]) > 0
    down = sum(small[1::2]) - sum(large[1::2]) > 0
    matrix = np.eye(3) if direction is None else np.reshape(direction, (3, 3))
    toward = matrix @ np.array([1.0, -1.0, 0.0])  # in mm: left of the patient, back
    assert (right, down) == (bool(toward[0] > 0), bool(toward[1] > 0))


def test_thick_slices_are_shown_whole_and_not_stretched(tmp_path: Path) -> None:
    comparison = example(tmp_path, spacing=(4.0, 1.0, 1.0))
    (picture, *_), _ = draw_worst_cases(comparison, comparison.result("Dice"), ROOM)
    assert "along axis 0" in picture.remark
    # Coronal axes z (up) and y: the box is 6 x 16 voxels of 1 mm.
    left, top, right, bottom = box(picture.panels[1].svg)
    width, height = (float(size) for size in re.findall(r'viewBox="0 0 (\S+) (\S+)"', picture.panels[1].svg)[0])
    assert (right - left) * width / ((bottom - top) * height) == pytest.approx(16 / 6, rel=0.1)


def test_pictures_of_two_dimensions(tmp_path: Path) -> None:
    comparison = example(tmp_path)
    entry = comparison.files[0]
    labels = np.zeros((30, 40), np.uint8)
    labels[5:15, 20:30] = 1
    paths = {name: tmp_path / f"{name}.png" for name in ("image", "reference", "A")}
    for path in paths.values():
        Image.fromarray(labels).save(path)
    Image.fromarray(np.dstack([labels * 200] * 3)).save(paths["image"])
    files = tuple(
        dataclasses.replace(e, images=(paths["image"],), reference=paths["reference"], predictions={"A": paths["A"]})
        for e in comparison.files
    )
    comparison = dataclasses.replace(comparison, files=files)
    pictures, remarks = draw_worst_cases(comparison, comparison.result("Dice"), ROOM)
    assert not remarks
    assert entry.case
    assert [panel.caption.split(",")[0] for panel in pictures[0].panels] == ["image", "reference", "A"]
    assert "No prediction of B< is there." in pictures[0].remark


def test_what_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    comparison = example(tmp_path)
    worst = next(iter(worst_cases(comparison.result("Dice"))))
    (entry,) = (entry for entry in comparison.files if entry.case == worst)
    others = tuple(other for other in comparison.files if other.case != worst)

    def draw(**change: object) -> tuple[str, int]:
        changed = dataclasses.replace(comparison, files=(*others, dataclasses.replace(entry, **change)))
        pictures, remarks = draw_worst_cases(changed, changed.result("Dice"), ROOM)
        shown = [picture for picture in pictures if picture.case == worst]
        return " ".join([*remarks, *(picture.remark for picture in shown)]), sum(len(p.panels) for p in shown)

    assert draw(images=())[0].endswith("Its image is not there.")
    assert draw(images=())[1] == 3
    assert draw(reference=None) == (f"No pictures of {worst}: the reference or the predictions are not there.", 0)
    assert draw(predictions={})[1] == 0
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    assert "broken.nii.gz cannot be read" in draw(images=(broken,))[0]
    small = write_volume(tmp_path / "small.nii.gz", np.zeros((3, 3, 3), np.uint8), (1.0, 1.0, 1.0))
    text, panels = draw(predictions={"A": small})
    assert "small.nii.gz has the shape (3, 3, 3)" in text
    assert panels == 0


def test_pictures_leave_room(tmp_path: Path) -> None:
    comparison = example(tmp_path)
    pictures, remarks = draw_worst_cases(comparison, comparison.result("Dice"), 10)
    assert not pictures
    assert all(remark.endswith("because the page would become too large.") for remark in remarks)
    assert remarks
