"""The pages under docs/reproduce: each dataset is converted, and its references scored, by their command lines."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunetv2_ext import cli
from tests.test_docs import ROOT, command_lines

PAGES = sorted((ROOT / "docs" / "reproduce").glob("*.md"))


def replaced(words: list[str], option: str, value: Path) -> list[str]:
    """Return a command line with another value of an option."""
    place = words.index(option) + 1
    return [*words[:place], str(value), *words[place + 1 :]]


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_what_a_page_converts_it_can_score(
    page: Path, make_source: Callable[[str], Path], folders: SimpleNamespace, tmp_path: Path
) -> None:
    """Folders, labels and protocols fit together: references against themselves have the best score."""
    converted, scored = set(), 0
    for program, *words in command_lines(page):
        if program != "nnUNetv2_ext" or len(words) < 2:
            continue  # nnU-Net's own, or a command that is only mentioned
        if words[0] == "convert" and tuple(words) not in converted:
            cli.main([*replaced(words, "-i", make_source(words[1])), "-np", "1", "--overwrite"])
            converted.add(tuple(words))
        elif words[0] == "evaluate":
            scored += 1
            reference = Path(os.path.expandvars(words[words.index("-ref") + 1]))
            prediction = shutil.copytree(reference, tmp_path / f"predictions {scored}")
            words = replaced(replaced(words, "-ref", reference), "-pred", prediction)
            cli.main([*words, "-np", "1"])
            (summary,) = prediction.glob("evaluation_*/summary.json")
            means = json.loads(summary.read_text())["foreground_mean"]
            assert next(iter(means.values())) == 1  # Dice
    assert converted
    assert scored or page.name == "README.md"
