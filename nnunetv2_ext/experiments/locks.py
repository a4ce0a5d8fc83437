"""Locks that last as long as the last process that inherited them, for folds and for GPUs.

A lock is an `flock` on a file whose descriptor is handed down to the training and on to its data loaders. It is gone
when the last of them is, however they ended: nothing stale is left to clean up.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nnunetv2_ext.errors import UserError

__all__ = [
    "GPU_LOCKS_VARIABLE",
    "end_leftovers",
    "gpu_lock_folder",
    "read_holder",
    "take_gpus",
    "take_lock",
    "write_holder",
]

GPU_LOCKS_VARIABLE = "nnUNet_ext_gpu_locks"
DEFAULT_GPU_LOCKS = "nnunetv2_ext_gpus"


def take_lock(path: Path, *, everyone: bool = False) -> int | None:
    """Take a lock.

    Args:
        path: the lock's file, made where it is missing.
        everyone: whether all users of the machine may take it.

    Returns:
        An inheritable descriptor that holds the lock, or None if another process holds it.

    Raises:
        UserError: if the file cannot be opened or locked.
    """
    while True:
        try:
            descriptor = _open(path, everyone)
        except OSError as error:
            raise UserError(f"The lock {path} cannot be opened ({error.strerror}): make it readable.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise UserError(
                f"{path} cannot be locked ({error.strerror}): its disk must be mounted with locks."
            ) from error
        # Programs that clean up temporary files may have removed it in between: then another process has a new one.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.set_inheritable(descriptor, True)
                return descriptor
        os.close(descriptor)


def _open(path: Path, everyone: bool) -> int:
    """Open a file for locking, which needs no more than reading; a new one appears with its permissions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        # Without O_CREAT: in a folder like /tmp, Linux refuses it for a file of another user.
        with suppress(FileNotFoundError, PermissionError):
            return os.open(path, os.O_RDWR)
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY)
        with _permissions(everyone), suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


@contextmanager
def _permissions(everyone: bool) -> Iterator[None]:
    """Make files and folders for everyone, where the user's own mask would keep others out."""
    before = os.umask(0) if everyone else None
    try:
        yield
    finally:
        if before is not None:
            os.umask(before)


def gpu_lock_folder() -> Path:
    """Return the folder of the GPUs' locks, which all users of a machine share.

    Raises:
        UserError: if this user cannot write there.
    """
    folder = Path(os.environ.get(GPU_LOCKS_VARIABLE) or Path("/tmp") / DEFAULT_GPU_LOCKS)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _permissions(everyone=True):
            folder.mkdir(mode=0o1777, exist_ok=True)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(
            f"{folder}, where the users of this machine share its GPUs, cannot be written to: make it writable for "
            f"all, or name another folder in {GPU_LOCKS_VARIABLE}."
        )
    return folder


def take_gpus(ids: Sequence[str], number: int) -> dict[str, int] | None:
    """Take the locks of some GPUs.

    Args:
        ids: ids of the GPUs that may be used.
        number: how many are needed.

    Returns:
        Descriptors by the ids that were taken, or None if there are too few free ones; then none is held.
    """
    folder, taken = gpu_lock_folder(), dict[str, int]()
    for gpu in ids:
        descriptor = take_lock(folder / f"{gpu.replace('/', '_')}.lock", everyone=True)
        if descriptor is not None:
            taken[gpu] = descriptor
            with suppress(OSError):
                os.utime(descriptor)  # programs that clean up temporary files go by it
        if len(taken) == number:
            return taken
    for descriptor in taken.values():
        os.close(descriptor)
    return None


def write_holder(descriptor: int, group: int) -> None:
    """Write into a lock's file who holds it: this process, and the process group of what it started.

    A file of another user that is only readable stays as it is: this is for messages and for `end_leftovers`.
    """
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "group": group}
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def read_holder(path: Path) -> dict[str, Any]:
    """Read who holds a lock, or held it last; nothing if nobody wrote it."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) and {"host", "pid", "group"} <= holder.keys() else {}


def end_leftovers(path: Path) -> bool:
    """End the workers of a training that was killed together with its wrapper, and that hold its lock for ever.

    Data loaders wait for the training that started them, whether or not it is still there.

    Returns:
        Whether there were any.
    """
    holder = read_holder(path)
    if not holder or holder["host"] != socket.gethostname() or not Path("/proc/self/fd").is_dir():
        return False
    if _is_alive(holder["pid"]) or _is_alive(holder["group"]):
        return False
    found = False
    lock = path.stat()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # Both must be so: of its group, and with the lock in its hands.
            if os.getpgid(int(process.name)) == holder["group"] and any(
                os.path.samestat(entry.stat(), lock) for entry in (process / "fd").iterdir()
            ):
                os.kill(int(process.name), signal.SIGKILL)
                found = True
    return found


def _is_alive(pid: int) -> bool:
    """Return whether a process of this number runs; one that ended and was not yet asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
