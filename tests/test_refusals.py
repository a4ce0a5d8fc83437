"""What is printed when input is refused: what is wrong, where, and what helps; for all of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import nnunetv2_ext
from nnunetv2_ext.cli import main

ROOT = Path(nnunetv2_ext.__file__).parent
# The types that end a command as one sentence; each is a UserError.
TYPES = {"UserError", "WeightsError", "DemoError", "DiskFullError", "ControllerAwayError"}
# What is at hand is said in words, or the remedy is another function's sentence.
COMPLETED_ELSEWHERE = ("_room_sentence(", "ran full during ")


def words_of(node: ast.expr) -> str | None:
    """Return the text of a string as it is written, with values as `{expression}`; None if it is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part)}}}" for part in node.values
        )
    return None


def refusals() -> Iterator[tuple[str, str]]:
    """Find the messages of all refusals in the package, and where they stand."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in TYPES and node.args:
                text = words_of(node.args[0])
                if text is not None:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def test_each_says_what_is_wrong_and_what_to_do() -> None:
    found = list(refusals())
    assert len(found) > 100
    for where, text in found:
        if any(part in text for part in COMPLETED_ELSEWHERE):
            continue
        assert text.endswith((".", "?")), f"{where} is no sentence: {text}"
        assert ": " in text or "; " in text or "? " in text, f"{where} names no remedy: {text}"


def test_every_type_is_checked() -> None:
    """A new type of refusal belongs to those above."""
    defined = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            bases = {ast.unparse(base) for base in node.bases} if isinstance(node, ast.ClassDef) else set()
            if bases & (TYPES | {"ValueError"}):
                defined.add(node.name)
    assert defined == TYPES


# A command to paste, in a message or a file: it stands at the start, or behind a sign that ends the words before it.
COMMAND = re.compile(r"(?:^|[`:>$] ?|, or )(?:\w+=\S* )*(?:nnUNetv2_\w+|docker|pip|export|mkdir|tail|sbatch|hf) ")
# What has no signs that a shell reads: numbers, names of variables, and teams, whose names are checked.
PLAIN = {
    "variable",
    "SEARCH_PATH_VARIABLE",
    "cores",
    "number",
    "name",
    "arguments.team",
    "', '.join(FOLDERS)",
    "dependency",
}


def test_commands_to_paste_are_quoted() -> None:
    found = 0
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.JoinedStr):
                continue
            values = [ast.unparse(part.value) for part in node.values if isinstance(part, ast.FormattedValue)]
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            start = COMMAND.search(text)
            if start is None:
                continue
            end = text.find("`", start.end()) if "`" in start[0] else len(text)
            before = text[: start.start()].count("\0")
            for value in values[before : before + text[start.start() : end].count("\0")]:
                found += 1
                quoted = value in PLAIN or value.startswith(("shlex.", "int("))
                assert quoted, f"{path.relative_to(ROOT)}:{node.lineno} puts {value} into a command as it is: {text}"
    assert found > 15


# Per command: bad input as a stranger types it, and what the sentence must name.
TYPED = [
    ("info -tr nnUNetTrainerPECANet", "name a planned dataset (-d and -c), or --patch and --strides"),
    ("info -tr nnUNetTrainerPecaNet -d 1 -c 2d", "did you mean nnUNetTrainerPECANet?"),
    ("info -tr nnUNetTrainerPECANet -d 1 -c 2d", "nnUNet_preprocessed is not set: export"),
    ("info -tr nnUNetTrainerDANIE_S --patch 16 32 32 --strides 1,1,1 2,2,2", "serves 2D configurations only"),
    ("plans -d 1 PECANet", "nnUNet_preprocessed is not set: export"),
    ("import-weights -i {}/no.pth -o {}/o.pth -tr nnUNetTrainerPECANet -d 1 -c 2d", "nnUNet_preprocessed is not set"),
    ("evaluate -ref {}/r -pred {}/p --protocol nnunet", "{}/"),
    ("convert ACDC -i {}/none -d 1", "nnUNet_raw is not set: set it to"),
    ("submit flare --model {}/m --team us -o {}/o", "{}/m"),
    ("submit btcv -pred {}/p -images {}/i -o {}/o.zip", "{}/p of predictions: check its name"),
    ("demo -o /dev/null", "/dev/null is a file: choose another folder"),
]


@pytest.mark.parametrize(("line", "part"), TYPED, ids=lambda text: text.split(" -")[0])
def test_bad_input_ends_in_one_sentence(line: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(line.replace("{}", str(tmp_path)).split())
    message = str(ended.value)
    assert message.startswith("error: ")
    assert part.replace("{}", str(tmp_path)) in message
    assert message.endswith(".")
    assert "\n" not in message
    assert not list(tmp_path.iterdir())
