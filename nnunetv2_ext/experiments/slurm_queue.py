"""Ask Slurm's controller, with `sbatch`, `squeue` and `scancel` alone, and wait for one that is away for a while."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.errors import UserError

__all__ = ["ControllerAwayError", "Entry", "call", "cancel", "read_queue"]

# Seconds between two questions to a controller that does not answer, and for how long it is asked.
PAUSE, PATIENCE = 5.0, 300.0
_AWAY = re.compile(
    r"unable to contact slurm controller|connect failure|connection (refused|reset|timed out)|socket timed out"
    r"|zero bytes|unable to establish|temporarily unable|communication|not responding|protocol authentication",
    re.IGNORECASE,
)
# Array number, number in the array, state, reason, time, limit, nodes, dependencies, and last, since it is the longest,
# the name.
_FORMAT = "%F|%K|%T|%r|%M|%l|%N|%E|%j"
_CANCELLED_AT_ONCE = 200


class ControllerAwayError(UserError):
    """Slurm's controller does not answer."""


@dataclass(frozen=True)
class Entry:
    """A job in the queue.

    Attributes:
        id: number, `12_0` for the job 0 of the array 12.
        name: name.
        state, reason: as Slurm says, as PENDING and Priority.
        elapsed, limit: time since its start and its limit, as Slurm writes them.
        nodes: where it runs.
        waits_for: numbers of the jobs that must be done before.
    """

    id: str
    name: str
    state: str
    reason: str
    elapsed: str
    limit: str
    nodes: str
    waits_for: frozenset[str]

    @property
    def words(self) -> str:
        """State and times for a person."""
        if self.state == "PENDING":
            after = self.reason == "Dependency"
            return "waits for other jobs" if after else f"pending ({self.reason})"
        place = f" on {self.nodes}" if self.nodes else ""
        return f"{self.state.lower()}{place}, {self.elapsed} of {self.limit}"


def call(*command: str, folder: Path | None = None) -> str:
    """Run a command of Slurm once and return its output.

    Raises:
        ControllerAwayError: if the controller does not answer.
        UserError: if there is no such command, or it refuses.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError(
            f"There is no command {command[0]} here: run this where jobs of the cluster are submitted, or choose "
            "another engine."
        ) from error
    if done.returncode == 0:
        return done.stdout
    answer = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    if _AWAY.search(answer):
        raise ControllerAwayError(f"Slurm's controller does not answer ({answer}): try again, or ask the site's staff.")
    raise UserError(f"{command[0]} refuses: {answer}.")


def _call_patiently(*command: str) -> str:
    """Run a command that may be repeated, for as long as the controller is away."""
    since = time.monotonic()
    told = False
    while True:
        try:
            return call(*command)
        except ControllerAwayError as error:
            if time.monotonic() - since > PATIENCE:
                raise UserError(
                    f"{error} It was asked for {PATIENCE / 60:.0f} minutes: try again later. Running jobs go on."
                ) from error
            if not told:
                print(f"{error} It is asked again; running jobs go on.", file=sys.stderr, flush=True)
                told = True
            time.sleep(PAUSE)


def read_queue() -> list[Entry]:
    """Return the user's jobs that wait or run, one entry per job of an array.

    Raises:
        UserError: if there is no Slurm, or its controller stays away.
    """
    output = _call_patiently("squeue", "--noheader", "--array", f"--user={os.getuid()}", f"--format={_FORMAT}")
    return [_parse(line) for line in output.splitlines() if line.count("|") >= _FORMAT.count("|")]


def _parse(line: str) -> Entry:
    array, number, state, reason, elapsed, limit, nodes, dependencies, name = line.split("|", _FORMAT.count("|"))
    return Entry(
        id=f"{array}_{number}" if number.isdecimal() else array,
        name=name,
        state=state,
        reason=reason,
        elapsed=elapsed,
        limit=limit,
        nodes=nodes,
        waits_for=frozenset(re.findall(r":(\d+(?:_\d+)?)", dependencies)),
    )


def cancel(ids: Collection[str], *, only_pending: bool = False) -> None:
    """Cancel jobs; those that have ended meanwhile are no error."""
    listed: Sequence[str] = sorted(ids)
    for start in range(0, len(listed), _CANCELLED_AT_ONCE):
        options = ["--quiet", *(["--state=PENDING"] if only_pending else [])]
        try:
            _call_patiently("scancel", *options, *listed[start : start + _CANCELLED_AT_ONCE])
        except UserError as error:
            if "already" not in str(error).lower() and "invalid job id" not in str(error).lower():
                raise
