"""Running one command in a process group of its own, and ending all of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from nnunetv2_ext.errors import UserError

__all__ = ["Child", "describe_ending", "find_program", "group_is_alive"]

SECONDS_TO_DIE = 10.0


def find_program(name: str) -> str:
    """Return the path of a command: of the search path, or beside the Python that runs this.

    Raises:
        UserError: if it is in neither.
    """
    if os.path.isabs(name):
        return name
    found = shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))
    if found is None:
        raise UserError(f"There is no command {name}: activate the environment in which nnU-Net is installed.")
    return found


def describe_ending(code: int) -> str:
    """Return in words how a command ended."""
    if code == 0:
        return "it ended without its results"
    if code == -signal.SIGKILL:
        return "killed by signal 9, as happens when the memory runs out"
    return f"ended by signal {-code}" if code < 0 else f"exit code {code}"


class Child:
    """A command that runs.

    Args:
        command: program and arguments.
        environment: its environment variables.
        output: file that its output goes to.
        descriptors: descriptors that it inherits.
        ranks: whether its children are the ranks of a training on several GPUs, which get the signals in its place.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        output: BinaryIO,
        descriptors: Sequence[int],
        ranks: bool,
    ) -> None:
        self.ranks = ranks
        self.ended = False
        self.process = subprocess.Popen(
            [find_program(command[0]), *command[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=descriptors,
            # A group of its own: signals of a terminal would end its data loaders, and with them the epoch.
            start_new_session=True,
        )

    def wait(self) -> int:
        """Wait for the command, end what is left of its group, and return its exit code."""
        pid = self.process.pid
        # It keeps its number until it is asked for its exit code, so that the group is still its own.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self.ended = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # data loaders of a killed training wait for it for ever
        # What is killed may still hold a GPU's memory for a moment.
        deadline = time.monotonic() + SECONDS_TO_DIE
        while group_is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.process.wait()

    def send(self, number: int) -> None:
        """Send a signal."""
        if self.ended:
            return
        pid = self.process.pid
        for target in (_children(pid) if self.ranks else []) or [pid]:
            with suppress(ProcessLookupError):
                os.kill(target, number)


def group_is_alive(group: int) -> bool:
    """Return whether a process of a group runs; one that ended and was not yet asked about does not."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, of_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                return True
    return False


def _children(pid: int) -> list[int]:
    """List the processes that a process started with Python's `spawn`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found
