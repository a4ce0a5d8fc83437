"""Write the `sbatch` files of an experiment: plain scripts, which can be read and submitted without this package."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments.experiment import Experiment
from nnunetv2_ext.experiments.folders import FOLDERS, nnunet_folder
from nnunetv2_ext.experiments.jobs import TRAIN, Graph, Job, slug
from nnunetv2_ext.io.files import whole_file

__all__ = ["SCRIPTS", "Batch", "make_batches", "name_prefix", "write_scripts"]

# Folder of the scripts, in the experiment's.
SCRIPTS = "slurm"
_GPU_LINE = re.compile(r"--gres=(.*,)?gpu\b|--gpus\b|--gpus-per|--gpu-|-G\b|--(cpus|mem)-per-gpu\b")
# What the scripts set themselves, and what to do instead of setting it in a line of the site.
_OWN_LINE = re.compile(
    r"--(job-name|output|error|open-mode|array|dependency|signal|requeue|no-requeue|chdir|time|kill-on-invalid-dep)\b"
    r"|-[Joeadt](?![\w-]*=)|-D\b"
)
_SCRIPT_BODY = """\
# The job goes back into the queue after a stop at the time limit. One that was cancelled, or that Slurm puts back
# itself, is not in the state RUNNING any more. A controller that does not answer is asked again for ten minutes.
requeue() {
    for _ in {1..60}; do
        if state=$(squeue --noheader --jobs="$job" --format=%T); then
            [ "$state" = RUNNING ] || return
            scontrol requeue "$job" && return
        fi
        sleep 10
    done
    echo "Slurm did not put job $job back into the queue: run the experiment again." >&2
}

pid=
signalled=
trap 'signalled=yes; [ -z "$pid" ] || kill -USR1 "$pid"' USR1
# Slurm sends SIGTERM to all processes of a job, the training too: this shell only has to wait for it.
trap 'signalled=yes' TERM
"""
_SCRIPT_END = """\
pid=$!
# A signal ends `wait` before the process has ended.
while :; do
    signalled=
    wait "$pid"
    code=$?
    [ -n "$signalled" ] || break
done
"""


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
        return None not in self.jobs

    @property
    def first(self) -> Job:
        return next(iter(self.jobs.values()))

    def array(self, numbers: Sequence[int | None], limit: int | None) -> str:
        """Return the value of `--array` for some of the jobs."""
        return ",".join(map(str, numbers)) + (f"%{limit}" if limit else "")


def make_batches(graph: Graph) -> list[Batch]:
    """Put the folds of each training into an array, and every other job into a script of its own, in a valid order."""
    grouped: dict[str, dict[int | None, Job]] = {}
    for job in graph:
        if job.kind == TRAIN and job.fold and job.fold.fold.isdecimal():
            grouped.setdefault(slug(job.key.rpartition("/")[0]), {})[int(job.fold.fold)] = job
        else:
            grouped[job.slug] = {None: job}
    return [Batch(stem, dict(sorted(jobs.items(), key=lambda item: item[0] or 0))) for stem, jobs in grouped.items()]


def name_prefix(experiment: Experiment) -> str:
    """Return the start of the names of the experiment's jobs in the queue, which no other experiment has."""
    return f"{experiment.name}-{hashlib.sha256(str(experiment.folder).encode()).hexdigest()[:6]}."


def write_scripts(graph: Graph) -> list[Batch]:
    """Write the scripts into the folder `slurm` of the experiment, and return their jobs.

    Raises:
        UserError: if a line of the site sets what the scripts set, or Slurm cannot write logs to the folder.
    """
    experiment = graph.experiment
    _check(experiment)
    batches = make_batches(graph)
    texts = {f"{batch.stem}.sbatch": _script(experiment, batch) for batch in batches}
    texts["submit.sh"] = _submit_script(experiment, batches)
    folder = experiment.folder / SCRIPTS
    (experiment.folder / "logs").mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
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
    for sign in "%\\\n":
        if sign in str(experiment.folder):
            raise UserError(
                f"{experiment.folder} has the sign {sign!r} in its path, which Slurm replaces in the names of logs: "
                "move the experiment to another folder."
            )


def _script(experiment: Experiment, batch: Batch) -> str:
    """Return the text of a script."""
    slurm, resources, job = experiment.slurm, experiment.resources, batch.first
    log, key = f"logs/{batch.stem}.log", shlex.quote(job.key)
    what = job.title
    if batch.is_array:
        log = f"logs/{batch.stem}.fold_%a.log"
        key = f'"{job.key.rpartition("/")[0]}/fold_$SLURM_ARRAY_TASK_ID"'
        what = f"{job.title.rpartition(' ')[0]}, one job per fold"
    options = [f"--job-name={name_prefix(experiment)}{batch.stem}", f"--output={log}", "--open-mode=append"]
    if batch.is_array:
        options.append(f"--array={batch.array(list(batch.jobs), slurm.array_limit)}")
    options += [
        f"--time={max(1, math.ceil(resources.hours * 60))}",
        f"--cpus-per-task={resources.cores}",
        f"--mem={resources.memory_gb}G",
        "--requeue",
        "--kill-on-invalid-dep=yes",
    ]
    if job.kind == TRAIN:
        options.append(f"--signal=B:USR1@{slurm.signal_seconds}")
    identifier = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' if batch.is_array else '"$SLURM_JOB_ID"'
    return "\n".join(
        [
            "#!/bin/bash",
            f"# {what}",
            *_header(experiment),
            f"#   sbatch {shlex.quote(batch.script)}",
            *(f"#SBATCH {option}" for option in options),
            *(f"#SBATCH {line}" for line in _site_lines(experiment, job)),
            "",
            "# The environment that wrote this file, and nnU-Net's folders.",
            f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"',
            *(f"export {name}={shlex.quote(str(nnunet_folder(name)))}" for name in FOLDERS),
            "# Compiled networks stay on the node, whose GPU and CPU they are for.",
            'node_cache="/tmp/torchinductor_$(id -u)_$(hostname -s)"',
            'export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$node_cache}"',
            *(["# Set-up lines of the site.", *slurm.setup] if slurm.setup else []),
            "",
            "# By the number of its array: by its own, the last job of an array would put back all of them.",
            f"job={identifier}",
            _SCRIPT_BODY,
            "# Runs the command unless it is done or runs elsewhere, and goes on from the newest checkpoint.",
            f"python3 -m nnunetv2_ext.experiments.once {shlex.quote(str(experiment.file))} {key} --engine slurm &",
            _SCRIPT_END,
            *_ending(),
            "",
        ]
    )


def _ending() -> list[str]:
    return [
        "# 75: stopped, with everything saved.",
        'if [ "$code" -eq 75 ]; then',
        "    requeue",
        "fi",
        'exit "$code"',
    ]


def _header(experiment: Experiment) -> list[str]:
    return [
        f"# of the experiment {experiment.name}, written by `nnUNetv2_ext run {experiment.file.name} --engine slurm`.",
        "# Submit it from the experiment's folder, which is the one above this file's:",
    ]


def _site_lines(experiment: Experiment, job: Job) -> list[str]:
    """Return the site's lines for a job; jobs that train nothing need no GPU."""
    slurm = experiment.slurm
    partition, lines = slurm.partition, slurm.lines
    if job.kind != TRAIN:
        partition = slurm.cpu_partition or partition
        lines = slurm.cpu_lines
        if lines is None:
            lines = tuple(line for line in slurm.lines if not _GPU_LINE.match(line))
    return [*([f"--partition={partition}"] if partition else []), *lines]


def _submit_script(experiment: Experiment, batches: list[Batch]) -> str:
    """Return the text of the script that submits all others."""
    variables = {key: f"job_{number}" for number, batch in enumerate(batches, 1) for key in _keys(batch)}
    awaited = {key for batch in batches for job in batch.jobs.values() for key in job.after}
    prefix = name_prefix(experiment)
    lines = [
        "#!/bin/bash",
        f"# Submits all jobs of the experiment {experiment.name}, each after those that it needs. Jobs whose work is",
        f"# done end at once. `nnUNetv2_ext run {experiment.file.name} --engine slurm` leaves those out, and what waits or",
        "# runs already.",
        "set -eu",
        'cd "$(dirname "$0")/.."',
        'if squeue --noheader --user="$(id -u)" --format=%j | grep --quiet --fixed-strings '
        f"{shlex.quote(prefix)}; then",
        '    echo "Jobs of this experiment are in the queue already." >&2',
        "    exit 1",
        "fi",
        "",
    ]
    for batch in batches:
        before = dict.fromkeys(variables[key] for job in batch.jobs.values() for key in job.after)
        options = "".join(f":${{{name}%%;*}}" for name in before)
        dependency = f' --dependency="afterok{options}"' if before else ""
        used = any(
            batch_key in job.after for other in batches for job in other.jobs.values() for batch_key in _keys(batch)
        )
        call = f"sbatch --parsable{dependency} {shlex.quote(batch.script)}"
        lines.append(f"{variables[batch.first.key]}=$({call})" if awaited.intersection(_keys(batch)) else call)
    return "\n".join([*lines, ""])


def _keys(batch: Batch) -> list[str]:
    return [job.key for job in batch.jobs.values()]
