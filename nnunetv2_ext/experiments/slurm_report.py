"""What a person reads of a cluster: what was submitted, what waits and runs in the queue, what was cancelled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments.jobs import Graph
from nnunetv2_ext.experiments.slurm import Submission, find_jobs, read_submitted
from nnunetv2_ext.experiments.slurm_queue import Entry
from nnunetv2_ext.experiments.slurm_scripts import LOGS
from nnunetv2_ext.experiments.state import read_attempts

__all__ = ["format_cancelled", "format_queue", "format_submission"]


def format_submission(graph: Graph, submission: Submission) -> str:
    """Return what was submitted, what was in the queue before, and what was not submitted."""
    new, queued = len(submission.submitted), len(submission.queued)
    lines = [f"{graph.experiment.name}: submitted {_count(new)}; {queued or 'none'} in the queue before."]
    lines += [f"  {number}  {title}" for title, number in _titles(graph, submission.submitted)]
    lines += [f"Note: {note}" for note in submission.notes]
    for key in submission.given_up:
        lines.append(f"Given up until --retry: {graph.jobs[key].title}; its log is {graph.jobs[key].log}")
    lines += [f"Not submitted, since it needs one of these: {graph.jobs[key].title}" for key in submission.blocked]
    if new or queued:
        lines.append("Nothing else has to run here. How far it is: --status; end it: --cancel.")
    return "\n".join(lines)


def format_queue(graph: Graph) -> str:
    """Return what waits and runs in the queue, and what has left it without being done.

    A queue that cannot be asked is told in a sentence.
    """
    try:
        live = find_jobs(graph)
    except UserError as error:
        return f"Slurm's queue is not known: {error}"
    lines = ["In Slurm's queue"] if live else ["Slurm's queue has no job of this experiment."]
    groups: dict[tuple[str, str], list[str]] = {}
    for key in (job.key for job in graph if job.key in live):
        entry = live[key]
        array = entry.id.partition("_")[0] if entry.state == "PENDING" else entry.id
        groups.setdefault((array, entry.words), []).append(key)
    for (_, words), keys in groups.items():
        lines += [f"  {words}", *(f"    {number}  {title}" for title, number in _titles(graph, _ids(keys, live)))]
    # What is done is read after the queue: a job that ended in between is no lost one.
    left = {
        key: number
        for key, number in read_submitted(graph.experiment.folder).items()
        if key in graph.jobs and key not in live and not graph.jobs[key].is_done()
    }
    if left:
        lines.append(
            f"Left the queue without being done; the same run command submits them again. Slurm's logs: {LOGS}"
        )
        for title, number in _titles(graph, left):
            lines.append(f"    {number}  {title}")
        given_up = [key for key in left if read_attempts(graph.jobs[key].attempts).given_up]
        lines += [f"    given up until --retry: {graph.jobs[key].title}" for key in given_up]
    return "\n".join(lines)


def format_cancelled(graph: Graph, entries: Sequence[Entry]) -> str:
    """Return what was cancelled."""
    if not entries:
        return f"{graph.experiment.name}: no job of this experiment is in the queue."
    running = sum(entry.state != "PENDING" for entry in entries)
    return (
        f"{graph.experiment.name}: cancelled {_count(len(entries))}, of which {running or 'none'} had started. What is "
        "saved stays; the same run command goes on from there."
    )


def _count(number: int) -> str:
    return f"{number or 'no'} job{'' if number == 1 else 's'}"


def _ids(keys: Iterable[str], live: Mapping[str, Entry]) -> dict[str, str]:
    return {key: live[key].id for key in keys}


def _titles(graph: Graph, numbers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return titles and numbers of jobs, the folds of one array together."""
    together: dict[tuple[str, str], list[str]] = {}
    for key, number in numbers.items():
        job, (array, _, index) = graph.jobs[key], number.partition("_")
        title = job.title.rpartition(" ")[0] if index else job.title
        together.setdefault((title, array), []).append(index)
    found = []
    for (title, array), indices in together.items():
        if indices == [""]:
            found.append((title, array))
        else:
            # As Slurm writes it: 12_0, and 12_[0,1] for several.
            index = indices[0] if len(indices) == 1 else f"[{','.join(indices)}]"
            found.append((f"{title} fold {' '.join(indices)}", f"{array}_{index}"))
    return found
