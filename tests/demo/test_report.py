"""The demo's report, from a summary written by hand."""

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread

from nnunetv2_ext.demo.phantom import write_dataset
from nnunetv2_ext.demo.report import Scores, _busiest_slice, draw_overlay, read_scores, scores_table, write_report

ORGANS = ("liver", "spleen", "aorta")


@pytest.fixture
def scores() -> Scores:
    return Scores(ORGANS, ("case_1", "case_2"), np.array([[0.9, 0.8, 0.7], [0.95, math.nan, 0.6]]))


def write_summary(folder: Path, *per_case: tuple[str, dict[str, float]]) -> Path:
    cases = [
        {
            "prediction_file": f"/somewhere/{name}.nii.gz",
            "metrics": {key: {"Dice": dice} for key, dice in dice_of.items()},
        }
        for name, dice_of in per_case
    ]
    path = folder / "summary.json"
    path.write_text(json.dumps({"metric_per_case": cases}))
    return path


def test_scores_are_read_by_the_values_of_the_labels_and_sorted_by_case(tmp_path: Path):
    summary = write_summary(
        tmp_path, ("case_2", {"1": 0.95, "2": math.nan, "7": 0.6}), ("case_1", {"1": 0.9, "2": 0.8, "7": 0.7})
    )
    (tmp_path / "dataset.json").write_text(
        json.dumps({"labels": {"aorta": 7, "background": 0, "spleen": 2, "liver": 1}})
    )
    read = read_scores(summary, tmp_path / "dataset.json")
    assert read.organs == ORGANS
    assert read.cases == ("case_1", "case_2")
    np.testing.assert_array_equal(read.dice, [[0.9, 0.8, 0.7], [0.95, math.nan, 0.6]])


def test_the_mean_is_nnunets_foreground_mean(scores: Scores):
    np.testing.assert_allclose(scores.organ_means(), [0.925, 0.8, 0.65])
    assert scores.mean() == pytest.approx((0.925 + 0.8 + 0.65) / 3)


def test_the_table_has_a_row_for_each_organ_and_says_where_there_is_nothing_to_compare(scores: Scores):
    lines = scores_table(scores).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["organ", "case_1", "case_2", "mean"]
    assert cells[2] == ["liver", "0.900", "0.950", "0.925"]
    assert cells[3] == ["spleen", "0.800", "-", "0.800"]
    assert cells[-1] == ["**mean**", "0.800", "0.775", "0.792"]
    assert len({len(line) for line in lines}) == 1


def test_an_organ_that_no_case_has_is_no_number(scores: Scores):
    empty = Scores(("liver",), ("case_1",), np.array([[math.nan]]))
    assert math.isnan(empty.mean())
    assert "nan" not in scores_table(empty)


def test_the_slice_shown_is_the_one_with_most_organs():
    labels = np.zeros((4, 5, 5), np.uint8)
    labels[1, :4, :] = 1
    labels[2, :3, :] = 1
    labels[2, 4, :2] = 2
    assert _busiest_slice(labels, axis=0) == 2
    assert _busiest_slice(np.zeros((4, 6, 5), np.uint8), axis=1) == 3


def test_the_report_is_written_from_a_data_set_and_its_predictions(tmp_path: Path):
    raw = write_dataset(tmp_path, "Dataset901_Test", 0, 2, 5, (12, 32, 40))
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for path in (raw / "labelsTs").iterdir():
        reference = sitk.ReadImage(str(path))
        sitk.WriteImage(reference * 0, str(predictions / path.name))  # a prediction without any organ is drawn as well
    names = sorted(path.name.removesuffix(".nii.gz") for path in predictions.iterdir())
    organs = ("liver", "spleen", "kidney_right", "kidney_left", "stomach", "aorta")
    scores = Scores(organs, tuple(names), np.zeros((2, len(organs))))
    write_report(scores, raw / "imagesTs", raw / "labelsTs", predictions, tmp_path / "result")

    assert sorted(path.name for path in (tmp_path / "result").iterdir()) == ["dice.csv", "dice.md", "overlay.png"]
    assert scores_table(scores) in (tmp_path / "result" / "dice.md").read_text()
    with (tmp_path / "result" / "dice.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["case", *organs]
    assert rows[1] == [names[0], *["0.0000"] * len(organs)]
    picture = imread(tmp_path / "result" / "overlay.png")[..., :3]
    coloured = np.ptp(picture, axis=-1) > 0.2
    left, middle, right = np.array_split(coloured[: int(0.8 * len(coloured))], 3, axis=1)
    assert middle.mean() > 0.02  # the reference has colours
    assert left.mean() < 0.001  # the CT is grey
    assert right.mean() < 0.001  # and so is a prediction without organs


def test_drawing_does_not_touch_the_state_of_pyplot(tmp_path: Path):
    raw = write_dataset(tmp_path, "Dataset901_Test", 0, 1, 5, (12, 32, 40))
    scores = Scores(("liver",), ("phantom_000",), np.array([[1.0]]))
    pyplot_was_loaded = "matplotlib.pyplot" in sys.modules
    draw_overlay(scores, raw / "imagesTs", raw / "labelsTs", raw / "labelsTs", tmp_path / "overlay.png")
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_was_loaded
    assert (tmp_path / "overlay.png").stat().st_size > 10_000
