"""Write the `sbatch` files of an experiment: plain scripts, which can be read and submitted without this package."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments.experiment import Experiment
from nnunetv2_ext.experiments.folders import FOLDERS, nnunet_folder
from nnunetv2_ext.experiments.jobs import Graph, Job, slug
from nnunetv2_ext.io.files import whole_file

__all__ = ["LOGS", "SCRIPTS", "Batch", "make_batches", "name_prefix", "write_scripts"]

# Folder of the scripts, in the experiment's.
SCRIPTS = "slurm"
# What Slurm and the set-up lines say, beside the logs of the jobs themselves.
LOGS = f"{SCRIPTS}/logs"
_GPU_LINE = re.compile(r"--gres=(.*,)?gpu\b|--gpus\b|--gpus-per|--gpu-|-G|--(cpus|mem)-per-gpu\b")
# What the scripts set themselves.
_OWN_LINE = re.compile(
    r"--(job-name|output|error|open-mode|array|dependency|signal|requeue|no-requeue|chdir|time|kill-on-invalid-dep)\b"
    r"|-[JoeadDt]"
)


@dataclass(frozen=True)
class Batch:
    """Jobs of one script.

    Attributes:
        stem: name of the script without its ending.
        jobs: jobs by number in the array, which is the fold; a single job has the number None.
    """

    stem: str
    jobs: Mapping[int | None, Job]

    @property
    def script(self) -> str:
        """Path of the script from the experiment's folder."""
        return f"{SCRIPTS}/{self.stem}.sbatch"

    @property
    def is_array(self) -> bool:
        """Whether the jobs are an array."""
        return None not in self.jobs

    @property
    def keys(self) -> list[str]:
        """Keys of the jobs."""
        return [job.key for job in self.jobs.values()]

    def array(self, numbers: Sequence[int | None], limit: int | None) -> str:
        """Return the value of `--array` for some of the jobs."""
        return ",".join(map(str, numbers)) + (f"%{limit}" if limit else "")


def make_batches(graph: Graph) -> list[Batch]:
    """Put the folds of each training into an array, and every other job into a script of its own, in a valid order."""
    grouped: dict[str, dict[int | None, Job]] = {}
    for job in graph:
        if job.fold and job.fold.fold.isdecimal():
            grouped.setdefault(slug(job.key.rpartition("/")[0]), {})[int(job.fold.fold)] = job
        else:
            grouped[job.slug] = {None: job}
    return [Batch(stem, dict(sorted(jobs.items(), key=lambda item: item[0] or 0))) for stem, jobs in grouped.items()]


def name_prefix(experiment: Experiment) -> str:
    """Return the start of the names of the experiment's jobs in the queue, which no other experiment has."""
    return f"{experiment.name}-{hashlib.sha256(str(experiment.folder).encode()).hexdigest()[:6]}."


def write_scripts(graph: Graph) -> list[Batch]:
    """Write the scripts into the folder `slurm` of the experiment, and return their jobs.

    They are the same for the same experiment, whatever is done of it.

    Raises:
        UserError: if a line of the site sets what the scripts set, or Slurm cannot write logs to the folder.
    """
    experiment = graph.experiment
    _check(experiment)
    batches = make_batches(graph)
    template = files(__package__).joinpath("templates", "job.sbatch").read_text(encoding="utf-8")
    texts = {f"{batch.stem}.sbatch": _script(template, experiment, batch) for batch in batches}
    texts["submit.sh"] = _submit_script(experiment, batches)
    folder = experiment.folder / SCRIPTS
    (experiment.folder / LOGS).mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.sbatch"):
        if left.name not in texts:
            left.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            with whole_file(path) as partial:
                partial.write_bytes(text.encode())
    return batches


def _check(experiment: Experiment) -> None:
    for line in (*experiment.slurm.lines, *(experiment.slurm.cpu_lines or ())):
        if _OWN_LINE.match(line):
            instead = "write resources.hours instead" if re.match(r"--time\b|-t", line) else "leave it out"
            raise UserError(f"{experiment.file}: a line below slurm is {line!r}, which the scripts set: {instead}.")
    if experiment.slurm.signal_seconds >= experiment.resources.hours * 3600:
        raise UserError(
            f"{experiment.file}: slurm.signal_seconds is {experiment.slurm.signal_seconds}, which is not less than "
            f"resources.hours, {experiment.resources.hours}: trainings would be stopped at once."
        )
    for sign in "%\\\n":
        if sign in str(experiment.folder):
            raise UserError(
                f"{experiment.folder} has the sign {sign!r} in its path, which Slurm replaces in the names of logs: "
                "move the experiment to another folder."
            )


def _script(template: str, experiment: Experiment, batch: Batch) -> str:
    """Return the text of a script."""
    job, key, fold = next(iter(batch.jobs.values())), shlex.quote(batch.keys[0]), ""
    what, number, log = job.title, 'job="$SLURM_JOB_ID"', f"logs/{job.slug}.log"
    if batch.is_array:
        key, fold = f'"{job.key.rpartition("/")[0]}/fold_$SLURM_ARRAY_TASK_ID"', ".fold_%a"
        what = f"{job.title.rpartition(' ')[0]}, one job per fold"
        log = f"logs/{batch.stem}.fold_N.log, N the fold"
        number = (
            "# Its number in the array: by its own number, the last job of an array would mean all of them.\n"
            'job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'
        )
    setup = ["# Set-up lines of the experiment file.", *experiment.slurm.setup, ""] if experiment.slurm.setup else [""]
    parts = {
        "EXPERIMENT": experiment.name,
        "WHAT": what,
        "FILE": shlex.quote(experiment.file.name),
        "SCRIPT": batch.script,
        "OPTIONS": "\n".join(_options(experiment, batch, job, f"{LOGS}/{batch.stem}{fold}.log")),
        "BIN": shlex.quote(str(Path(sys.executable).parent)),
        "FOLDERS": "\n".join(f"export {name}={shlex.quote(str(nnunet_folder(name)))}" for name in FOLDERS),
        "SETUP": "\n".join(setup),
        "JOB": number,
        "LOG": log,
        "EXPERIMENT_FILE": shlex.quote(str(experiment.file)),
        "KEY": key,
    }
    return re.sub(r"@([A-Z_]+)@", lambda match: parts[match[1]], template)


def _options(experiment: Experiment, batch: Batch, job: Job, log: str) -> list[str]:
    """Return the lines of a script that are for Slurm."""
    slurm, resources = experiment.slurm, experiment.resources
    lines = [f"--job-name={name_prefix(experiment)}{batch.stem}"]
    if batch.is_array:
        limit = ", and after % stands how many run at a time" if slurm.array_limit else ""
        lines += [f"# A number is a fold{limit}.", f"--array={batch.array(list(batch.jobs), slurm.array_limit)}"]
    lines += [
        "# What Slurm and the lines below say; a job that starts again appends.",
        f"--output={log}",
        "--open-mode=append",
        f"--time={max(1, math.ceil(resources.hours * 60))}",
        f"--cpus-per-task={resources.cores}",
        f"--mem={resources.memory_gb}G",
        "# Back into the queue when the node fails, or a job of higher priority takes its place.",
        "--requeue",
        "# Out of the queue when a job that it waits for has failed.",
        "--kill-on-invalid-dep=yes",
    ]
    if job.fold:
        lines += [
            "# Seconds before the time limit at which the training is asked to stop after the running epoch.",
            f"--signal=B:USR1@{slurm.signal_seconds}",
        ]
    partition, site = slurm.partition, slurm.lines
    if not job.uses_gpu:
        partition = slurm.cpu_partition or partition
        without = tuple(line for line in site if not _GPU_LINE.match(line))
        site = without if slurm.cpu_lines is None else slurm.cpu_lines
    if partition or site:
        lines.append("# Lines of the experiment file.")
    lines += [*([f"--partition={partition}"] if partition else []), *site]
    return [line if line.startswith("#") else f"#SBATCH {line}" for line in lines]


def _submit_script(experiment: Experiment, batches: list[Batch]) -> str:
    """Return the text of the script that submits all others."""
    variables = {key: f"job_{number}" for number, batch in enumerate(batches, 1) for key in batch.keys}
    awaited = {key for batch in batches for job in batch.jobs.values() for key in job.after}
    lines = [
        "#!/bin/bash",
        f"# Experiment {experiment.name}: submits all jobs, each after those that it needs; what is done ends at once.",
        f"# `nnUNetv2_ext run {shlex.quote(experiment.file.name)} --engine slurm` leaves out what is done, waits or "
        "runs already.",
        "set -eu",
        'cd "$(dirname "$0")/.."',
        'if squeue --noheader --user="$(id -u)" --format=%j | grep --quiet --fixed-strings '
        f"{shlex.quote(name_prefix(experiment))}; then",
        '    echo "Jobs of this experiment are in the queue already." >&2',
        "    exit 1",
        "fi",
        "",
    ]
    for batch in batches:
        before = dict.fromkeys(variables[key] for job in batch.jobs.values() for key in job.after)
        numbers = "".join(f":${{{name}%%;*}}" for name in before)
        dependency = f' --dependency="afterok{numbers}"' if before else ""
        call = f"sbatch --parsable{dependency} {shlex.quote(batch.script)}"
        lines.append(f"{variables[batch.keys[0]]}=$({call})" if awaited.intersection(batch.keys) else call)
    return "\n".join([*lines, ""])
