"""`python -m nnunetv2_ext.experiments.once EXPERIMENT KEY` runs one job, once at a time, in the same way everywhere.

It waits until no other process runs the same job, hands out GPUs, goes on from a checkpoint, appends the log, counts
failures and gives up, and passes signals on so that a training stops without losing an epoch.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import BinaryIO

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments.experiment import Experiment, read_experiment
from nnunetv2_ext.experiments.graph import build_graph
from nnunetv2_ext.experiments.jobs import FIND_BEST, PREPROCESS, SPLITS, TRAIN, Job
from nnunetv2_ext.experiments.locks import end_leftovers, take_gpus, take_lock, write_holder
from nnunetv2_ext.experiments.processes import Child, describe_ending
from nnunetv2_ext.experiments.state import (
    CHECKPOINTS,
    FAILURES_ALLOWED,
    last_epoch,
    read_attempts,
    write_attempts,
    write_stamp,
)

__all__ = ["STOPPED", "command_now", "run_once"]

# Exit code of a training that was stopped and can go on, as `trainers/safe_stop.py` has it.
STOPPED = 75
POLL_SECONDS = 0.5
BEST_FILES = ("inference_information.json", "inference_instructions.txt")


def command_now(job: Job) -> tuple[str, ...]:
    """Return the command of a job as things are: `--c` instead of weights to start from where there is a checkpoint."""
    if (
        job.fold
        and "-pretrained_weights" in job.command
        and any((job.fold.folder / name).is_file() for name in CHECKPOINTS)
    ):
        start = job.command.index("-pretrained_weights")
        return (*job.command[:start], *job.command[start + 2 :], "--c")
    return job.command


class _Once:
    """One run of one job."""

    def __init__(self, experiment: Experiment, job: Job, engine: str) -> None:
        self.experiment = experiment
        self.job = job
        self.engine = engine
        self.attempts = read_attempts(job.attempts)
        self.child: Child | None = None
        self.asked = 0  # signals to stop
        self.waiting = False
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self.log: BinaryIO = job.log.open("ab", buffering=0)

    def run(self) -> int:
        """Run the job, and return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._stop)
        try:
            lock = self._wait_for_lock()
            if self.job.is_done():
                self._say("is done already")
                self._write_stamp()
                return 0
            if self.attempts.given_up:
                self._say(f"is given up ({self.attempts.why}): see {self.job.log}, then try again with --retry")
                return 1
            gpus = self._wait_for_gpus()
        except _AskedToStopError:
            self._say("was asked to stop before it started")
            return STOPPED
        while True:
            code = self._attempt(lock, gpus)
            if code is not None:
                return code

    def _attempt(self, lock: int, gpus: Mapping[str, int]) -> int | None:
        """Run the command to its end; return the exit code, or None to try again."""
        if self.asked:
            return STOPPED
        where = f" on GPU {','.join(gpus)}" if gpus else ""
        self._say(f"starts{where}, {self._last_epoch() + 1} epochs complete" if self.job.fold else "starts")
        try:
            code = self._run_command(lock, gpus)
        except (OSError, UserError) as error:
            self._say(f"could not start: {error}")
            return 1
        after = self._last_epoch()
        if code == 0 and self._finished():
            self._say("is finished")
            return 0
        if code == STOPPED or (self.asked and code != 0):
            self.attempts = self.attempts.stopped(after)
            self._keep_attempts()
            self._say(f"was stopped after epoch {after}" if after >= 0 else "was stopped before an epoch was complete")
            if self.attempts.given_up:
                self._say(f"is given up: {self.attempts.why}")
                return 1
            # On a cluster the job starts again by itself: its time may be over. Here somebody ended the training alone.
            return STOPPED if self.asked or self.engine == "slurm" else None
        why = describe_ending(code)
        self.attempts = self.attempts.failed(after, why)
        self._keep_attempts()
        if self.job.kind == TRAIN and not self.attempts.given_up:
            self._say(f"failed ({why}), {self.attempts.failures} of {FAILURES_ALLOWED} times: tried again")
            return None
        self._say(f"failed ({why}); its log is {self.job.log}")
        return 1

    def _run_command(self, lock: int, gpus: Mapping[str, int]) -> int:
        command = command_now(self.job)
        self.log.write(f"$ {shlex.join(command)}\n".encode())
        self.child = Child(
            command,
            environment=self._environment(gpus),
            output=self.log,
            descriptors=(lock, *gpus.values()),
            ranks=self.job.kind == TRAIN and self.experiment.training.num_gpus > 1,
        )
        write_holder(lock, self.child.process.pid)
        if self.asked:  # while it was being started
            self.child.send(signal.SIGTERM)
        return self.child.wait()

    def _environment(self, gpus: Mapping[str, int]) -> dict[str, str]:
        cores = str(self.experiment.resources.cores)
        environment = {"nnUNet_n_proc_DA": cores, "nnUNet_def_n_proc": cores, **os.environ, "PYTHONUNBUFFERED": "1"}
        if self.job.kind == TRAIN:
            environment.update(self.experiment.training.environment)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return environment

    def _finished(self) -> bool:
        """Return whether a command that ended well did its work, and keep what says so."""
        if self.job.kind in (PREPROCESS, SPLITS, TRAIN) and not self.job.is_done():
            return False
        if self.job.kind == FIND_BEST:
            # nnU-Net writes it for a dataset, so that the next trainer's takes its place. Each is kept, and the
            # dataset's folder has that of the experiment's first trainer, whichever ended last.
            _, dataset, trainer = self.job.key.split("/")
            kept, folder = self.experiment.report / "find_best" / dataset, self.job.lock.parent
            (kept / trainer).mkdir(parents=True, exist_ok=True)
            for name in BEST_FILES:
                shutil.copyfile(folder / name, kept / trainer / name)
            first = next(one for one in self.experiment.trainers if (kept / one / BEST_FILES[-1]).is_file())
            for name in BEST_FILES:
                shutil.copyfile(kept / first / name, folder / name)
        self._write_stamp()
        if self.attempts.failures or self.attempts.stops:
            self.job.attempts.unlink(missing_ok=True)
        return True

    def _write_stamp(self) -> None:
        if self.job.kind != TRAIN and not self.job.output.is_file():
            write_stamp(self.job.output, self.job.command)

    def _last_epoch(self) -> int:
        return last_epoch(self.job.fold.folder) if self.job.fold else -1

    def _keep_attempts(self) -> None:
        try:
            write_attempts(self.job.attempts, self.attempts)
        except OSError as error:
            self._say(f"{self.job.attempts} cannot be written ({error.strerror})")

    # Waiting and stopping

    def _wait_for_lock(self) -> int:
        self.waiting, told = True, False
        while (lock := take_lock(self.job.lock)) is None:
            if end_leftovers(self.job.lock):
                self._say("ended what was left of a killed training")
            elif not told:
                self._say("another process runs it, or one that must not run beside: waiting")
                told = True
            time.sleep(POLL_SECONDS)
        self.waiting = False
        write_holder(lock, os.getpid())
        return lock

    def _wait_for_gpus(self) -> dict[str, int]:
        ids = self.experiment.resources.gpus
        if self.engine == "slurm" or self.job.kind != TRAIN or not ids:
            return {}
        self.waiting, told = True, False
        while (taken := take_gpus(ids, self.experiment.training.num_gpus)) is None:
            if not told:
                self._say("waits for a GPU")
                told = True
            time.sleep(POLL_SECONDS)
        self.waiting = False
        return taken

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Pass a signal on to what runs; SIGINT, which would break an epoch off, as SIGTERM."""
        self.asked += 1
        if self.child is not None:
            self.child.send(number if self.job.kind == TRAIN and number == signal.SIGUSR1 else signal.SIGTERM)
        elif self.waiting:
            self.waiting = False
            raise _AskedToStopError

    def _say(self, what: str) -> None:
        """Write a line to the job's log, to the experiment's journal, and to the terminal."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.job.title} {what}"
        with suppress(OSError):  # the disk may be full, and the exit code must get through
            self.log.write(f"== {line}\n".encode())
            with (self.experiment.folder / "journal.log").open("ab", buffering=0) as journal:
                journal.write(f"{line} [{socket.gethostname()} {os.getpid()}]\n".encode())
        with suppress(OSError):
            print(line, flush=True)


class _AskedToStopError(Exception):
    """A signal came while nothing ran yet."""


def run_once(experiment: Experiment, key: str, engine: str = "workstation") -> int:
    """Run a job of an experiment.

    Args:
        experiment: the experiment.
        key: name of the job.
        engine: `workstation`, or `slurm`, which hands out GPUs itself and starts a stopped job again.

    Returns:
        0 if the job is done, 75 if it was stopped and can go on, another number if it failed.

    Raises:
        UserError: if there is no such job.
    """
    graph = build_graph(experiment)
    if key not in graph.jobs:
        raise UserError(f"{experiment.file} has no job {key}: `nnUNetv2_ext run FILE --dry-run` lists them.")
    return _Once(experiment, graph.jobs[key], engine).run()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m nnunetv2_ext.experiments.once", description=__doc__)
    parser.add_argument("experiment", help="experiment file")
    parser.add_argument("key", help="name of the job")
    parser.add_argument("--engine", choices=("workstation", "slurm"), default="workstation")
    parsed = parser.parse_args(arguments)
    try:
        sys.exit(run_once(read_experiment(parsed.experiment), parsed.key, parsed.engine))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
