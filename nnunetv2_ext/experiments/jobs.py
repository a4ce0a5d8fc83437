"""The jobs of an experiment, what each waits for, and how it is known from disk that one is done."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from nnunetv2_ext.experiments.experiment import Experiment

__all__ = ["COMPARE", "FIND_BEST", "PREPROCESS", "SPLITS", "TRAIN", "Fold", "Graph", "Job"]

# The kinds of jobs, in the order of nnU-Net's work.
PREPROCESS, SPLITS, TRAIN, FIND_BEST, COMPARE = "preprocess", "splits", "train", "find_best", "compare"


@dataclass(frozen=True)
class Fold:
    """One training.

    Attributes:
        dataset: full name of the dataset.
        trainer, plans, configuration, fold: as after `-tr`, `-p` and in the command of `nnUNetv2_train`.
        folder: where nnU-Net keeps its checkpoints.
    """

    dataset: str
    trainer: str
    plans: str
    configuration: str
    fold: str
    folder: Path


@dataclass(frozen=True)
class Job:
    """One command that is run at most once at a time, until it is done.

    Attributes:
        key: name, by which `once` is asked to run it: `train/Dataset901_A/nnUNetTrainer__nnUNetPlans__2d/fold_0`.
        kind: one of `preprocess`, `splits`, `train`, `find_best`, `compare`.
        command: program and arguments.
        after: keys of the jobs that must be done before.
        output: file that is there when it is done; `once` writes it unless the command does.
        lock: file that a process holds as long as it runs this job.
        log: file to which the command's output is appended.
        attempts: file that counts the failures.
        fold: the training, for jobs of that kind.
        is_done: reads from disk whether the job is done.
    """

    key: str
    kind: str
    command: tuple[str, ...]
    after: tuple[str, ...]
    output: Path
    lock: Path
    log: Path
    attempts: Path
    is_done: Callable[[], bool] = field(compare=False, repr=False)
    fold: Fold | None = None

    @property
    def slug(self) -> str:
        """The key as a file's name."""
        return slug(self.key)

    @property
    def uses_gpu(self) -> bool:
        """Whether it runs on GPUs."""
        return self.kind == TRAIN

    @property
    def title(self) -> str:
        """The key in words."""
        return self.key.replace("/", " ")


def slug(key: str) -> str:
    """Return a key as a file's name."""
    return re.sub(r"[^\w.-]", ".", key)


@dataclass(frozen=True)
class Graph:
    """All jobs of an experiment.

    Attributes:
        experiment: the experiment.
        jobs: jobs by key, each after those that it waits for.
        notes: what was left out or added, a sentence each.
    """

    experiment: Experiment
    jobs: Mapping[str, Job]
    notes: tuple[str, ...]

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs.values())

    @cached_property
    def done(self) -> frozenset[str]:
        """Keys of the jobs that are done, read once."""
        return frozenset(job.key for job in self if job.is_done())

    @cached_property
    def needed(self) -> tuple[Job, ...]:
        """Jobs that are to run, in a valid order.

        Data of trainings that are all done is not made again.
        """
        wanted: set[str] = set()
        for job in reversed(list(self)):
            result = job.kind in (TRAIN, FIND_BEST, COMPARE)
            if job.key not in self.done and (result or job.key in wanted):
                wanted.add(job.key)
                wanted.update(key for key in job.after if key not in self.done)
        return tuple(job for job in self if job.key in wanted)

    def waits_for(self, job: Job) -> tuple[Job, ...]:
        """Return the jobs that a job still waits for."""
        return tuple(self.jobs[key] for key in job.after if key not in self.done)
