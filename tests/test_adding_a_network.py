"""docs/adding_a_network.md, followed to the letter in a copy: its files, and no other, make a network that passes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "adding_a_network.md"
COPIED = ("nnunetv2_ext", "tests", "docs", "benchmarks")
NAME, NETWORK, TRAINER = "toy_net", "ToyNet", "nnUNetTrainerToyNet"
DOCS_PAGE = f"# {NETWORK}\n\nA network that shows how one is added.\n"
OWN_TEST = f'''"""{NETWORK}."""

from nnunetv2_ext.architectures.{NAME} import {NETWORK}


def test_width() -> None:
    assert {NETWORK}(1, 2, patch_size=(8, 8), strides=[(1, 1), (2, 2)], width=6).stages[0][0].out_channels == 6
'''


def files_of_the_page(heading: str) -> set[str]:
    """Read the first column of the table whose header is `heading`, with the network's name filled in."""
    table = re.search(rf"^\| {heading} \|.*\n\| --- .*\n((?:\|.*\n)+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert table is not None
    return {row.split("`")[1].replace("<name>", NAME) for row in table[1].splitlines()}


def insert(path: Path, before: str, text: str) -> None:
    content = path.read_text(encoding="utf-8")
    assert content.count(before) == 1, f"{before!r} stands {content.count(before)} times in {path.name}"
    path.write_text(content.replace(before, text + before), encoding="utf-8")


def content_of(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def run(copy: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_page_names_every_file(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for folder in COPIED:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (
        *ROOT.glob("*.md"),
        *ROOT.glob("*.py"),
        *ROOT.glob("*.cff"),
        ROOT / "pyproject.toml",
        ROOT / "Makefile",
        ROOT / "LICENSE",
    ):
        shutil.copy(file, copy)
    before = content_of(copy)

    network, trainers, _trial, row, weights = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    package = copy / "nnunetv2_ext"
    (package / "architectures" / f"{NAME}.py").write_text(network)
    own_import = f"from nnunetv2_ext.architectures.{NAME} import {NETWORK}\n"
    (package / "trainers" / f"{NAME}.py").write_text(own_import + trainers)
    (package / "weights" / f"{NAME}.py").write_text(own_import + weights)
    entry = row.partition("entry = ")[2]
    with_heads = entry.replace(f'"{TRAINER}"', f'"{TRAINER}DS"').replace("supervision=False", "supervision=True")
    insert(package / "catalog.py", "\n)\n\n# nnU-Net's own", f"\n{entry.strip()},\n{with_heads.strip()},")
    insert(package / "catalog.py", '    "peca_net":', f'    "{NAME}": "nnunetv2_ext.weights.{NAME}",\n')
    place = f'    "nnunetv2_ext.architectures.{NAME}.{NETWORK}",\n'
    insert(copy / "tests/test_released_names.py", '    "nnunetv2_ext.architectures.unets.double_unet', place)
    (copy / "tests/architectures" / f"test_{NAME}.py").write_text(OWN_TEST)
    insert(copy / "benchmarks/gpu.py", '    *("nnUNetTrainerPECANet"', f'    "{TRAINER}",\n')
    (copy / "docs/networks" / f"{NAME}.md").write_text(DOCS_PAGE)
    family = f"| [{NETWORK}](docs/networks/{NAME}.md) | `{TRAINER}[DS]` | 2D, 3D | nobody | nothing |\n"
    insert(copy / "README.md", "| [DANIE](", family)
    insert(copy / "CHANGELOG.md", "## [0.1.0]", f"- {NETWORK}.\n\n")
    insert(
        copy / "CITATION.cff",
        '  - type: article\n    title: "nnU-Net: ',
        f'  - type: generic\n    title: "{NETWORK}"\n',
    )
    page = copy / "docs/trainers.md"
    table = run(copy, "-m", "nnunetv2_ext.cli", "list", "--markdown").strip()
    text = page.read_text(encoding="utf-8")
    begin, end = "<!-- trainers -->", "<!-- /trainers -->"
    page.write_text(f"{text.partition(begin)[0]}{begin}\n\n{table}\n\n{end}{text.partition(end)[2]}", encoding="utf-8")

    after = content_of(copy)
    touched = {name for name in after if after[name] != before.get(name)}
    assert touched == files_of_the_page("file") | {f"nnunetv2_ext/weights/{NAME}.py"}

    run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", NETWORK, "tests/architectures")
    held = ("tests/test_released_names.py", "tests/test_house.py", "tests/test_docs.py", "tests/test_benchmarks.py")
    which = "listed or default or house or trainer or readme or links"
    run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", which, *held)
