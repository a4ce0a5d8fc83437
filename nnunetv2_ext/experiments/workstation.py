"""The engine of one machine: a Snakefile and a profile, written into the experiment's folder, and Snakemake on them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments.jobs import COMPARE, SPLITS, TRAIN, Graph
from nnunetv2_ext.experiments.locks import read_holder, take_lock, write_holder
from nnunetv2_ext.experiments.once import STOPPED
from nnunetv2_ext.experiments.state import write_stamp
from nnunetv2_ext.io.files import whole_file

__all__ = ["run_workstation", "write_workflow"]

HEAD_LOCK = ".head.lock"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def write_workflow(graph: Graph) -> None:
    """Write `Snakefile`, `jobs.json` and `profile/config.yaml` into the experiment's folder.

    They are the same for the same experiment, whatever is done of it.
    """
    experiment = graph.experiment
    cores, gpus = experiment.resources.cores, len(experiment.resources.gpus)
    at_once = max(1, gpus // experiment.training.num_gpus)
    once = [sys.executable, "-m", "nnunetv2_ext.experiments.once", str(experiment.file)]
    jobs = {
        job.key: {
            "name": _rule_name(job.slug),
            "kind": job.kind,
            "command": shlex.join(job.command),
            "after": list(job.after),
            "output": _relative(job.output, experiment.folder),
            "log": _relative(job.log, experiment.folder),
            "cores": 1 if job.kind in (SPLITS, COMPARE) else cores,
            "gpus": experiment.training.num_gpus if gpus and job.uses_gpu else 0,
        }
        for job in graph
    }
    snakefile = files(__package__).joinpath("templates", "Snakefile").read_text(encoding="utf-8")
    # As many trainings at a time as there are GPUs for; without GPUs one.
    profile = f"""\
# Read by `snakemake --workflow-profile profile`.
cores: {cores * at_once}
resources:
  - gpu={gpus}
# A failing job stops only those that need it.
keep-going: true
# Only newer results make the last steps run again: no edit of a script or of plans does.
rerun-triggers:
  - mtime
# What is done is true on disk: a result is written last, and whole.
ignore-incomplete: true
latency-wait: 10
# One job more or less at a time matters little here, and the other scheduler takes longer than short jobs.
scheduler: greedy
quiet:
  - host
  - rules
  - progress
  - reason
"""
    contents = {
        "Snakefile": snakefile.replace("@ONCE@", repr(shlex.join(once))),
        "jobs.json": json.dumps(jobs, indent=2, ensure_ascii=False) + "\n",
        "profile/config.yaml": profile,
    }
    for name, content in contents.items():
        file = experiment.folder / name
        if not file.is_file() or file.read_text(encoding="utf-8") != content:
            with whole_file(file) as partial:
                partial.write_text(content, encoding="utf-8")


def _rule_name(slug: str) -> str:
    """Return a key's name as a rule of Snakemake may be called: with letters, digits and _."""
    return "".join(sign if sign.isalnum() else "_" for sign in slug)


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def run_workstation(graph: Graph) -> int:
    """Run what is not done.

    Returns:
        0 if all is done then, 75 if it was stopped and goes on when it is started again, 1 if a job failed.

    Raises:
        UserError: if Snakemake is not installed, the experiment is running already, or a fold's folder holds a result
            without its training.
    """
    _require_snakemake()
    for job in graph.needed:
        if job.kind == TRAIN and job.output.is_file():
            raise UserError(
                f"{job.output} is there, but no checkpoint_final.pth of its training: remove the file to train this "
                "fold to its end, or put the checkpoint back."
            )
    folder = graph.experiment.folder
    braces = next((job.output for job in graph if set("{}") & set(_relative(job.output, folder))), None)
    if braces:
        raise UserError(f"{braces} has braces, which Snakemake takes for its own signs: rename that folder.")
    write_workflow(graph)
    if not graph.needed:
        return 0
    lock = take_lock(folder / HEAD_LOCK)
    if lock is None:
        pid = read_holder(folder / HEAD_LOCK).get("group", "?")
        raise UserError(
            f"{graph.experiment.file} is running already (process {pid}): look at it with --status; "
            f"`kill {pid}` stops it after the running epochs."
        )
    try:
        _agree_with_disk(graph)
        _remove_stale_lock(folder)
        return _run_snakemake(folder, lock)
    finally:
        os.close(lock)


def _require_snakemake() -> None:
    if sys.version_info < (3, 11):
        raise UserError("Snakemake needs Python 3.11: run the commands that --print lists, or use a newer Python.")
    if find_spec("snakemake") is None:
        raise UserError(
            'Snakemake is not installed: install it with `pip install "nnunetv2_ext[run]"`, or run the commands that '
            "--print lists."
        )


def _agree_with_disk(graph: Graph) -> None:
    """Make the stamps, which Snakemake goes by, agree with what is done."""
    for job in graph:
        if job.kind == TRAIN:
            continue
        if job.key not in graph.done:
            job.output.unlink(missing_ok=True)
        elif not job.output.is_file():
            write_stamp(job.output, job.command)


def _remove_stale_lock(folder: Path) -> None:
    """Remove Snakemake's lock, which stays behind when it is killed.

    Raises:
        UserError: if a Snakemake that was started by hand is running.
    """
    if not any((folder / ".snakemake" / "locks").glob("*")):
        return
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"snakemake" in (process / "cmdline").read_bytes() and (process / "cwd").samefile(folder):
                raise UserError(f"Snakemake runs in {folder} already, as process {process.name}: wait for it.")
    subprocess.run([*_snakemake(), "--unlock"], cwd=folder, check=True, capture_output=True)


def _snakemake() -> list[str]:
    return [sys.executable, "-m", "snakemake", "--workflow-profile", "profile"]


def _run_snakemake(folder: Path, lock: int) -> int:
    """Run Snakemake to its end.

    It has a process group of its own. A stop goes to all of that group: to Snakemake, which then starts nothing more,
    and to the running jobs, which Snakemake would wait for without telling them.
    """
    with subprocess.Popen(
        _snakemake(), cwd=folder, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=[lock]
    ) as process:
        # Snakemake inherits the lock, and its jobs do not: the experiment runs as long as it does.
        write_holder(lock, process.pid)

        asked: list[int] = []

        def stop(number: int, _frame: FrameType | None) -> None:
            asked.append(number)
            print("Stopping: trainings finish their epoch and save it. Ask once more to end them at once.", flush=True)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)

        with _handlers(stop):
            code = process.wait()
    return STOPPED if asked and code else min(abs(code), 1)


@contextmanager
def _handlers(stop: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `stop` on each signal that ends a program, but for those that this one was started to ignore."""
    before = {}
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as `nohup` asks for
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
