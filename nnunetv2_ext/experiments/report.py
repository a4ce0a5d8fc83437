"""What a person reads: what would run, how far everything is, what failed, and the list of commands."""

from __future__ import annotations

import os
import shlex
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.experiments.jobs import COMPARE, FIND_BEST, PREPROCESS, SPLITS, TRAIN, Graph, Job
from nnunetv2_ext.experiments.state import Attempts, Progress, is_held, read_attempts, read_progress

__all__ = ["format_commands", "format_dry_run", "format_duration", "format_outcome", "format_status", "state_of"]

WIDTH = 100
DONE, RUNNING, FAILED, STOPPED, WAITS, READY = "done", "running", "failed", "stopped", "waits", "ready"


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: 3 d 4 h, 11 h 19 min, 45 min, 30 s."""
    minutes, hours, days = round(seconds / 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{round(seconds)} s"


def state_of(graph: Graph, job: Job) -> str:
    """Return the state of a job: done, running, failed, stopped, ready to run, or waiting for others."""
    if job.key in graph.done:
        return DONE
    if is_held(job.lock):
        return RUNNING
    attempts = read_attempts(job.attempts)
    if attempts.failures or attempts.given_up:
        return FAILED
    if attempts.stops:
        return STOPPED
    return WAITS if graph.waits_for(job) else READY


def _headline(graph: Graph) -> str:
    states = Counter(state_of(graph, job) for job in graph)
    words = [f"{states[DONE]} of {len(graph.jobs)} jobs done"]
    words += [f"{states[state]} {state}" for state in (RUNNING, FAILED, STOPPED) if states[state]]
    to_do = states[WAITS] + states[READY]
    return f"{graph.experiment.name}: {', '.join([*words, f'{to_do} to do'] if to_do else words)}"


def _groups(jobs: Iterable[Job]) -> list[str]:
    """Name jobs, the folds of one model together."""
    names: dict[str, int] = {}
    for job in jobs:
        name = job.title.rpartition(" ")[0] if job.fold else job.title
        names[name] = names.get(name, 0) + 1
    return [f"{name} ({count} folds)" if count > 1 else name for name, count in names.items()]


def _wrapped(text: str, indent: int, hanging: int) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _notes(graph: Graph) -> list[str]:
    return [_wrapped(f"Note: {note}", 0, 6) for note in graph.notes]


def format_dry_run(graph: Graph) -> str:
    """Return what is done, what would run now, and what waits for what."""
    needed = {job.key for job in graph.needed}
    now = [job for job in graph.needed if not graph.waits_for(job)]
    lines = [f"{_headline(graph)}; {len(needed)} would run", *_notes(graph), "", "Done"]
    lines += [f"  {name}" for name in _groups(job for job in graph if job.key in graph.done)] or ["  nothing"]
    lines += ["", "Would run now"]
    lines += [f"  {job.title}" for job in now] or ["  nothing"]
    lines += ["", "Waits"]
    waiting = [job for job in graph.needed if graph.waits_for(job)]
    lines += ["  nothing"] if not waiting else []
    for job in waiting:
        lines += [f"  {job.title}", _wrapped(f"after {', '.join(_groups(graph.waits_for(job)))}", 6, 6)]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Row:
    """One line of the status: a fold, or folds of which there is nothing else to say."""

    folds: tuple[str, ...]
    state: str
    progress: Progress

    def cells(self) -> list[str]:
        progress = self.progress
        epochs = f"{progress.epochs_done}/{progress.epochs or '?'}" if progress.epochs_done else ""
        seconds = f"{progress.seconds:.1f}" if progress.seconds is not None else ""
        left = progress.seconds_left if self.state in (RUNNING, STOPPED) else None
        return [" ".join(self.folds), self.state, epochs, seconds, "" if left is None else format_duration(left)]


def _rows(graph: Graph, jobs: Sequence[Job]) -> list[_Row]:
    rows: list[_Row] = []
    for job in jobs:
        if job.fold is None:
            continue
        state, progress = state_of(graph, job), read_progress(job.fold.folder, job.fold.trainer)
        row = _Row((job.fold.fold,), state, progress)
        alike = [other for other in rows if other.state == state and state in (DONE, WAITS, READY)]
        same = next((other for other in alike if other.progress.epochs_done == progress.epochs_done), None)
        if same:
            rows[rows.index(same)] = _Row((*same.folds, job.fold.fold), state, same.progress)
        else:
            rows.append(row)
    return rows


def _shortened(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH // 2 - 2]}...{text[-(WIDTH // 2 - 2) :]}"


def format_status(graph: Graph) -> str:
    """Return how far everything is: a table of at most 100 columns, and what failed."""
    lines = [_headline(graph), *_notes(graph)]
    steps = []
    for kind in (PREPROCESS, SPLITS, FIND_BEST, COMPARE):
        keys = [job.key for job in graph if job.kind == kind]
        if keys:
            steps.append(f"{kind} {sum(key in graph.done for key in keys)}/{len(keys)}")
    lines += [f"Steps done: {', '.join(steps)}", ""]
    models: dict[str, list[Job]] = {}
    for job in graph:
        if job.fold:
            plans = "" if len(graph.experiment.plans) == 1 else f"  {job.fold.plans}"
            heading = f"{job.fold.dataset}  {job.fold.configuration}  {job.fold.trainer}{plans}"
            models.setdefault(heading, []).append(job)
    header = ["fold", "state", "epochs", "s/epoch", "left"]
    tables = {heading: [row.cells() for row in _rows(graph, jobs)] for heading, jobs in models.items()}
    everything = [header, *(cells for table in tables.values() for cells in table)]
    widths = [max(len(cells[column]) for cells in everything) for column in range(len(header))]
    # Numbers stand to the right.
    line = "".join(f"  {{:{side}{width}}}" for side, width in zip("<<>>>", widths, strict=True))
    lines.append(line.format(*header).rstrip())
    for heading, table in tables.items():
        lines += [_shortened(heading), *(line.format(*cells).rstrip() for cells in table)]
    return "\n".join([*lines, *_failures(graph)])


def _failures(graph: Graph) -> list[str]:
    """List the jobs that failed: why, the log, and the command to look at it."""
    lines: list[str] = []
    for job in graph:
        if state_of(graph, job) != FAILED:
            continue
        attempts = read_attempts(job.attempts)
        lines += ["", f"Failed: {job.title}", f"  why   {_why(attempts)}", f"  log   {_shown(job.log)}"]
        lines += [f"  look  tail -n 30 {shlex.quote(_shown(job.log))}", f"  ran   {shlex.join(job.command)}"]
    return lines


def _why(attempts: Attempts) -> str:
    if attempts.given_up:
        times = f"{attempts.failures} times without a new epoch; " if attempts.failures > 1 else ""
        return f"{attempts.why}; {times}given up until --retry"
    return f"{attempts.why}; tried again at the next start"


def _shown(path: Path) -> str:
    """Return a path as it is shortest from here."""
    here = Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) else str(path)


def format_outcome(graph: Graph) -> str:
    """Return what came out of a run: what failed, and what was not started for it."""
    lines = [_headline(graph), *_failures(graph)]
    left = [job for job in graph.needed if state_of(graph, job) in (WAITS, READY)]
    if left:
        lines += ["", "Not started"]
    for job in left:
        waits = graph.waits_for(job)
        lines.append(f"  {job.title}")
        if waits:
            lines.append(_wrapped(f"waits for {', '.join(_groups(waits))}", 6, 6))
    return "\n".join(lines)


def format_commands(graph: Graph) -> str:
    """Return the commands of what is not done, in a valid order, as lines of a shell script."""
    lines = [f"# {graph.experiment.name}: what is not done, in a valid order."]
    if any(job.kind == TRAIN for job in graph.needed):
        lines.append("# Trainings end with code 75 when they were stopped: start the same line again.")
    environment = [f"{name}={shlex.quote(value)}" for name, value in graph.experiment.training.environment.items()]
    for job in graph.needed:
        after = ", ".join(_groups(graph.waits_for(job)))
        lines.append(f"# {job.title}{f' (after {after})' if after else ''}")
        lines.append(" ".join([*(environment if job.kind == TRAIN else []), shlex.join(job.command)]))
    return "\n".join(lines)
