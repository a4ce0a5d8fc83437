"""Worker processes: order, errors, and how they end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.workers import call_in_process, default_processes, map_in_processes
from tests.io.test_files import OWN_PACKAGE


def square(number: int, marks: Path | None = None) -> int:
    """Square a number; 3 is refused, and with a folder for marks the others take long and tell who works."""
    if number == 3:
        raise UserError("3 is refused")
    if marks is not None:
        (marks / str(os.getpid())).touch()
        time.sleep(60)
    return number**2


@pytest.mark.parametrize("processes", [1, 2])
def test_results_have_the_order_of_the_arguments(processes: int, capsys: pytest.CaptureFixture) -> None:
    numbers = [5, 1, 4, 2]
    found = map_in_processes(square, [(number,) for number in numbers], processes, description="count")
    assert found == [25, 1, 16, 4]
    assert "4/4" in capsys.readouterr().err
    with pytest.raises(UserError, match="3 is refused"):
        map_in_processes(square, [(1,), (3,)], processes, description="count", progress=False)
    assert map_in_processes(square, [], processes, description="count", progress=False) == []


def test_first_error_ends_all_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match="3 is refused"):
        map_in_processes(square, [(1, tmp_path), (3, tmp_path)], 2, description="count", progress=False)
    assert time.monotonic() - began < 50  # a call takes 60


def test_a_worker_that_dies_is_reported() -> None:
    bytes_at_forbidden_address = [(8, 1), (8, 1)]
    with pytest.raises(UserError, match=r"A worker process was ended from outside.* with -np"):
        map_in_processes(ctypes.string_at, bytes_at_forbidden_address, 2, description="read")
    with pytest.raises(UserError, match="was ended from outside"):
        call_in_process(ctypes.string_at, 8, 1)


def test_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_def_n_proc", raising=False)
    assert 1 <= default_processes() <= 8
    monkeypatch.setenv("nnUNet_def_n_proc", "3")
    assert default_processes() == 3
    for wrong in ("0", "many", ""):
        monkeypatch.setenv("nnUNet_def_n_proc", wrong)
        with pytest.raises(UserError, match=r"nnUNet_def_n_proc is .*: set it to a whole number above 0"):
            default_processes()
    with pytest.raises(UserError, match=r"0 processes cannot work: choose at least 1 with -np"):
        map_in_processes(square, [(1,)], 0, description="count")


CALLER = """
import sys
from pathlib import Path
from tests.io.test_workers import square
from nnunetv2_ext.io.workers import map_in_processes
if __name__ == "__main__":
    map_in_processes(square, [(1, Path("."))] * 2, 2, description="count")
"""


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CALLER],
        cwd=tmp_path,
        env=OWN_PACKAGE,
        stderr=subprocess.DEVNULL,
        # What a shell starts in the background ignores Ctrl+C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        until = time.monotonic() + 60
        while len(workers := os.listdir(tmp_path)) < 2:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(30) != 0
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < until, "a worker outlives its parent"
        time.sleep(0.05)


def is_running(process: str) -> bool:
    """Return whether a process is there and no zombie, which nobody reaps in some containers."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
