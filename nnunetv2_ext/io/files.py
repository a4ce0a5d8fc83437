"""Files and folders that are there whole or not at all: the one place that writes, replaces, locks and cleans up.

A folder is written into a hidden one beside it, which takes the folder's place at the end:

    .NAME.lock              held while one process writes NAME
    .NAME.RANDOM.partial/new    what is being written
    .NAME.RANDOM.partial/old    what it replaces, for the moment between the two renames

What a killed process left of these, the next one clears away.
"""

from __future__ import annotations

import glob
import os
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from nnunetv2_ext.errors import UserError

__all__ = ["alone", "ended_by_an_exception", "prepare_file", "prepare_output", "whole_file", "whole_folder"]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a file beside `path` to write, with the same ending, that takes its place at the end or vanishes.

    A missing folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    with ended_by_an_exception():
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to write into that takes the place of `path` at the end, or vanishes if anything goes wrong.

    Raises:
        UserError: if it cannot be written, or another process writes it at the moment.
    """
    _require_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ended_by_an_exception(), alone(path):
        # A name of its own for each run, because workers of a killed one may take a moment to end.
        work = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        new, old = work / "new", work / "old"
        try:
            new.mkdir(parents=True)
            yield new
            if path.exists():
                path.rename(old)
            new.rename(path)
        finally:
            if old.exists() and not path.exists():
                old.rename(path)
            shutil.rmtree(work, ignore_errors=True)


def prepare_file(path: Path, *, overwrite: bool) -> None:
    """Refuse before the work a file that could not be written after it.

    Args:
        path: file that `whole_file` is to write.
        overwrite: whether an existing one may be replaced.

    Raises:
        UserError: if it exists and is to stay, is a folder, or cannot be written.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file to write.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: choose another file with -o, or write it anew with --overwrite.")
    _require_writable(path)


def prepare_output(path: Path, *, kind: str, holds: Sequence[str], overwrite: bool) -> None:
    """Clear away what a killed run left of a folder, and refuse before the work what would be refused after it.

    Args:
        path: folder that `whole_folder` is to write.
        kind: what it is, as in `an earlier evaluation`.
        holds: names by which an existing folder is known as one.
        overwrite: whether an existing one may be replaced.

    Raises:
        UserError: if the folder exists and is to stay, cannot be written, or is being written by another process.
    """
    _require_writable(path)
    if path.parent.is_dir():
        with alone(path):
            pass
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: use it, choose another folder with -o, or write it anew with --overwrite.")
    if path.exists() and not all((path / name).exists() for name in holds):
        raise UserError(f"{path} is not {kind}, and is left alone; choose another folder with -o.")


def _require_writable(path: Path) -> None:
    """Raise unless a file or folder of this name can be made; folders around it may be missing."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise UserError(
            f"{above} cannot be written to ({error.strerror}): make it writable, or choose another place than {path}."
        ) from error


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes that write this folder away, and clear away what killed ones left."""
    lock_file = path.with_name(f".{path.name}.lock")
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"Another process writes {path} at this moment: wait for it.") from None
    try:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
            if (left / "old").exists() and not path.exists():
                (left / "old").rename(path)  # killed between the two renames of `whole_folder`
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        # While it is held: after the release it could be another's already.
        with suppress(OSError):
            lock_file.unlink()
        lock.release()
        if os.name == "nt":  # which removes no open file
            with suppress(OSError):
                lock_file.unlink()


@contextmanager
def ended_by_an_exception() -> Iterator[None]:
    """Turn the signal with which clusters and `kill` end a process into an exception, so that it cleans up."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    _keep_from_forked_processes()
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise SystemExit(128 + number)


@cache
def _keep_from_forked_processes() -> None:
    """Let processes that are forked be without `_stop`, from their first instant on.

    Python forgets the signals that a new process has received before it is set up, and an exception that arrives in a
    callback is swallowed: a pool that ends its workers would wait for such a one for ever. So the signal is held back
    while a process is forked, and meets the system's own handling there.
    """
    if not hasattr(os, "register_at_fork"):
        return

    def in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def in_child() -> None:
        if signal.getsignal(signal.SIGTERM) is _stop:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        in_parent()

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}),
        after_in_parent=in_parent,
        after_in_child=in_child,
    )
