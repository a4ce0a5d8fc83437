"""docs/evaluation.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nnunetv2_ext.cli import build_parser
from nnunetv2_ext.evaluation.protocols import PROTOCOLS
from nnunetv2_ext.evaluation.report import definitions_table
from nnunetv2_ext.images.labels import LABEL_MAPS
from nnunetv2_ext.io.tables import format_table

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def labels_table() -> str:
    rows = [[f"`{labels.name}`", labels.describe(), labels.source] for labels in LABEL_MAPS.values()]
    return format_table(["`--labels`", "classes", "source"], rows, markdown=True)


def marked(name: str) -> str:
    match = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", PAGE, re.DOTALL)
    assert match is not None, f"there is no part {name}"
    return match[1]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_page_defines_every_protocol(name: str) -> None:
    protocol, part = PROTOCOLS[name], marked(f"protocol {name}")
    assert definitions_table(protocol.metrics) in part
    words = " ".join(part.split())
    assert all(" ".join(note.split()) in words for note in protocol.notes)
    section = " ".join(PAGE.partition(f"\n### {name}\n")[2].partition("\n### ")[0].split())
    assert protocol.source in section
    assert protocol.labels is None or f"`{protocol.labels}`" in section


def test_page_lists_every_label_map() -> None:
    assert marked("labels") == labels_table()


def test_command_names_every_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["evaluate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    *most, last = PROTOCOLS
    assert f"{', '.join(most)} or {last}" in shown
