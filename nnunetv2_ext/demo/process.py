"""Runs one command with its output passed through live, and explains in one sentence why it failed."""

import codecs
import errno
import os
import queue
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2_ext.errors import UserError

__all__ = ["DemoError", "DiskFullError", "clock", "find_script", "is_disk_full", "run_command", "say"]

HEARTBEAT_S = 10.0  # a command that is silent for longer gets a line that says it still runs
TAIL_CHARACTERS = 20_000  # of a command's output, kept to explain a failure
ALMOST_NOTHING_BYTES = 16 * 1024**2  # less free space than this after a failure means the disk is full

# What a full disk looks like in a command's output: the system's message, and torch's, which leaves out the reason.
DISK_FULL_SIGNS = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed writing")
REMEDIES = (
    ("No module named", "the installation is incomplete: install nnunetv2_ext again with pip"),
    ("Could not find requested nnunet trainer", "nnU-Net does not see this package: `nnUNetv2_ext doctor` says why"),
    ("Unable to locate trainer class", "nnU-Net does not see this package: `nnUNetv2_ext doctor` says why"),
    ("CUDA out of memory", "the GPU's memory is in use or too small: run the demo with `-device cpu`"),
    ("no kernel image is available", "this PyTorch does not serve this GPU: run the demo with `-device cpu`"),
    ("CUDA error", "the GPU failed: run the demo with `-device cpu`"),
    ("background workers", "a worker process died, mostly for lack of memory: close other programs and try again"),
    ("MemoryError", "there is too little memory: close other programs and try again"),
)


class DemoError(UserError):
    """Why the demo stopped, in one sentence for its user."""


class DiskFullError(DemoError):
    """The disk ran full while the demo wrote to it."""


def is_disk_full(error: OSError) -> bool:
    """Return whether an error means that there is no room, on the disk or in the user's quota."""
    return error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def clock(seconds: float) -> str:
    """Write a duration the way a stopwatch does: 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def say(text: str = "", end: str = "\n") -> None:
    """Print at once, whatever the terminal can show of it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + end)
    sys.stdout.flush()


def find_script(name: str) -> str:
    """Find a console script of the environment that runs this, whether or not that is on the search path.

    Args:
        name: Name of the command.

    Returns:
        Its path.

    Raises:
        DemoError: It is not installed.
    """
    folders = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    found = shutil.which(name, path=os.pathsep.join(folders)) or shutil.which(name)
    if found is None:
        raise DemoError(f"The command {name} is not in {folders[0]}: install nnU-Net there (pip install nnunetv2).")
    return found


def run_command(
    command: Sequence[str], settings: Mapping[str, str], folder: Path, heartbeat_s: float = HEARTBEAT_S
) -> None:
    """Run a console script; its output appears as it is written, and a line now and then where it is silent.

    Args:
        command: Name of the script, and its arguments.
        settings: Environment variables on top of the ones of this process.
        folder: Where the command writes; tells whether the disk is full.
        heartbeat_s: Seconds of silence before a line says that the command still runs.

    Raises:
        DiskFullError: The command failed because the disk is full.
        DemoError: It is not installed, or failed for another reason.
    """
    script = find_script(command[0])
    environment = {**os.environ, **settings, "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        [script, *command[1:]],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        tail = _pass_through(child, heartbeat_s)
        code = child.wait()
    except BaseException:
        child.terminate()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise
    if code != 0:
        raise _explain(command, code, tail, folder)


def _pass_through(child: subprocess.Popen, heartbeat_s: float) -> str:
    """Write a child's output to this process's output until it ends; return the last of it."""
    chunks: queue.Queue[bytes] = queue.Queue()
    assert child.stdout is not None, "the child was started without a pipe"
    output = child.stdout.fileno()

    def read() -> None:
        while chunk := os.read(output, 65536):
            chunks.put(chunk)
        chunks.put(b"")

    # A thread, because waiting for a pipe with a time limit does not work on every system.
    threading.Thread(target=read, daemon=True).start()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    begin, tail = time.monotonic(), "\n"
    while True:
        try:
            chunk = chunks.get(timeout=heartbeat_s)
        except queue.Empty:
            new_line = "" if tail.endswith("\n") else "\n"
            say(f"{new_line}... still running, {clock(time.monotonic() - begin)}")
            tail += new_line
            continue
        text = decoder.decode(chunk, final=not chunk)
        say(text, end="")
        tail = (tail + text)[-TAIL_CHARACTERS:]
        if not chunk:
            if not tail.endswith("\n"):
                say()
            return tail


def _explain(command: Sequence[str], code: int, tail: str, folder: Path) -> DemoError:
    """Turn a failure into one sentence: the command, how it ended, what to do."""
    if any(sign in tail for sign in DISK_FULL_SIGNS) or shutil.disk_usage(folder).free < ALMOST_NOTHING_BYTES:
        return DiskFullError(f"The disk of {folder} ran full during {command[0]}.")
    if code == -9:
        ending, remedy = "was killed", "most likely the memory ran out: close other programs and try again"
    else:
        ending = f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
        remedy = next((text for sign, text in REMEDIES if sign in tail), "its last lines above say why")
    return DemoError(f"`{shlex.join(command)}` {ending}; {remedy}.")
