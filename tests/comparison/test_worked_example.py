"""The worked example of the documentation: its page quotes the report that lies beside it, and the report is whole."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path

import pytest
import yaml

from nnunetv2_ext.experiments.experiment import read_experiment
from tests.comparison.pages import parse, problems

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDER = DOCS / "worked_example"
PAGE = (DOCS / "worked_example.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report() -> str:
    return (FOLDER / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def comparison() -> dict:
    return json.loads((FOLDER / "comparison.json").read_text(encoding="utf-8"))


def words(text: str) -> str:
    """Return text without breaks, and with the signs that the report and its JSON write in two ways as one."""
    return re.sub(r"\s+", " ", text.replace("\N{MINUS SIGN}", "-").replace("\N{ZERO WIDTH SPACE}", ""))


def test_the_report_is_the_experiments(comparison: dict) -> None:
    experiment = read_experiment(FOLDER / "study.yaml")
    assert list(comparison["trainers"]) == list(experiment.trainers)
    assert {one["n"] for one in comparison["trainers"].values()} == {60}
    assert comparison["missing"] == []
    assert {tuple(setup["folds"]) for setup in comparison["setups"]} == {(0, 1, 2, 3, 4)}
    assert {(setup["epochs"], setup["iterations"]) for setup in comparison["setups"]} == {(10, 50)}
    with (FOLDER / "cases.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 60 * 3
    # The page shows the same file.
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1]) == yaml.safe_load(
        (FOLDER / "study.yaml").read_text(encoding="utf-8")
    )


def test_the_report_says_what_it_cannot_decide(report: str, comparison: dict) -> None:
    assert len(report.encode()) < 2_000_000
    assert problems(report) == []
    text = words(parse(report).text())
    assert "So short a training decides nothing" in text
    for finding in comparison["findings"]:
        assert words(finding) in text
    assert "So short a training decides nothing" in words(PAGE)


def test_the_page_quotes_the_report(report: str) -> None:
    text = words(parse(report).text())
    quotes = re.findall(r"^(?:> .*\n)+", PAGE, re.MULTILINE)
    assert len(quotes) >= 5
    for quote in quotes:
        assert words(html.unescape(quote.replace("\n> ", " ").removeprefix("> "))).strip() in text


def test_the_pictures_name_their_source() -> None:
    pictures = re.findall(r"!\[([^\]]+)\]\((worked_example/[\w.]+)\)", PAGE)
    assert {name for _, name in pictures} == {f"worked_example/{path.name}" for path in FOLDER.glob("*.png")}
    assert "CC BY-SA 4.0" in PAGE
    assert "Antonelli et al., Nature" in PAGE
