"""Where things are in the package: which folder may import which, what lies at the top, how long files get."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import nnunetv2_ext

NAME = "nnunetv2_ext"
ROOT = Path(nnunetv2_ext.__file__).parent

# What each folder, and each module at the top, may import of the package. CONTRIBUTING.md draws it.
GROUND = {"catalog", "errors", "_register"}
ARROWS: dict[str, set[str]] = {
    "__init__": set(),
    "_register": set(),
    "catalog": set(),
    "errors": set(),
    "io": GROUND,
    "images": GROUND | {"io"},
    "architectures": GROUND,
    "plans": GROUND | {"io", "architectures"},
    "weights": GROUND | {"io", "architectures"},
    "trainers": GROUND | {"io", "architectures", "plans", "weights"},
    "planning": GROUND | {"io", "architectures", "plans", "trainers"},
    "_discovery": {"trainers"},
    "datasets": GROUND | {"io", "images"},
    "evaluation": GROUND | {"io", "images"},
    "comparison": GROUND | {"io", "images", "plans", "trainers", "architectures", "evaluation"},
    "inference": GROUND | {"io", "images", "architectures", "plans", "weights", "trainers"},
    "submission": GROUND | {"io", "images", "plans", "weights", "trainers", "datasets", "evaluation", "inference"},
    "experiments": GROUND | {"io", "plans", "trainers"},
    "demo": GROUND | {"io", "images", "plans", "evaluation"},
    "commands": GROUND
    | {"io", "images", "architectures", "plans", "weights", "trainers", "datasets", "evaluation", "submission", "demo"}
    | {"comparison", "experiments", "inference", "planning"},
    "cli": {"errors", "commands"},
}
# Networks, which are read from top to bottom, may be longer; so may tables of data.
LONGEST = 300
NETWORKS = {"architectures"}
TABLES: set[str] = set()


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    """Return the folder of a module, or its own name at the top of the package."""
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Name what a module imports of the package, wherever in it: `plans` for `nnunetv2_ext.plans.dataset`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            # `from nnunetv2_ext import cli` names a part itself.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == NAME and rest:
                yield rest.partition(".")[0]


def upward(path: Path) -> list[str]:
    """List the imports of a module that its place does not allow."""
    own = part(path)
    return [f"{path.relative_to(ROOT)} imports {name}" for name in imported(path) if name not in {own, *ARROWS[own]}]


def test_imports_go_one_way() -> None:
    assert [arrow for path in modules() for arrow in upward(path)] == []


def test_networks_know_nothing_of_nnunet() -> None:
    for path in ROOT.joinpath("architectures").rglob("*.py"):
        assert "import nnunetv2." not in (text := path.read_text(encoding="utf-8")), path
        assert "from nnunetv2." not in text, path


def test_the_allowed_arrows_hold_no_circle() -> None:
    TopologicalSorter(ARROWS).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter({**ARROWS, "plans": {*ARROWS["plans"], "commands"}}).prepare()


def test_modules_of_a_folder_import_each_other_without_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    known = {".".join((NAME, *path.relative_to(ROOT).with_suffix("").parts)) for path in modules()}
    for path in modules():
        name = ".".join((NAME, *path.relative_to(ROOT).with_suffix("").parts))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # Inside a function an import may close a circle; at the top it must not.
        found = {
            candidate
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
            for candidate in (f"{node.module}.{alias.name}", node.module, f"{node.module}.__init__")
        }
        graph[name] = (found & known) - {name}
    list(TopologicalSorter(graph).static_order())


def test_nothing_lies_at_the_top_but_what_is_planned() -> None:
    at_the_top = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py"}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert at_the_top == {"__init__", "_register", "catalog", "cli", "errors"}
    assert folders <= ARROWS.keys() - at_the_top


def test_no_file_gets_long() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in modules()
        if part(path) not in NETWORKS
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST and name not in TABLES} == {}


def test_an_arrow_that_runs_up_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The test itself can fail: at the top, in a function, and by the package's name."""
    monkeypatch.setattr("tests.test_house.ROOT", tmp_path)
    for line in (
        "from nnunetv2_ext.trainers.base import nnUNetTrainerExt",
        "def late():\n    import nnunetv2_ext.trainers",
        "from nnunetv2_ext import trainers",
    ):
        module = tmp_path / "weights" / "module.py"
        module.parent.mkdir(exist_ok=True)
        module.write_text(line)
        assert upward(module) == ["weights/module.py imports trainers"]


def test_docstrings_begin_as_the_house_writes_them() -> None:
    """`Return`, `Describe` or `Check`, as in scikit-learn, and none of what stood there before."""
    avoided = ("Give ", "Gives ", "Say ", "Says ", "Tell ", "Tells ")
    found = [
        f"{path.relative_to(ROOT)}:{node.body[0].lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and (ast.get_docstring(node) or "").startswith(avoided)
    ]
    assert found == []


def test_the_line_of_an_argument_starts_with_what_it_is() -> None:
    """`tolerance: tolerance in mm ...`, not `tolerance: of the NSD`."""
    pattern = re.compile(r"^ +[a-z_]+: (of|for|from|in|on|with|as|gives|says|file\.)( |$)")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        for line in (ast.get_docstring(node) or "").splitlines()
        if pattern.match(line)
    ]
    assert found == []
