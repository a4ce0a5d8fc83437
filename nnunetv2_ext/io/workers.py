"""Worker processes of this package's commands: how many, how they start, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tqdm import tqdm

from nnunetv2_ext.errors import UserError

__all__ = ["PROCESSES_HELP", "available_cores", "call_in_process", "default_processes", "map_in_processes"]

PROCESSES_VARIABLE = "nnUNet_def_n_proc"
PROCESSES_HELP = f"processes (default: {PROCESSES_VARIABLE}, as nnU-Net's own; otherwise one per core, at most 8)"

Result = TypeVar("Result")


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_processes() -> int:
    """Return the number of processes that nnU-Net's variable says, otherwise one per core that is ours, at most 8.

    Raises:
        UserError: if the variable is not a whole number above 0.
    """
    set_by_user = os.environ.get(PROCESSES_VARIABLE)
    if set_by_user is None:
        return min(8, available_cores())
    if not set_by_user.isdigit() or int(set_by_user) < 1:
        raise UserError(f"{PROCESSES_VARIABLE} is {set_by_user!r}: set it to a whole number above 0, or unset it.")
    return int(set_by_user)


def map_in_processes(
    function: Callable[..., Result],
    arguments: Sequence[tuple[Any, ...]],
    processes: int | None = None,
    *,
    description: str,
    unit: str = "case",
    progress: bool = True,
) -> list[Result]:
    """Call a function for each tuple of arguments, several at a time, under a progress bar; the first error ends all.

    Args:
        function: function of a module, or a partial of one.
        arguments: one tuple per call.
        processes: how many work at a time; 1 is this process alone. See `default_processes`.
        description: title of the bar.
        unit: what a call works on.
        progress: whether to show the bar.

    Returns:
        The results in the order of the arguments.

    Raises:
        UserError: for a number of processes below 1, or if a worker was ended from outside.
    """
    processes = default_processes() if processes is None else processes
    if processes < 1:
        raise UserError(f"{processes} processes cannot work: choose at least 1 with -np.")
    with tqdm(total=len(arguments), desc=description, unit=unit, disable=not progress) as bar:
        if min(processes, len(arguments)) <= 1:
            results = []
            for of_call in arguments:
                results.append(function(*of_call))
                bar.update()
            return results
        with _pool(min(processes, len(arguments))) as pool:
            futures = [pool.submit(function, *of_call) for of_call in arguments]
            for future in as_completed(futures):
                future.result()
                bar.update()
            return [future.result() for future in futures]


def call_in_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a process of its own, which has none of this one's signal handlers, and so do its children.

    Raises:
        UserError: if the process was ended from outside.
    """
    with _pool(1) as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Start workers afresh, since a copy of this process could hold locks of threads that it does not have.

    They end when the block does: after an error or an interruption at once, even in the middle of a file, and also when
    this process is killed and can end nobody.
    """
    context = multiprocessing.get_context("spawn")
    # Nothing is ever sent: the workers read, and the end of the pipe is what they wait for.
    theirs, ours = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=_prepare, initargs=(theirs,))
    try:
        yield executor
        executor.shutdown()
    except BrokenProcessPool as error:
        raise UserError(
            "A worker process was ended from outside, mostly for lack of memory: use fewer of them with -np."
        ) from error
    finally:
        ours.close()
        executor.shutdown(cancel_futures=True)
        theirs.close()


def _prepare(parents: Connection) -> None:
    """Prepare a worker: it leaves Ctrl+C to its parent, and ends when the parent's side of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        with suppress(EOFError, OSError):
            parents.recv_bytes()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
