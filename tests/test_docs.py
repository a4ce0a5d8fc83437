"""The documents agree with the code: command lines parse, examples run, links resolve, tables and numbers are right.

What is looked at in a document:

- fenced blocks marked `python` are run, in their order and in one namespace for each document;
- every line of a fenced block marked `bash`, and every inline code that starts with `nnUNetv2_`, is a command line;
- tables are found by the first cell of their header.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points, requires, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import danie_cost
from nnunetv2_ext._register import OPT_OUT_VARIABLE
from nnunetv2_ext.architectures import danie, peca_net
from nnunetv2_ext.architectures.cost import estimate_cost
from nnunetv2_ext.architectures.danie import DANIE
from nnunetv2_ext.architectures.danie import PRESETS as PRESETS_OF_DANIE
from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.nnformer import NNFormer
from nnunetv2_ext.architectures.peca_net import PRESETS, PECANet
from nnunetv2_ext.architectures.swin_unetr import SwinUNETR
from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.cli import build_parser
from nnunetv2_ext.commands import COMMANDS
from nnunetv2_ext.commands.list import trainers_table
from nnunetv2_ext.trainers import find_trainer
from nnunetv2_ext.trainers.base import CHECKPOINTING_VARIABLE, nnUNetTrainerExt
from nnunetv2_ext.trainers.log_sinks import LOG_VARIABLE
from nnunetv2_ext.trainers.names import GRAMMAR, parse_name
from nnunetv2_ext.trainers.safe_stop import SAVE_EVERY_VARIABLE
from nnunetv2_ext.weights.imagenet import FOLDER_VARIABLE
from nnunetv2_ext.weights.peca_net import authors_name
from tests import golden_files
from tests.narrow import narrow_networks

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.md")])
PECA_NET = ROOT / "docs" / "networks" / "peca_net.md"
DANIE_PAGE = ROOT / "docs" / "networks" / "danie.md"
COMMAND_PAGES = ROOT / "docs" / "commands"
RECA = ROOT / "docs" / "networks" / "reca.md"
SWIN_UNETR = ROOT / "docs" / "networks" / "swin_unetr.md"
NNFORMER = ROOT / "docs" / "networks" / "nnformer.md"

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))

_BLOCK = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL)


def read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def prose(document: Path) -> str:
    """Give a document without its fenced blocks."""
    return _BLOCK.sub("", read(document))


def blocks(document: Path, language: str) -> list[str]:
    """Give the fenced blocks of a language, each after empty lines in place of what comes before it."""
    text = read(document)
    return [
        "\n" * text.count("\n", 0, match.start("content")) + match["content"]
        for match in _BLOCK.finditer(text)
        if match["language"] == language
    ]


def table(document: Path, first_header: str) -> list[list[str]]:
    """Give the rows below the header of the one table that starts with this header."""
    lines = prose(document).splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith(f"| {first_header} |")]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def number(cell: str) -> int:
    return int(cell.replace(",", ""))


# Command lines


def command_lines(document: Path) -> Iterator[list[str]]:
    """Give every command line of a document that calls a program, in words."""
    lines = [line for block in blocks(document, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += [code for code in re.findall(r"`([^`\n]+)`", prose(document)) if code.startswith("nnUNetv2_")]
    for line in lines:
        for part in [*re.findall(r"\$\(([^)]*)\)", line), re.sub(r"\$\([^)]*\)", "", line)]:
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                del words[0]
            if words:
                yield words


@cache
def stock_parser(program: str) -> argparse.ArgumentParser:
    """Make the parser of one of nnU-Net's programs again from its source: starting each program takes seconds."""
    (entry,) = entry_points(group="console_scripts", name=program)
    spec = find_spec(entry.module)
    assert spec is not None, f"{program} has no source"
    assert spec.origin is not None, f"{program} has no source"
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    parser = argparse.ArgumentParser(prog=program)
    for call in _argument_calls(functions[entry.attr], functions):
        settings = {
            keyword.arg: ast.literal_eval(keyword.value)
            for keyword in call.keywords
            if keyword.arg in ("action", "nargs", "required")
        }
        parser.add_argument(*(ast.literal_eval(name) for name in call.args), **settings)
    return parser


def _argument_calls(function: ast.FunctionDef, functions: dict[str, ast.FunctionDef]) -> Iterator[ast.Call]:
    """Find the calls of `add_argument` in a function and in the functions of its module that it calls."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
                yield node
            elif isinstance(node.func, ast.Name) and node.func.id in functions:
                yield from _argument_calls(functions[node.func.id], functions)


def accepts(parser: argparse.ArgumentParser, arguments: list[str]) -> bool:
    try:
        parser.parse_args(arguments)
    except SystemExit as stopped:
        return stopped.code == 0
    return True


@each_document
def test_command_lines_parse(document: Path) -> None:
    for program, *arguments in command_lines(document):
        if not program.startswith("nnUNetv2_"):
            continue
        assert entry_points(group="console_scripts", name=program), f"there is no program {program}"
        if program == "nnUNetv2_ext" and len(arguments) == 1:
            arguments.append("--help")  # a subcommand that is only mentioned
        if arguments:
            parser = build_parser() if program == "nnUNetv2_ext" else stock_parser(program)
            assert accepts(parser, arguments), f"{shlex.join([program, *arguments])} does not parse"


@pytest.mark.parametrize(
    ("line", "accepted"),
    [
        ("1 3d_fullres 0 -tr X --c", True),
        ("1 3d_fullres", False),
        ("1 3d_fullres 0 -trainer X", False),
        ("1 3d_fullres 0 -tr", False),
    ],
)
def test_a_parser_made_from_source_tells_right_from_wrong(line: str, accepted: bool) -> None:
    assert accepts(stock_parser("nnUNetv2_train"), line.split()) == accepted


@each_document
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    mentioned = {words[1] for words in command_lines(document) if words[0] == "make"}
    mentioned |= set(re.findall(r"`make ([\w-]+)`", prose(document)))
    assert mentioned <= targets


@each_document
def test_trainer_names_exist(document: Path) -> None:
    text = read(document)
    defined_there = set(re.findall(r"^class (nnUNetTrainer\w+)", text, re.MULTILINE))
    # A result folder's name goes on with `__` and the plans.
    for name in set(re.findall(r"nnUNetTrainer(?:(?!__)\w)*", text)) - defined_there - {nnUNetTrainerExt.__name__}:
        assert parse_name(name) is not None, f"{name} is no trainer of this package, nor a variant of nnU-Net's"
    for words in command_lines(document):
        if "-tr" in words:
            name = words[words.index("-tr") + 1]
            assert name == "TRAINER" or parse_name(name) is not None, f"-tr {name}"


@each_document
def test_own_environment_variables_exist(document: Path) -> None:
    known = {OPT_OUT_VARIABLE, CHECKPOINTING_VARIABLE, FOLDER_VARIABLE, LOG_VARIABLE, SAVE_EVERY_VARIABLE}
    known.add("nnUNet_extTrainer")
    assert set(re.findall(r"\bnnUNet_ext\w+", read(document))) <= known


# Examples


@pytest.fixture
def authors_checkpoint(tmp_path: Path) -> Path:
    """Write a file like one of the authors' code, with the names that their Synapse network has."""
    tensors = {authors_name(name): tensor for name, tensor in PECANet(**PRESETS["synapse"]).state_dict().items()}
    path = tmp_path / "authors_synapse.model"
    torch.save({"state_dict": tensors}, path)
    return path


def run_python_blocks(document: Path) -> None:
    namespace: dict = {"__name__": f"example_of_{document.stem}"}
    examples = blocks(document, "python")
    assert examples
    for example in examples:
        exec(compile(example, document, "exec"), namespace)


@pytest.mark.parametrize(
    "document",
    [
        ROOT / "docs" / "adding_a_network.md",
        ROOT / "docs" / "commands" / "evaluate.md",
        ROOT / "docs" / "getting_started.md",
        DANIE_PAGE,
    ],
    ids=lambda d: d.stem,
)
def test_python_blocks_run(document: Path) -> None:
    torch.manual_seed(0)
    run_python_blocks(document)


@pytest.mark.slow
def test_python_blocks_of_peca_net_run(authors_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(authors_checkpoint.parent)
    run_python_blocks(PECA_NET)


def test_all_python_blocks_are_run() -> None:
    assert {document.stem for document in DOCUMENTS if blocks(document, "python")} == {
        "adding_a_network",
        "danie",
        "evaluate",
        "getting_started",
        "peca_net",
    }


# Links, tables, versions


def heading_anchors(document: Path) -> set[str]:
    """Give the anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_relative_links_resolve(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in heading_anchors(target), f"{link}: there is no such heading"


def test_table_of_trainers_is_the_generated_one() -> None:
    match = re.search(r"<!-- trainers -->\n(.*)<!-- /trainers -->", read(ROOT / "docs" / "trainers.md"), re.DOTALL)
    assert match is not None
    assert match[1].strip() == trainers_table(markdown=True), "paste the output of `nnUNetv2_ext list --markdown`"


def test_grammar_is_the_codes() -> None:
    assert f"BASE{GRAMMAR}" in read(ROOT / "docs" / "getting_started.md")


def trainers_of_a_pattern(pattern: str) -> Iterator[str]:
    """Write out a pattern: `{a,b}` is one of these, `[a,b]` one of these or nothing."""
    parts = [
        ["", *words[1:-1].split(",")] if words.startswith("[") else words.strip("{}").split(",")
        for words in re.findall(r"\[[^]]*\]|\{[^}]*\}|[^][{}]+", pattern)
    ]
    return ("".join(words) for words in itertools.product(*parts))


def test_readme_has_every_trainer_in_one_family() -> None:
    families = table(ROOT / "README.md", "family")
    dims = {
        name: shown
        for _, patterns, shown, *_ in families
        for pattern in re.findall(r"`([^`]+)`", patterns)
        for name in trainers_of_a_pattern(pattern)
    }
    assert dims == {entry.name: ", ".join(f"{n}D" for n in entry.dims) for entry in TRAINERS}
    assert len(families) == 7


def test_first_screen_of_the_readme() -> None:
    """What a stranger needs to decide, in 40 lines: the installation, a training, and the two targets."""
    screen = "\n".join(read(ROOT / "README.md").splitlines()[:40])
    for part in (
        "pip install",
        "nnUNetv2_train",
        "make demo",
        "make test",
        "docs/trainers.md",
    ):
        assert part in screen


# The pages of the commands


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Name the arguments and options of a command and of its subcommands, as they are written."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                yield name
                yield from options_of(subparser)
        elif not isinstance(action, argparse._HelpAction):
            yield max(action.option_strings, key=len) if action.option_strings else str(action.metavar)


def subparsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    return action.choices


@pytest.mark.parametrize("command", COMMANDS)
def test_page_of_a_command_names_all_its_options(command: str) -> None:
    page = read(COMMAND_PAGES / f"{command.replace('-', '_')}.md")
    assert page.startswith(f"# `nnUNetv2_ext {command}`")
    for option in options_of(subparsers()[command]):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", page), f"{option} is not on the page of {command}"


def test_index_has_every_command_and_no_other_page_is_there() -> None:
    pages = {f"{command.replace('-', '_')}.md" for command in COMMANDS}
    assert {path.name for path in COMMAND_PAGES.iterdir()} == pages | {"README.md"}
    links = {row[0] for row in table(COMMAND_PAGES / "README.md", "command")}
    assert links == {f"[`nnUNetv2_ext {command}`]({command.replace('-', '_')}.md)" for command in COMMANDS}


def test_versions_agree() -> None:
    releases = re.findall(r"^## \[(\d\S*)\] - (\d{4}-\d{2}-\d{2})$", read(ROOT / "CHANGELOG.md"), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert releases[0] == (version("nnunetv2_ext"), str(citation["date-released"]))
    assert str(citation["version"]) == version("nnunetv2_ext")


def test_each_release_says_whether_checkpoints_load() -> None:
    _, *sections = re.split(r"^## \[\d", read(ROOT / "CHANGELOG.md"), flags=re.MULTILINE)
    assert sections
    for section in sections:
        assert re.search(r"^Checkpoints: (not )?compatible\b", section, re.MULTILINE), section[:40]


def test_citation_has_what_the_format_asks_for() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= citation.keys()
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
    titles = " ".join(reference["title"] for reference in citation["references"])
    assert "PECA-Net" in titles
    assert "nnU-Net" in titles


def test_every_dependency_has_a_reason() -> None:
    explained = " ".join(row[0] for row in table(ROOT / "CONTRIBUTING.md", "requirement"))
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in requires("nnunetv2_ext") or []}
    assert names == set(re.findall(r"`([\w-]+)", explained))


# Numbers of the page about PECA-Net


def count_parameters(network: PECANet) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_table_of_presets() -> None:
    rows = {row[0].strip("`"): row[1:] for row in table(PECA_NET, "argument")}
    columns = dict(enumerate(PRESETS))
    for index, preset in columns.items():
        settings = PRESETS[preset]
        shown = {name: ast.literal_eval(rows[name][index]) for name in settings}
        assert shown == settings
        with torch.device("meta"):
            counts = [count_parameters(PECANet(**settings, auxiliary_heads=heads)) for heads in (False, True)]
        assert number(rows["trainable parameters"][index]) == counts[0]
        assert number(rows["the same with auxiliary heads"][index]) == counts[1]


def sizes(cell: str) -> list[tuple[int, ...]]:
    """Read sizes, one value an axis, that spaces separate."""
    return [tuple(int(value) for value in size.split(",")) for size in cell.split()]


def test_table_of_plans() -> None:
    for patch, channels, classes, poolings, stem, later, tokens, without, with_heads in table(PECA_NET, "patch"):
        geometry = Geometry.from_strides([int(size) for size in patch.split()], sizes(poolings))
        settings = PECANet.settings_from_plan(geometry)
        assert [settings["stem_stride"]] == sizes(stem)
        assert list(settings["stage_strides"]) == sizes(later)
        for heads, count in ((False, without), (True, with_heads)):
            with torch.device("meta"):
                network = PECANet(int(channels), int(classes), **settings, auxiliary_heads=heads)
            assert count_parameters(network) == number(count)
        assert [row["tokens"] for row in network.describe_stages()] == [int(value) for value in tokens.split()]


@pytest.mark.slow
def test_table_of_memory_and_multiply_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_adds = next(row for row in table(PECA_NET, "argument") if row[0].startswith("multiply-adds"))[1:]
    rows = {row[0].strip("`"): row[1:] for row in table(PECA_NET, "preset")}
    for preset, adds in zip(PRESETS, multiply_adds, strict=True):
        network_settings = PRESETS[preset]
        default = estimate_cost(lambda settings=network_settings: PECANet(**settings))
        least = estimate_cost(lambda settings=network_settings: PECANet(**settings, checkpointing=True))
        with monkeypatch.context() as patch:
            patch.setattr(peca_net, "recompute", lambda function, *inputs: function(*inputs))
            most = estimate_cost(lambda settings=network_settings: PECANet(**settings))
        assert f"{default.multiply_adds / 1e9:.1f} G" == adds
        assert rows[preset] == [f"{cost.kept_bytes / 2**20:,.0f} MiB" for cost in (most, default, least)]


def test_all_golden_files_are_named() -> None:
    named = {name for row in table(PECA_NET, "golden file") for name in re.findall(r"`([^`]+)`", row[0])}
    assert named == set(golden_files.names("peca_net"))


# Numbers of the pages about DANIE and ImageNet weights


@pytest.mark.slow
def test_table_of_danies_cost_is_the_generated_one() -> None:
    shown = re.search(r"<!-- cost of danie -->\n(.*)<!-- /cost of danie -->", read(DANIE_PAGE), re.DOTALL)
    assert shown is not None
    assert shown[1].strip() == danie_cost.compare(), "paste the output of `python benchmarks/danie_cost.py`"


def test_table_of_danies_plans() -> None:
    def sizes(cell: str) -> list[tuple[int, ...]]:
        return [tuple(int(value) for value in size.split()) for size in cell.split(",")]

    for patch, padded, window, grids in table(DANIE_PAGE, "patch"):
        (patch_size,) = sizes(patch)
        with torch.device("meta"):
            network = DANIE(1, 2, patch_size=patch_size, **DANIE.narrow_settings)
        assert [network.padded_size] == sizes(padded)
        stages = network.describe_stages()
        assert [stages[0]["window"]] == sizes(window)
        assert [stage["grid"] for stage in stages] == sizes(grids)


@pytest.mark.slow
def test_table_of_danies_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for row, *cells in table(DANIE_PAGE, "preset, size"):
        preset, size = row.split(", ")
        settings = {**PRESETS_OF_DANIE[preset], "patch_size": (int(size), int(size))}
        costs = [estimate_cost(lambda s=settings, c=c: DANIE(3, 9, **s, checkpointing=c)) for c in (False, True)]
        with monkeypatch.context() as patch:
            patch.setattr(danie, "recompute", lambda function, *inputs: function(*inputs))
            costs.insert(0, estimate_cost(lambda s=settings: DANIE(3, 9, **s)))
        assert cells == [f"{cost.kept_bytes / 2**20:,.0f} MiB" for cost in costs]


def test_table_of_published_weights() -> None:
    shown = {row[0].strip("`"): row[1].strip("`") for row in table(ROOT / "docs" / "imagenet_weights.md", "trainer")}
    assert set(shown) == {entry.name for entry in TRAINERS if entry.imagenet}
    geometry = Geometry.from_strides((64, 64), [(2, 2)])
    with torch.device("meta"), narrow_networks():
        for name, model in shown.items():
            trainer = find_trainer(name)
            assert trainer.imagenet_weights(trainer.build_network(geometry, 3, 2)).model == model


# Numbers of the pages about RecA's networks


@pytest.mark.parametrize(("document", "network"), [(SWIN_UNETR, SwinUNETR), (NNFORMER, NNFormer)])
def test_settings_of_the_window_networks(document: Path, network: type) -> None:
    """The table has each argument's default; None stands for what it says."""
    defaults = {name: one.default for name, one in inspect.signature(network).parameters.items()}
    for argument, value, _ in table(document, "argument"):
        default = defaults.pop(argument.strip("`"))
        value = value.strip("`")
        if default is not None:
            assert (value if isinstance(default, str) else ast.literal_eval(value)) == default
    assert defaults.keys() == {"input_channels", "num_classes", "checkpointing", "deep_supervision"}
    with torch.device("meta"):
        written = {argument.strip("`"): cell for argument, cell, _ in table(document, "argument")}
        given = {name: ast.literal_eval(written[name]) for name in ("strides", "embedding_stride") if name in written}
        rows = network(1, 5).describe_stages()
        assert network(1, 5, **given).describe_stages() == rows


def test_plans_of_swin_unetr() -> None:
    for patch, poolings, strides, bottom in table(SWIN_UNETR, "patch"):
        geometry = Geometry.from_strides([int(size) for size in patch.split()], sizes(poolings))
        settings = SwinUNETR.settings_from_plan(geometry)
        assert list(settings["strides"]) == sizes(strides)
        with torch.device("meta"):
            assert [SwinUNETR(1, 3, **settings).grids[-1]] == sizes(bottom)


def test_plans_of_nnformer() -> None:
    for patch, poolings, embedding, strides, first, last in table(NNFORMER, "patch"):
        geometry = Geometry.from_strides([int(size) for size in patch.split()], sizes(poolings))
        settings = NNFormer.settings_from_plan(geometry)
        assert [settings["embedding_stride"]] == sizes(embedding)
        assert list(settings["strides"]) == sizes(strides)
        with torch.device("meta"):
            grids = NNFormer(1, 3, **settings).grids
        assert [grids[0], grids[-1]] == [*sizes(first), *sizes(last)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("document", "network", "multiply_adds", "authors_mib"),
    [(SWIN_UNETR, SwinUNETR, "318.1 G", 4632), (NNFORMER, NNFormer, "176.4 G", 2625)],
)
def test_memory_of_the_window_networks(document: Path, network: type, multiply_adds: str, authors_mib: int) -> None:
    rows = {row[0]: row[1:] for row in table(document, "network | by default")}
    assert len(rows) == 2
    for name, cells in rows.items():
        reca = name.endswith("with RecA")
        for cell, checkpointing in zip(cells, (False, True), strict=True):
            cost = estimate_cost(
                lambda reca=reca, checkpointing=checkpointing: network(1, 5, reca=reca, checkpointing=checkpointing)
            )
            assert f"{cost.kept_bytes / 2**20:,.0f} MiB" == cell
            assert cost.kept_bytes / 2**20 < authors_mib * (0.2 if checkpointing else 0.6)
            assert f"{cost.multiply_adds / 1e9:.1f} G" == multiply_adds
    assert f"{authors_mib:,} MiB" in prose(document)
    assert multiply_adds in prose(document)


def test_golden_files_of_recas_networks_are_named() -> None:
    named = {
        name
        for document in (RECA, SWIN_UNETR, NNFORMER)
        for row in table(document, "golden file")
        for name in re.findall(r"`([^`]+)`", row[0])
    }
    assert named == {
        name for system in ("reca_3d_", "reca_swinunetr-", "reca_nnformer-") for name in golden_files.names(system)
    }
