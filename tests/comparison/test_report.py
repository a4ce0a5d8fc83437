"""The report of a comparison: a page that everyone can read and that runs nothing, and its other forms."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from nnunetv2_ext.comparison.model import Comparison, Pair
from nnunetv2_ext.comparison.report import write, write_report
from nnunetv2_ext.comparison.report.escape import escape_latex, escape_markdown
from nnunetv2_ext.comparison.report.svg import fit_text, text_width, wrap_text
from tests.comparison.example import make_example
from tests.comparison.pages import contrast, parse, problems

STRANGE = (
    "<script>alert(1)</script>",
    "a|b",
    "50%_&",
    "\"x\" onload='y'",
    "$a$ \\b {c} ~^#",
    "\u65e5\u672c --`*_[l](u)",
)
LONG = tuple(
    f"nnUNetTrainer{name}_10epochs_50iters"
    for name in ("", "PECANet", "DCA", "SwinUNETRRecA", "NNFormer", "SwinUNet", "DATransUNetRecA", "DANIE")
)


def read(folder: Path, name: str = "index.html") -> str:
    return (folder / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(make_example(), folder)
    return folder


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a report in which everything that others name is named strangely."""
    folder = tmp_path_factory.mktemp("strange")
    comparison = make_example(STRANGE, ("<img src=x onerror=z>",), n_cases=5)
    dataset = dataclasses.replace(comparison.datasets[0], labels={"1": "</style><b>&", "2": "a|b_c"})
    write_report(dataclasses.replace(comparison, datasets=(dataset,)), folder)
    return folder


def test_all_files_are_there_and_small(written: Path) -> None:
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    drawings = {f"figures/{name}-1.svg" for name in ("differences", "cases", "ranks", "costs")}
    assert names == {"index.html", "report.md", "tables.tex", "figures/figures.pdf"} | drawings
    for path in written.rglob("*.svg"):
        ET.parse(path)
    assert read(written, "report.md").count("](figures/") == len(drawings)


def test_page_is_accessible(written: Path) -> None:
    assert problems(read(written)) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('<html lang="en-GB">', "<html>", "no lang"),
        ("<h2 ", "<h1 ", "not one h1"),
        ("<h3 ", "<h4 ", "is followed by h4"),
        (' scope="col"', "", "header without scope"),
        (' role="img"', "", "without role"),
        ("<title>", "<title> </title><title>", "no title"),
        ('aria-labelledby="pairs-1-caption"', 'aria-labelledby="nothing"', "table without a name"),
        ('id="pairs-1"', 'id="cases-1"', "cases-1 twice"),
        ("--soft: #4e5864", "--soft: #9ea8b4", "soft on ground"),
        ("--series-1: #6db5fe", "--series-1: #20405f", "series-1 on ground"),
        ("<main", '<link href="https://example.org/x.css"><main', "<link>"),
        ("<main", '<p onclick="x"></p><main', "p onclick"),
        ("body {", "@import x; body {", "@import"),
    ],
)
def test_the_check_of_pages_can_fail(written: Path, old: str, new: str, problem: str) -> None:
    page = read(written)
    assert old in page
    if old.startswith("<h"):
        tag = old[1:3]
        page = re.sub(rf"</{tag}>", f"</{new[1:3]}>", page) if tag in ("h2", "h3") else page
    assert any(problem in found for found in problems(page.replace(old, new)))


def test_contrast_is_wcags() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_strange_names_are_shown_and_run_nothing(strange: Path) -> None:
    page = read(strange)
    assert problems(page) == []
    shown = [cell.text() for table in parse(page).all("table") for cell in table.all("th")]
    for name in STRANGE:
        assert name in shown
    assert "</style><b>&" in shown
    for path in strange.rglob("*.svg"):
        root = ET.parse(path).getroot()
        # Long names are broken into lines.
        texts = re.sub(r"\s", "", "".join(root.itertext()))
        for name in STRANGE:
            assert re.sub(r"\s", "", name) in texts, path.name
        assert not root.findall(".//{http://www.w3.org/2000/svg}script")


def unescape_markdown(text: str) -> str:
    text = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def test_strange_names_are_one_cell_of_markdown_each(strange: Path) -> None:
    text = read(strange, "report.md")
    assert "<" not in re.sub(r"(?ms)^(````*)$.*?^\1$", "", text)
    lines = text.splitlines()
    tables = [line for line in lines if line.startswith("|")]
    first = {unescape_markdown(re.split(r"(?<!\\)\|", line)[1].strip()) for line in tables}
    assert first >= set(STRANGE)
    start = lines.index(next(line for line in lines if line.startswith("| first ")))
    counts = {len(re.split(r"(?<!\\)\|", line)) for line in lines[start : start + 17]}
    assert counts == {11}


def test_strange_names_are_one_cell_of_latex_each(strange: Path) -> None:
    lines = read(strange, "tables.tex").splitlines()
    assert lines[0].startswith("% Needs ")
    # What makes wide tables smaller is the template's own.
    text = "\n".join(re.sub(r"\\resizebox.*", "{", line) for line in lines[1:])
    for name in STRANGE:
        assert escape_latex(name) in text
    without = re.sub(r"\\[{}$&#%_\\]|\\text\w+\{\}", "", text)
    assert without.count("{") == without.count("}")
    assert not set("#%~^<>|_`") & set(without)
    for tabular in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end", text, re.DOTALL):
        rows = [line for line in tabular[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(tabular[0])}


def test_escapes() -> None:
    assert escape_latex("50%_& a--b\\{\u22120.1") == r"50\%\_\& a-{}-b\textbackslash{}\{$-$0.1"
    assert escape_markdown("a|b\n# <c> `d`") == r"a\|b \# &lt;c&gt; \`d\`"


def test_same_input_same_bytes(written: Path, tmp_path: Path) -> None:
    write_report(make_example(), tmp_path)
    for path in written.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(written)).read_bytes(), path.name


def test_numbers_are_the_comparisons(written: Path) -> None:
    comparison = make_example()
    (table,) = (table for table in parse(read(written)).all("table") if table.attributes["id"] == "pairs-1")
    row = table.all("tbody")[0].all("tr")[1].all("th", "td")
    pair = comparison.result("Dice").pairs[1]
    assert pair.difference is not None
    assert [cell.text() for cell in row[:4]] == [pair.a, pair.b, str(pair.n), f"{pair.difference:+.4f}"]
    for text in (read(written, "report.md"), read(written, "tables.tex")):
        assert f"{pair.difference:+.4f}" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "comparison",
    [make_example(LONG[:5], n_cases=200), make_example(LONG[:2], ("Dataset001_A", "Dataset002_B"), n_cases=8)],
    ids=["five trainers", "two datasets"],
)
def test_few_and_many(comparison: Comparison, tmp_path: Path) -> None:
    write_report(comparison, tmp_path)
    page = read(tmp_path)
    assert problems(page) == []
    assert (tmp_path / "index.html").stat().st_size < 700_000


def hardly_anything() -> Comparison:
    """Make a comparison without a number, a cost, a setting, or a missing run."""
    comparison = make_example(("A", "B"), n_cases=2)
    result = comparison.result("Dice")
    empty = dataclasses.replace(
        result,
        units=(),
        values={"A": (), "B": ()},
        summaries=tuple(dataclasses.replace(s, n=0, mean=None, median=None, ci95=None) for s in result.summaries),
        labels=(),
        pairs=tuple(Pair(pair.a, pair.b, 0, None, None, None, None, None, 0, 0, 0) for pair in result.pairs),
        friedman=None,
        rankings=(),
        failures=(),
    )
    return dataclasses.replace(
        comparison, metrics=comparison.metrics[:1], results=(empty,), setups=(), costs=(), findings=(), missing=(),
        references=(), scores=(),
    )  # fmt: skip


def test_hardly_anything_known(tmp_path: Path) -> None:
    write_report(hardly_anything(), tmp_path)
    assert problems(read(tmp_path)) == []
    assert "Nothing can be said about A and B: no scores were found." in parse(read(tmp_path)).text()


def test_nothing_is_written_unless_all_could_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError("no space")

    monkeypatch.setattr(write, "_render", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(hardly_anything(), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_missing_runs_come_with_their_commands(written: Path) -> None:
    root = parse(read(written))
    assert [element.text() for element in root.all("pre")] == [make_example().missing[0].command]
    assert f"```\n{make_example().missing[0].command}\n```" in read(written, "report.md")


@pytest.mark.parametrize("text", [*LONG, *STRANGE, "x" * 200, "a b c", ""])
@pytest.mark.parametrize("width", [60, 250])
def test_wrapped_texts_fit_and_lose_nothing(text: str, width: int) -> None:
    lines = wrap_text(text, width, 12)
    assert all(text_width(line, 12) <= width for line in lines)
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)
    assert text_width(fit_text(text, width, 12), 12) <= width
