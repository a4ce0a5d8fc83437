"""The benchmarks of training steps and of half precision run at tiny sizes without a GPU, and write nothing then."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import gpu, half_precision
from benchmarks.page import PAGE, write_block

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_tiny_run_on_the_cpu() -> None:
    before = PAGE.read_bytes()
    command = [sys.executable, "-m", "benchmarks.gpu", "nnUNetTrainerSwinUNetRecA", "-device", "cpu", "--tiny"]
    done = subprocess.run([*command, "--steps", "1"], cwd=ROOT, capture_output=True, text=True, check=True)
    about, _, header, _, *rows = done.stdout.strip().splitlines()
    assert f"torch {version('torch')}" in about
    assert "-m benchmarks.gpu nnUNetTrainerSwinUNetRecA" in about
    assert header == f"| {' | '.join(gpu.HEADER)} |"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == ["nnUNetTrainer, 2D", "nnUNetTrainerSwinUNetRecA, 2D"]
    for _, *compiled, eager, mib, inference, error in cells:
        assert compiled == ["-"] * 3
        assert mib == "-"
        assert float(eager.split()[0].replace(",", "")) > 0
        assert float(inference.replace(",", "")) > 0
        assert 0 < float(error) < 0.5
    assert cells[0][4].endswith("(1.00)")
    assert PAGE.read_bytes() == before


def test_a_tiny_run_of_half_precision(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    before = PAGE.read_bytes()
    monkeypatch.setattr(sys, "argv", ["half_precision.py", "nnUNetTrainerSwinUNetRecA", "--tiny", "--steps", "2"])
    half_precision.main()
    about, _, header, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert "fp16 emulated" in about
    assert header == f"| {' | '.join(half_precision.HEADER)} |"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == ["nnUNetTrainer", "nnUNetTrainerSwinUNetRecA"]
    for _, error, changed, noise, *after, loss in cells:
        # Not exact, as float32 would be, and not wrong.
        assert 1e-5 < float(error) < 0.1
        assert float(changed.removesuffix("%")) < 10
        assert 0 < float(noise) < 0.1
        assert (error, changed, noise) != tuple(after)
        assert float(loss) > 0
    assert PAGE.read_bytes() == before


@pytest.mark.parametrize("benchmark", [gpu, half_precision])
def test_without_a_gpu_it_refuses(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "-device", "cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no GPU"):
        benchmark.main()


def test_rows_compare_with_the_first_one() -> None:
    base: dict[str, float] = {}
    found = {"first_s": 58.0, "step_ms": 40.0, "mib": 3110.0, "inference_ms": 9.0, "error": 4e-4}
    first = gpu.make_row("nnUNetTrainer, 3D", found, found, base)
    assert first == ["nnUNetTrainer, 3D", "40.0 (1.00)", "3,110", "58", "40.0 (1.00)", "3,110", "9.0", "4e-04"]
    other = gpu.make_row("X", "not finished in 300 s", {**found, "step_ms": 60.0}, base)
    assert other == ["X", "not finished in 300 s", "-", "-", "60.0 (1.50)", "3,110", "9.0", "4e-04"]
    assert gpu.make_row("X", None, "failed: OutOfMemoryError", base)[1:] == [
        *("-", "-", "-"),
        *("failed: OutOfMemoryError", "-", "-", "-"),
    ]


def test_a_table_goes_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- gpu -->\nold\n<!-- /gpu -->\nb\n")
    write_block("gpu", r"new \1", page)
    assert page.read_text() == "a\n<!-- gpu -->\nnew \\1\n<!-- /gpu -->\nb\n"
    with pytest.raises(SystemExit, match="no place"):
        write_block("cost x", "new", page)
    assert "<!-- gpu -->" in PAGE.read_text(encoding="utf-8")


def test_default_has_every_network_of_the_catalog() -> None:
    from nnunetv2_ext.catalog import TRAINERS
    from nnunetv2_ext.trainers import find_trainer

    networks = {find_trainer(entry.name).network_class for entry in TRAINERS}
    assert {find_trainer(name).network_class for name in gpu.DEFAULT} == networks
