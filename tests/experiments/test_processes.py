"""Signals to a command, and to the ranks below it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments.processes import Child, describe_ending, find_program, group_is_alive

# As `nnUNetv2_train -num_gpus 2` does: the ranks train and stop, and the process above them waits.
TRAINING = """
import multiprocessing, signal, sys, time

def rank(ready):
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
    ready.set()
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=rank, args=(ready,))
    process.start()
    ready.wait()
    print("ready", flush=True)
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.parametrize(("ranks", "code"), [(True, 75), (False, -signal.SIGUSR1)])
def test_the_ranks_get_the_signal_in_place_of_the_process_above_them(ranks: bool, code: int, tmp_path: Path) -> None:
    script, log = tmp_path / "training.py", tmp_path / "log"
    script.write_text(TRAINING)
    with log.open("wb") as output:
        child = Child([sys.executable, str(script)], environment=os.environ, output=output, descriptors=(), ranks=ranks)
    while "ready" not in log.read_text():
        assert child.process.poll() is None, log.read_text()
    assert group_is_alive(child.process.pid)
    child.send(signal.SIGUSR1)
    assert child.wait() == code
    # A signal after the end goes to nobody, who might have its number by then.
    child.send(signal.SIGKILL)
    assert not group_is_alive(child.process.pid)


def test_endings_are_told_in_words() -> None:
    assert describe_ending(1) == "exit code 1"
    assert describe_ending(-15) == "ended by signal 15"
    assert "memory" in describe_ending(-9)


def test_a_missing_program_is_named() -> None:
    assert find_program("nnUNetv2_train").endswith("nnUNetv2_train")
    with pytest.raises(UserError, match="There is no command nnUNetv2_trian: activate"):
        find_program("nnUNetv2_trian")
