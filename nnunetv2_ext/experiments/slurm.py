"""The engine for clusters: jobs of Slurm, each after those that it needs. Nothing of it runs once they are submitted.

What is in the queue is asked of Slurm, by the names of the jobs; `slurm/submitted.json` in the experiment's folder
keeps their numbers too. A submission that was interrupted is continued by the next one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments.jobs import Graph, Job
from nnunetv2_ext.experiments.locks import take_lock
from nnunetv2_ext.experiments.slurm_queue import PAUSE, ControllerAwayError, Entry, call, cancel, read_queue
from nnunetv2_ext.experiments.slurm_scripts import SCRIPTS, Batch, make_batches, name_prefix, write_scripts
from nnunetv2_ext.experiments.state import read_attempts
from nnunetv2_ext.io.files import whole_file

__all__ = ["Submission", "cancel_jobs", "find_jobs", "read_submitted", "submit"]

_NOTE = (
    "No line below `slurm` asks for a GPU: if the partition does not give one by itself, add one, as --gres=gpu:1, "
    "to its `lines`."
)


@dataclass
class Submission:
    """What a submission did.

    Attributes:
        submitted: numbers of the new jobs in the queue, by key.
        queued: entries of jobs that were in the queue before, by key.
        given_up: keys of jobs that failed too often; `retry` submits them again.
        blocked: keys of jobs that wait for one that was given up.
        notes: sentences for the user.
    """

    submitted: dict[str, str] = field(default_factory=dict)
    queued: dict[str, Entry] = field(default_factory=dict)
    given_up: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def submit(graph: Graph, *, retry: bool = False) -> Submission:
    """Write the scripts, and submit what is neither done nor in the queue.

    A job that waits in the queue for others than it should, because one of them is submitted anew, is taken out and
    submitted again; it has not started yet.

    Args:
        graph: jobs of the experiment.
        retry: whether jobs that were given up are submitted too, with new attempts.

    Raises:
        UserError: if another process submits this experiment, there is no Slurm, or it refuses a script.
    """
    batches = write_scripts(graph)
    folder = graph.experiment.folder
    lock = take_lock(folder / SCRIPTS / ".lock")
    if lock is None:
        raise UserError(f"Another process submits {graph.experiment.file} at this moment: wait for it.")
    try:
        return _Submitter(graph, batches, retry).submit()
    finally:
        os.close(lock)


def find_jobs(graph: Graph) -> dict[str, Entry]:
    """Return the experiment's entries in the queue, by key.

    Raises:
        UserError: if there is no Slurm, or its controller stays away.
    """
    prefix, known = name_prefix(graph.experiment), _names(graph)
    recorded = {number: key for key, number in read_submitted(graph.experiment.folder).items()}
    found: dict[str, Entry] = {}
    for entry in read_queue():
        stem, number = entry.name.removeprefix(prefix), entry.id.partition("_")[2]
        key = known.get((stem, number)) if entry.name.startswith(prefix) else None
        if key := key or recorded.get(entry.id):
            found[key] = entry
    return found


def cancel_jobs(graph: Graph) -> list[Entry]:
    """Cancel all jobs of the experiment that wait or run, and return them.

    Jobs of parts that the experiment file does not name any more are among them.

    Raises:
        UserError: if there is no Slurm, or its controller stays away.
    """
    prefix = name_prefix(graph.experiment)
    recorded = set(read_submitted(graph.experiment.folder).values())
    entries = [entry for entry in read_queue() if entry.name.startswith(prefix) or entry.id in recorded]
    cancel([entry.id for entry in entries])
    return entries


def read_submitted(folder: Path) -> dict[str, str]:
    """Return the number in the queue that each job got last, by key; empty before the first submission."""
    try:
        content = json.loads(_record(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(number) for key, number in content.items()} if isinstance(content, dict) else {}


def _record(folder: Path) -> Path:
    return folder / SCRIPTS / "submitted.json"


def _names(graph: Graph) -> dict[tuple[str, str], str]:
    """Return the key of each job by the stem of its script and its number in the array."""
    return {
        (batch.stem, "" if number is None else str(number)): job.key
        for batch in make_batches(graph)
        for number, job in batch.jobs.items()
    }


class _Submitter:
    """One submission of an experiment."""

    def __init__(self, graph: Graph, batches: list[Batch], retry: bool) -> None:
        self.graph = graph
        self.batches = batches
        self.retry = retry
        self.live: dict[str, Entry] = {}
        self.result = Submission()

    def submit(self) -> Submission:
        wanted = self._choose()
        if stale := wanted & self.live.keys():
            cancel([self.live[key].id for key in stale], only_pending=True)
            wanted = self._choose()
            if wanted & self.live.keys():
                raise UserError("The queue changes at this moment: run this again in a minute.")
        self.result.queued = {key: entry for key, entry in self.live.items() if key not in self.graph.done}
        experiment = self.graph.experiment
        asks_for_gpu = any("gpu" in line or line.startswith("-G") for line in experiment.slurm.lines)
        if wanted and experiment.training.device == "cuda" and not asks_for_gpu:
            self.result.notes.append(_NOTE)
        for batch in self.batches:
            jobs = {number: job for number, job in batch.jobs.items() if job.key in wanted}
            if jobs:
                self._submit(batch, jobs)
        return self.result

    def _choose(self) -> set[str]:
        """Return the keys of the jobs to submit; those among them that are in the queue wait for wrong ones there."""
        # The queue before the disk: what leaves it in between is seen to be done.
        self.live = find_jobs(self.graph)
        self.graph = replace(self.graph)
        # Of jobs that are seen for the first time, an interrupted submission did not keep the numbers.
        self._note({key: entry.id for key, entry in self.live.items()})
        self.result = Submission()
        wanted: set[str] = set()
        # Slurm names a job that has ended for some seconds more.
        done = {
            number for key, number in read_submitted(self.graph.experiment.folder).items() if key in self.graph.done
        }
        for job in self.graph.needed:
            before = [other.key for other in self.graph.waits_for(job)]
            entry = self.live.get(job.key)
            if any(key not in wanted and key not in self.live for key in before):
                self.result.blocked.append(job.key)
            elif entry is not None:
                expected = {self.live[key].id for key in before if key in self.live}
                right = wanted.isdisjoint(before) and entry.waits_for - done == expected
                if entry.state == "PENDING" and not right:
                    wanted.add(job.key)
            elif read_attempts(job.attempts).given_up and not self.retry:
                self.result.given_up.append(job.key)
            else:
                wanted.add(job.key)
        return wanted

    def _submit(self, batch: Batch, jobs: Mapping[int | None, Job]) -> None:
        """Submit some jobs of a script."""
        for job in jobs.values():
            if self.retry:
                job.attempts.unlink(missing_ok=True)
        before = dict.fromkeys(self._number(other.key) for job in jobs.values() for other in self.graph.waits_for(job))
        options = [f"--dependency=afterok:{':'.join(before)}"] if before else []
        if batch.is_array:
            options.append(f"--array={batch.array(list(jobs), self.graph.experiment.slurm.array_limit)}")
        array = self._sbatch(batch, options, jobs)
        numbers = {job.key: array if number is None else f"{array}_{number}" for number, job in jobs.items()}
        self._note(numbers)
        self.result.submitted.update(numbers)

    def _number(self, key: str) -> str:
        return self.result.submitted.get(key) or self.live[key].id

    def _sbatch(self, batch: Batch, options: list[str], jobs: Mapping[int | None, Job]) -> str:
        """Submit a script and return the number of its job or array.

        A controller that does not answer may have taken it nevertheless: the queue is asked before it is tried again.
        """
        folder = self.graph.experiment.folder
        for _ in range(3):
            try:
                return call("sbatch", "--parsable", *options, batch.script, folder=folder).strip().partition(";")[0]
            except ControllerAwayError:
                time.sleep(PAUSE)
                found = find_jobs(self.graph)
                for job in jobs.values():
                    if job.key in found:
                        return found[job.key].id.partition("_")[0]
            except UserError as error:
                raise UserError(
                    f"{error} This was {folder / batch.script}; correct what {self.graph.experiment.file} says below "
                    "`slurm` and `resources`, and run it again: what is submitted stays."
                ) from error
        raise UserError("Slurm's controller takes no jobs: try again later; what is submitted stays.")

    def _note(self, numbers: Mapping[str, str]) -> None:
        """Keep the numbers of jobs in the experiment's folder."""
        folder = self.graph.experiment.folder
        before = read_submitted(folder)
        after = {**before, **numbers}
        if after != before:
            with whole_file(_record(folder)) as partial:
                partial.write_text(json.dumps(after, indent=1) + "\n", encoding="utf-8")
