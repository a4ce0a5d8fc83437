"""What is done and how far the rest is, read from disk: it is true whoever ran it, and with whichever engine."""

from __future__ import annotations

import fcntl
import json
import os
import re
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nnunetv2_ext.io.files import whole_file
from nnunetv2_ext.trainers.names import parse_name

__all__ = [
    "CHECKPOINTS",
    "EPOCHS_FILE",
    "FAILURES_ALLOWED",
    "Attempts",
    "Progress",
    "is_held",
    "is_preprocessed",
    "is_trained",
    "last_epoch",
    "read_attempts",
    "read_progress",
    "stamp_is_valid",
    "write_attempts",
    "write_stamp",
]

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
# The trainers' `safe_stop.py` writes it; importing that would take torch along.
EPOCHS_FILE = "epochs.jsonl"
# Failures without a new epoch in between, after which a training is given up.
FAILURES_ALLOWED = 3
# The same for stops, which are nobody's fault: a few may come during start-up or validation.
STOPS_ALLOWED = 10
# Epochs whose median is the time of one.
RECENT = 20


def is_trained(fold: Path) -> bool:
    """Return whether a fold is trained and validated: its final checkpoint and its summary are there."""
    summary = fold / "validation" / "summary.json"
    return all(path.is_file() and path.stat().st_size > 0 for path in (fold / CHECKPOINTS[0], summary))


def is_preprocessed(dataset: Path, identifier: str, cases: Collection[str], ending: str) -> bool:
    """Return whether the data of a configuration is complete.

    Args:
        dataset: the dataset's folder among the preprocessed ones.
        identifier: name of the data's folder, which the plans say.
        cases: names of all training cases.
        ending: ending of the dataset's files.
    """
    # Of each case the properties are written last, and the labels for the validation after all cases.
    written = {path.name for path in (dataset / identifier).glob("*.pkl")}
    labels = {path.name for path in (dataset / "gt_segmentations").glob("*")}
    return bool(cases) and all(f"{case}.pkl" in written and f"{case}{ending}" in labels for case in cases)


def write_stamp(stamp: Path, command: Sequence[str]) -> None:
    """Write the file that says which command is done."""
    with whole_file(stamp) as partial:
        partial.write_text(json.dumps({"command": list(command)}, indent=1) + "\n", encoding="utf-8")


def stamp_is_valid(stamp: Path, command: Sequence[str], inputs: Iterable[Path] = ()) -> bool:
    """Return whether a step was done by this very command, after all of its inputs were written."""
    try:
        done = json.loads(stamp.read_text(encoding="utf-8"))["command"] == list(command)
        return done and all(path.stat().st_mtime <= stamp.stat().st_mtime for path in inputs)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_held(lock: Path) -> bool:
    """Return whether a process holds a lock file."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@dataclass(frozen=True)
class Attempts:
    """How often a job ended before it was done.

    Attributes:
        failures: failures since the last new epoch.
        stops: stops since the last new epoch.
        epoch: last epoch that was complete then; -1 for none.
        why: how it ended, in words.
    """

    failures: int = 0
    stops: int = 0
    epoch: int = -1
    why: str = ""

    def failed(self, epoch: int, why: str) -> Attempts:
        """Return the attempts after another failure; a new epoch since the last one makes it the first."""
        before = self if epoch <= self.epoch else Attempts()
        return replace(before, failures=before.failures + 1, epoch=epoch, why=why)

    def stopped(self, epoch: int) -> Attempts:
        """Return the attempts after another stop."""
        before = self if epoch <= self.epoch else Attempts()
        why = f"stopped {before.stops + 1} times without a new epoch: is the time limit shorter than an epoch?"
        return replace(before, stops=before.stops + 1, epoch=epoch, why=why)

    @property
    def given_up(self) -> bool:
        """Whether it is not tried again unless asked for."""
        return self.failures >= FAILURES_ALLOWED or self.stops >= STOPS_ALLOWED


def read_attempts(file: Path) -> Attempts:
    """Read what `write_attempts` wrote; a missing or damaged file means no failure."""
    try:
        return Attempts(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Attempts()


def write_attempts(file: Path, attempts: Attempts) -> None:
    """Write how often a job failed."""
    with whole_file(file) as partial:
        partial.write_text(json.dumps(asdict(attempts)) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        epochs_done: number of complete epochs.
        epochs: number of all epochs; None if it is not known before the start.
        seconds: seconds per epoch, the median of the last ones; None before the first.
    """

    epochs_done: int
    epochs: int | None
    seconds: float | None

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last epoch is complete; the validation comes after it."""
        if self.epochs is None or self.seconds is None:
            return None
        return max(self.epochs - self.epochs_done, 0) * self.seconds


def _epoch_records(fold: Path) -> dict[int, float]:
    """Return the seconds of each complete epoch: of an epoch with several lines the last one counts."""
    try:
        lines = (fold / EPOCHS_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return _epochs_of_logs(fold)
    records = {}
    for line in lines:
        try:
            record: dict[str, Any] = json.loads(line)
            records[int(record["epoch"])] = float(record["seconds"])
        except (ValueError, KeyError, TypeError):
            continue  # a line that was cut off
    return records


def _epochs_of_logs(fold: Path) -> dict[int, float]:
    """Return the same of a trainer that writes no such file, from nnU-Net's training logs."""
    records: dict[int, float] = {}
    for log in sorted(fold.glob("training_log_*.txt")):
        text = log.read_text(encoding="utf-8", errors="replace")
        for epoch, seconds in re.findall(r": Epoch (\d+)\s*\n(?:(?!: Epoch \d).*\n)*?.*: Epoch time: ([\d.]+) s", text):
            records[int(epoch)] = float(seconds)
    return records


def last_epoch(fold: Path) -> int:
    """Return the last complete epoch of a fold, -1 if there is none."""
    return max(_epoch_records(fold), default=-1)


def _number_of_epochs(fold: Path, trainer: str) -> int | None:
    try:
        return int(json.loads((fold / "debug.json").read_text(encoding="utf-8"))["num_epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        parsed = parse_name(trainer)
        return parsed[1].epochs if parsed and parsed[1] else None


def read_progress(fold: Path, trainer: str) -> Progress:
    """Read how far the training of a fold is."""
    records = _epoch_records(fold)
    recent = [records[epoch] for epoch in sorted(records)[-RECENT:]]
    return Progress(
        epochs_done=max(records, default=-1) + 1,
        epochs=_number_of_epochs(fold, trainer),
        seconds=statistics.median(recent) if recent else None,
    )
