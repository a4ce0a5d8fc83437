"""The scripts for Slurm, and what is submitted when: with a stand-in for Slurm's commands that keeps a queue."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from nnunetv2_ext.cli import build_parser
from nnunetv2_ext.commands import run as command
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments import slurm_queue
from nnunetv2_ext.experiments.jobs import Graph
from nnunetv2_ext.experiments.processes import find_program
from nnunetv2_ext.experiments.slurm import Submission, cancel_jobs, find_jobs, read_submitted, submit
from nnunetv2_ext.experiments.slurm_report import format_queue, format_submission
from nnunetv2_ext.experiments.slurm_scripts import write_scripts
from nnunetv2_ext.experiments.state import Attempts, write_attempts
from tests.experiments.bench import DATASET, NNUNETS, OURS, Bench

MODEL, LOWRES, CASCADE = (f"{OURS}__nnUNetPlans__{name}" for name in ("2d", "3d_lowres", "3d_cascade_fullres"))
ONE = {"configurations": ["2d"], "trainers": [OURS]}
SITE = {"partition": "gpu", "lines": ["--gres=gpu:a100:1", "--account=lab"], "setup": ["module load cuda"]}


@dataclass
class Queue:
    """The stand-in's queue and faults."""

    folder: Path

    @property
    def entries(self) -> list[dict[str, str]]:
        file = self.folder / "queue.json"
        return json.loads(file.read_text()) if file.is_file() else []

    def change(self, number: str, **values: str) -> None:
        """Change entries, or with state="" remove them."""
        changed = []
        for entry in self.entries:
            if number in (entry["job"], f"{entry['job']}_{entry['index']}"):
                entry.update(values)
            if entry["state"]:
                changed.append(entry)
        (self.folder / "queue.json").write_text(json.dumps(changed))

    def fault(self, name: str, times: int = 1) -> None:
        (self.folder / name).write_text(str(times))

    def calls(self, program: str) -> list[str]:
        lines = (self.folder / "calls.log").read_text().splitlines()
        return [line for line in lines if line.startswith(program)]


@pytest.fixture
def queue(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Queue:
    fake = Path(__file__).with_name("fake_slurm.py")
    for name in ("sbatch", "squeue", "scancel"):
        program = bench.root / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-S", "-E", str(fake), name])} "$@"\n')
        program.chmod(0o755)
    folder = bench.root / "slurm's"
    folder.mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setattr(slurm_queue, "PAUSE", 0.01)
    monkeypatch.setattr("nnunetv2_ext.experiments.slurm.PAUSE", 0.01)
    return Queue(folder)


def scripts(graph: Graph) -> dict[str, str]:
    write_scripts(graph)
    folder = graph.experiment.folder / "slurm"
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def kinds(submission: Submission) -> list[str]:
    return [key.partition("/")[0] for key in submission.submitted]


# Scripts


def test_scripts_are_the_same_for_the_same_experiment(bench: Bench) -> None:
    before = scripts(bench.graph(slurm=SITE))
    bench.preprocess("nnUNetPlans_2d")
    bench.finish(MODEL, [0])
    stamps = {path: path.stat().st_mtime_ns for path in (bench.root / "study" / "slurm").glob("*.sbatch")}
    assert scripts(bench.graph(slurm=SITE)) == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(before) == 3 + 1 + 6 + 2 + 3 + 1
    # Scripts of trainers that are gone would be submitted by a hand that means all of them.
    assert len(scripts(bench.graph(**ONE, slurm=SITE))) == 1 + 1 + 1 + 1 + 1


def test_scripts_pass_shellcheck(bench: Bench) -> None:
    scripts(bench.graph(slurm={**SITE, "array_limit": 2}, folds=[0, 1]))
    files = sorted((bench.root / "study" / "slurm").glob("*.s*"))
    assert len(files) == 16
    done = subprocess.run([find_program("shellcheck"), *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_training_asks_for_what_the_file_says(bench: Bench) -> None:
    resources = {"cores": 6, "memory_gb": 20, "hours": 1.5}
    slurm = {**SITE, "array_limit": 2, "signal_seconds": 120}
    texts = scripts(bench.graph(resources=resources, slurm=slurm))
    training = texts[f"train.{DATASET}.{MODEL}.sbatch"]
    options = re.findall(r"^#SBATCH (.*)$", training, re.MULTILINE)
    assert re.fullmatch(rf"--job-name=study-[0-9a-f]{{6}}\.train\.{DATASET}\.{MODEL}", options[0])
    assert options[1:] == [
        "--array=0,1%2",
        f"--output=slurm/logs/train.{DATASET}.{MODEL}.fold_%a.log",
        "--open-mode=append",
        "--time=90",
        "--cpus-per-task=6",
        "--mem=20G",
        "--requeue",
        "--kill-on-invalid-dep=yes",
        "--signal=B:USR1@120",
        "--partition=gpu",
        "--gres=gpu:a100:1",
        "--account=lab",
    ]
    assert "\nmodule load cuda\n" in training
    assert 'job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' in training
    assert "export TORCHINDUCTOR_CACHE_DIR=" in training
    assert f"export nnUNet_results={shlex.quote(str(bench.root / 'results'))}\n" in training
    assert f'"train/{DATASET}/{MODEL}/fold_$SLURM_ARRAY_TASK_ID" --engine slurm &' in training


def test_other_jobs_ask_for_no_gpu(bench: Bench) -> None:
    name = f"find_best.{DATASET}.{OURS}.sbatch"
    text = scripts(bench.graph(slurm=SITE))[name]
    assert "#SBATCH --partition=gpu\n#SBATCH --account=lab\n\n" in text
    assert "gres" not in text
    assert "--array" not in text
    cpu = {**SITE, "cpu_partition": "cpu", "cpu_lines": ["--qos=short"]}
    text = scripts(bench.graph(slurm=cpu))[name]
    assert "#SBATCH --partition=cpu\n#SBATCH --qos=short\n\n" in text
    assert "lab" not in text


def test_a_training_on_all_cases_is_no_array(bench: Bench) -> None:
    text = scripts(bench.graph(**ONE, folds=["all"], slurm=SITE))[f"train.{DATASET}.{MODEL}.fold_all.sbatch"]
    assert "--array" not in text
    assert 'job="$SLURM_JOB_ID"' in text
    assert "--signal=B:USR1@600" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slurm": {"lines": ["--time=10"]}}, "'--time=10', which the scripts set: write resources.hours instead"),
        ({"slurm": {"lines": ["-J x"]}}, "'-J x', which the scripts set: leave it out"),
        ({"slurm": {"cpu_lines": ["--array=0-3"]}}, "'--array=0-3', which the scripts set"),
        ({"resources": {"hours": 0.1}}, "signal_seconds is 600, which is not less than resources.hours, 0.1"),
    ],
)
def test_settings_that_break_the_scripts_are_refused(bench: Bench, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        write_scripts(bench.graph(**changes))


def test_a_folder_whose_name_slurm_replaces_is_refused(bench: Bench) -> None:
    moved = bench.root / "100%j"
    moved.mkdir()
    bench.write()
    with pytest.raises(UserError, match="has the sign '%' in its path"):
        write_scripts(_graph_in(bench, moved))


def _graph_in(bench: Bench, folder: Path) -> Graph:
    from nnunetv2_ext.experiments.experiment import read_experiment
    from nnunetv2_ext.experiments.graph import build_graph

    shutil.copy(bench.file, folder / "study.yaml")
    return build_graph(read_experiment(folder / "study.yaml"))


def test_the_script_that_submits_all_does_so_once(bench: Bench, queue: Queue) -> None:
    write_scripts(bench.graph(configurations=["3d_lowres", "3d_cascade_fullres"], trainers=[OURS], slurm=SITE))
    path = bench.root / "study" / "slurm" / "submit.sh"
    subprocess.run(["bash", str(path)], cwd="/", check=True, capture_output=True)
    # 2 data folders, 1 split, 2 x 2 folds, 1 search; one trainer is compared with none.
    assert len(queue.entries) == 8
    lowres = next(entry["job"] for entry in queue.entries if LOWRES in entry["name"])
    assert all(f"afterok:{lowres}(" in entry["after"] for entry in queue.entries if CASCADE in entry["name"])
    again = subprocess.run(["bash", str(path)], cwd="/", check=False, capture_output=True, text=True)
    assert again.returncode == 1
    assert "in the queue already" in again.stderr
    # The command takes them for its own.
    assert len(find_jobs(bench.graph(configurations=["3d_lowres", "3d_cascade_fullres"], trainers=[OURS]))) == 8


# Submitting


def test_everything_is_submitted_once_and_in_order(bench: Bench, queue: Queue) -> None:
    graph = bench.graph(slurm={**SITE, "array_limit": 1})
    first = submit(graph)
    assert kinds(first) == ["preprocess"] * 3 + ["train"] * 12 + ["find_best"] * 2 + ["compare"] * 3
    for entry in queue.entries:
        numbers = set(re.findall(r":(\d+)", entry["after"]))
        assert all(int(number) < int(entry["job"]) for number in numbers)
    cascade = first.submitted[f"train/{DATASET}/{CASCADE}/fold_0"].partition("_")[0]
    after = next(entry["after"] for entry in queue.entries if entry["job"] == cascade)
    for fold in (0, 1):
        assert f"afterok:{first.submitted[f'train/{DATASET}/{LOWRES}/fold_{fold}']}(" in after
    assert {entry["limit"] for entry in queue.entries if "train" in entry["name"]} == {"1"}

    before = queue.entries
    again = submit(bench.graph(slurm={**SITE, "array_limit": 1}))
    assert (again.submitted, len(again.queued)) == ({}, 20)
    assert queue.entries == before
    assert read_submitted(graph.experiment.folder) == first.submitted


def test_what_is_done_is_left_out(bench: Bench, queue: Queue) -> None:
    bench.preprocess("nnUNetPlans_2d")
    bench.finish(MODEL, [0])
    result = submit(bench.graph(**ONE, slurm=SITE))
    assert result.submitted == {f"train/{DATASET}/{MODEL}/fold_1": "1_1", f"find_best/{DATASET}/{OURS}": "2"}
    assert [entry["after"] for entry in queue.entries] == ["(null)", "afterok:1_1(unfulfilled)"]


def test_a_trainer_that_is_added_brings_its_jobs_alone(bench: Bench, queue: Queue) -> None:
    bench.preprocess("nnUNetPlans_2d")
    submit(bench.graph(**ONE, slurm=SITE))
    result = submit(bench.graph(configurations=["2d"], trainers=[OURS, NNUNETS], slurm=SITE))
    assert kinds(result) == ["train", "train", "find_best", "compare"]
    assert len(result.queued) == 3


@pytest.mark.parametrize("submitted", [0, 4])
def test_a_submission_that_was_killed_is_continued(bench: Bench, queue: Queue, submitted: int) -> None:
    bench.write(slurm=SITE)
    if submitted:
        queue.fault("spare", submitted)
    queue.fault("kill")
    words = [sys.executable, "-c", _SUBMIT, str(bench.file)]
    assert subprocess.run(words, check=False).returncode == -9
    assert len(queue.calls("sbatch")) == submitted + 1
    result = submit(bench.graph(slurm=SITE))
    assert len(queue.entries) == 20 == len(result.submitted) + len(result.queued)
    assert len({(entry["name"], entry["index"]) for entry in queue.entries}) == 20
    numbers = read_submitted(bench.root / "study")
    found = {key: entry.id for key, entry in find_jobs(bench.graph(slurm=SITE)).items()}
    assert numbers == found
    for entry in queue.entries:
        if "compare" in entry["name"]:
            assert entry["after"].count("afterok") == 4


_SUBMIT = """
import sys
from nnunetv2_ext.experiments.experiment import read_experiment
from nnunetv2_ext.experiments.graph import build_graph
from nnunetv2_ext.experiments.slurm import submit
submit(build_graph(read_experiment(sys.argv[1])))
"""


def test_what_waits_for_a_failed_job_is_submitted_anew(bench: Bench, queue: Queue) -> None:
    """Slurm would remove it when the rest of the array ends, though the fold that failed is submitted again."""
    bench.preprocess("nnUNetPlans_2d")
    first = submit(bench.graph(**ONE, slurm=SITE))
    queue.change("1_0", state="RUNNING", reason="None")
    queue.change("1_1", state="")
    result = submit(bench.graph(**ONE, slurm=SITE))
    assert result.submitted == {f"train/{DATASET}/{MODEL}/fold_1": "3_1", f"find_best/{DATASET}/{OURS}": "4"}
    assert first.submitted[f"find_best/{DATASET}/{OURS}"] == "2"
    assert [entry["after"] for entry in queue.entries if "find_best" in entry["name"]] == [
        "afterok:1_0(unfulfilled),afterok:3_1(unfulfilled)"
    ]
    assert {entry["job"] for entry in queue.entries} == {"1", "3", "4"}


def test_given_up_jobs_wait_for_retry(bench: Bench, queue: Queue) -> None:
    bench.preprocess("nnUNetPlans_2d")
    graph = bench.graph(**ONE, slurm=SITE)
    failed = graph.jobs[f"train/{DATASET}/{MODEL}/fold_1"]
    write_attempts(failed.attempts, Attempts(failures=3, why="exit code 1"))
    result = submit(graph)
    assert kinds(result) == ["train"]
    assert (result.given_up, result.blocked) == ([failed.key], [f"find_best/{DATASET}/{OURS}"])
    assert "Given up until --retry" in format_submission(graph, result)
    result = submit(bench.graph(**ONE, slurm=SITE), retry=True)
    assert kinds(result) == ["train", "find_best"]
    assert not failed.attempts.exists()


def test_a_controller_that_is_away_is_asked_again(
    bench: Bench, queue: Queue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = bench.graph(**ONE, slurm=SITE)
    queue.fault("away", 3)
    assert len(submit(graph).submitted) == 4
    assert capsys.readouterr().err.count("Slurm's controller does not answer") == 1
    monkeypatch.setattr(slurm_queue, "PATIENCE", 0.02)
    queue.fault("away", 100)
    with pytest.raises(UserError, match=r"Running jobs go on\."):
        submit(graph)
    assert "Slurm's queue is not known" in format_queue(graph)


def test_an_answer_that_is_lost_submits_nothing_twice(bench: Bench, queue: Queue) -> None:
    queue.fault("lost")
    result = submit(bench.graph(**ONE, slurm=SITE))
    assert len(result.submitted) == 4 == len(queue.entries)
    assert len(queue.calls("sbatch")) == 3


def test_a_script_that_is_refused_is_named(bench: Bench, queue: Queue) -> None:
    with pytest.raises(UserError, match=r"invalid partition.*preprocess.*correct what .*study\.yaml says below"):
        submit(bench.graph(**ONE, slurm={"partition": "nowhere"}))


def test_without_slurm_there_is_a_sentence(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bench.root))
    with pytest.raises(UserError, match="There is no command squeue here"):
        submit(bench.graph(**ONE, slurm=SITE))


# Looking and cancelling


def test_status_says_what_waits_and_runs(bench: Bench, queue: Queue) -> None:
    bench.preprocess("nnUNetPlans_2d")
    submit(bench.graph(**ONE, slurm=SITE))
    queue.change("1_0", state="RUNNING", reason="None")
    text = format_queue(bench.graph(**ONE, slurm=SITE))
    assert f"running on gpu01, 1:02:03 of 2-00:00:00\n    1_0  train {DATASET} {MODEL} fold 0\n" in text
    assert f"pending (Priority)\n    1_1  train {DATASET} {MODEL} fold 1\n" in text
    assert f"waits for other jobs\n    2  find_best {DATASET} {OURS}" in text
    queue.change("1_1", state="")
    queue.change("2", state="")
    text = format_queue(bench.graph(**ONE, slurm=SITE))
    lost = text.partition("Left the queue without being done")[2]
    assert f"1_1  train {DATASET} {MODEL} fold 1" in lost
    assert f"2  find_best {DATASET} {OURS}" in lost


def test_cancel_takes_this_experiment_alone(bench: Bench, queue: Queue) -> None:
    graph = bench.graph(**ONE, slurm=SITE)
    other = bench.root / "other"
    other.mkdir()
    submit(graph)
    foreign = submit(_graph_in(bench, other))
    assert {entry.name for entry in cancel_jobs(graph)} != set()
    assert {entry["job"] for entry in queue.entries} == {
        number.partition("_")[0] for number in foreign.submitted.values()
    }
    assert cancel_jobs(graph) == []


def test_the_command_writes_submits_shows_and_cancels(
    bench: Bench, queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.write(**ONE, slurm=SITE, training={"device": "cuda"})

    def run(*options: str) -> str:
        command.run(build_parser().parse_args(["run", str(bench.file), *options]))
        return capsys.readouterr().out

    assert "submit.sh submits them all" in run("--engine", "slurm", "--write")
    assert queue.entries == []
    assert "submitted 4 jobs; none in the queue before" in run("--engine", "slurm")
    assert "submitted no jobs; 4 in the queue before" in run("--engine", "slurm")
    assert "In Slurm's queue" in run("--status")
    assert "cancelled 4 jobs, of which none had started" in run("--cancel")
    assert "no job of this experiment is in the queue" in run("--cancel")
    bench.write(**ONE, training={"device": "cuda"})
    assert "No line below `slurm` asks for a GPU" in run("--engine", "slurm")
