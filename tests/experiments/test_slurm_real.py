"""An experiment on a real Slurm of one node: order, time limit, requeueing, preemption, failures, the controller away.

The stand-ins for nnU-Net's commands write down what ran when.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.experiments.bench import (
    DATASET,
    EPOCHS,
    NNUNETS,
    OURS,
    Bench,
    check_every_epoch_once,
    files_of_an_experiment,
    kill_what_is_left,
    make_bench,
    read_events,
    send_signal,
    wait_for,
)
from tests.experiments.real_slurm import RealSlurm, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.skipif(bool(why_not()), reason=f"needs a Slurm that the tests can start: {why_not()}"),
]

MODEL = f"{OURS}__nnUNetPlans__2d"
TRAIN = f"train.{DATASET}.{MODEL}"


@pytest.fixture(scope="module")
def slurm() -> Iterator[RealSlurm]:
    # A socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    slurm = RealSlurm(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Cluster:
    """The command as a user starts it, and the queue."""

    def __init__(self, bench: Bench, slurm: RealSlurm) -> None:
        self.bench = bench
        self.slurm = slurm

    def write(self, **changes: object) -> None:
        content: dict[str, object] = {
            "configurations": ["2d"],
            "trainers": [OURS],
            "resources": {"cores": 1, "memory_gb": 1, "hours": 1},
            **changes,
        }
        site = {"lines": ["--gres=gpu:1"], "setup": [f'export PATH="{self.bench.root}/bin:$PATH"']}
        content["slurm"] = {**site, **content.get("slurm", {})}  # type: ignore[dict-item]
        self.bench.write(**content)

    def run(self, *options: str, expect: int = 0) -> str:
        command = [sys.executable, "-m", "nnunetv2_ext.cli", "run", str(self.bench.file), "--engine", "slurm", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == expect, done.stdout + done.stderr + self.slurm.log()
        return done.stdout + done.stderr

    def queue(self, form: str = "%F_%K %T %r %j") -> str:
        return self.slurm.ask("squeue", "--noheader", "--array", f"--format={form}")

    def wait_until_empty(self, seconds: float = 150) -> None:
        deadline = time.monotonic() + seconds
        while self.queue():
            assert time.monotonic() < deadline, f"{self.queue()}\n{self.logs()}"
            time.sleep(0.3)

    def logs(self) -> str:
        folder = self.bench.root / "study"
        files = [*sorted(folder.glob("slurm/logs/*")), folder / "journal.log"]
        return "\n".join(f"== {file}\n{file.read_text()}" for file in files if file.is_file())

    def number(self, fold: int) -> str:
        """Return the number in the queue of a fold's training."""
        lines = self.queue("%F_%K %j").splitlines()
        return next(line.split()[0] for line in lines if TRAIN in line and line.split()[0].endswith(f"_{fold}"))


@pytest.fixture
def cluster(bench: Bench, slurm: RealSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("SLURM_CONF", str(slurm.file))
    monkeypatch.setenv("FAKE_EPOCH_SECONDS", "0.5")
    cluster = Cluster(bench, slurm)
    yield cluster
    slurm.ask("scancel", f"--user={os.geteuid()}")
    cluster.wait_until_empty()
    kill_what_is_left(bench)


def moments(bench: Bench, what: str, part: str) -> list[float]:
    return [event.time for event in read_events(bench) if event.what == what and part in event.rest]


def test_everything_runs_in_order_and_a_finished_experiment_submits_nothing(cluster: Cluster) -> None:
    cluster.write(
        configurations=["3d_lowres", "3d_cascade_fullres"], trainers=[NNUNETS, OURS], slurm={"array_limit": 2}
    )
    first = cluster.run()
    assert "submitted 14 jobs; none in the queue before" in first
    again = cluster.run()
    assert "submitted no jobs; 1" in again
    assert "waits for other jobs" in cluster.run("--status")
    cluster.wait_until_empty()
    check_every_epoch_once(cluster.bench, trainings=8)
    for trainer in (NNUNETS, OURS):
        lowres = moments(cluster.bench, "end", f"{trainer}__nnUNetPlans__3d_lowres")
        cascade = moments(cluster.bench, "start", f"{trainer}__nnUNetPlans__3d_cascade_fullres")
        assert len(lowres) == len(cascade) == 2
        assert max(lowres) < min(cascade)
    preprocessed = moments(cluster.bench, "preprocess", "")
    assert len(preprocessed) == 2
    assert max(preprocessed) < min(moments(cluster.bench, "start", "lowres"))
    assert max(moments(cluster.bench, "end", "")) < min(moments(cluster.bench, "find_best", ""))
    assert "submitted no jobs; none in the queue before" in cluster.run()
    assert "Slurm's queue has no job of this experiment" in cluster.run("--status")


def test_a_time_limit_puts_the_training_back_and_no_epoch_is_lost(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Slurm looks at time limits, of whole minutes, every half a minute.
    monkeypatch.setenv("FAKE_EPOCH_SECONDS", "12")
    cluster.write(
        folds=[0],
        resources={"cores": 1, "memory_gb": 1, "hours": 1 / 60},
        slurm={"signal_seconds": 50},
        find_best={"ensembling": False},
    )
    cluster.run()
    cluster.wait_until_empty(240)
    check_every_epoch_once(cluster.bench, trainings=1)
    starts = [event.rest for event in read_events(cluster.bench) if event.what == "start"]
    assert len(starts) >= 2
    assert len(moments(cluster.bench, "stop", MODEL)) == len(starts) - 1
    # What waits for it was not started or removed by the stop.
    assert max(moments(cluster.bench, "end", MODEL)) < min(moments(cluster.bench, "find_best", ""))


def test_requeued_preempted_and_killed_trainings_go_on(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_EPOCH_SECONDS", "3")
    bench = cluster.bench
    cluster.write(slurm={"partition": "low"})
    cluster.run()
    for fold in (0, 1):
        wait_for(bench, "epoch", f"{MODEL}/fold_{fold} 0")
    # One is put back by hand; of the other the training alone is killed, and its job starts it again.
    cluster.slurm.ask("scontrol", "requeue", cluster.number(0))
    send_signal(bench, wait_for(bench, "start", f"{MODEL}/fold_1").pid, signal.SIGKILL)
    wait_for(bench, "stop", f"{MODEL}/fold_0")
    # A job of higher priority takes the whole node.
    before, mark = len(read_events(bench)), bench.root / "urgent"
    urgent = bench.root / "urgent.sbatch"
    urgent.write_text(f"#!/bin/bash\ntouch {shlex.quote(str(mark))}\nsleep 1\n")
    options = ("--partition=high", "--cpus-per-task=2", "--output=/dev/null", "--chdir=/tmp")
    cluster.slurm.ask("sbatch", *options, str(urgent))
    wait_for(bench, "stop", f"{MODEL}/fold_1", after=before)
    cluster.wait_until_empty()
    assert mark.is_file()
    check_every_epoch_once(bench, trainings=2)
    assert "preempt" in cluster.slurm.log()
    assert moments(bench, "find_best", "")


def test_a_failing_fold_stops_what_needs_it_and_nothing_else(cluster: Cluster) -> None:
    fault = cluster.bench.root / "faults" / "fail" / f"{MODEL}.fold_1"
    fault.parent.mkdir(parents=True)
    fault.touch()
    cluster.write()
    cluster.run()
    cluster.wait_until_empty()
    assert moments(cluster.bench, "end", f"{MODEL}/fold_0")
    assert len(moments(cluster.bench, "start", f"{MODEL}/fold_1")) == 3
    assert not moments(cluster.bench, "find_best", "")
    status = cluster.run("--status")
    assert f"Failed: train {DATASET} {MODEL} fold_1" in status
    assert f"look  tail -n 30 '{cluster.bench.root}" in status.replace("'\"'\"'", "'")
    assert "Left the queue without being done" in status

    fault.unlink()
    again = cluster.run()
    assert f"Given up until --retry: train {DATASET} {MODEL} fold_1" in again
    assert f"Not submitted, since it needs one of these: find_best {DATASET}" in again
    assert "submitted 2 jobs" in cluster.run("--retry")
    cluster.wait_until_empty()
    assert moments(cluster.bench, "find_best", "")
    check_every_epoch_once(cluster.bench, trainings=2)


def test_a_controller_that_is_away_harms_no_training(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_EPOCH_SECONDS", "4")
    cluster.write()
    cluster.run()
    for fold in (0, 1):
        wait_for(cluster.bench, "epoch", f"{MODEL}/fold_{fold} 0")
    cluster.slurm.stop_controller()
    away = time.monotonic()
    try:
        # One stops meanwhile, and asks to be put back; the other ends.
        send_signal(cluster.bench, wait_for(cluster.bench, "start", f"{MODEL}/fold_0").pid, signal.SIGUSR1)
        command = [sys.executable, "-m", "nnunetv2_ext.cli", "run", str(cluster.bench.file), "--engine", "slurm"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as waiting:
            wait_for(cluster.bench, "end", f"{MODEL}/fold_1")
            time.sleep(max(0, 40 - (time.monotonic() - away)))
            cluster.slurm.start_controller()
            output = waiting.communicate(timeout=120)[0]
    except BaseException:
        cluster.slurm.start_controller()
        raise
    assert "Slurm's controller does not answer" in output
    assert "submitted no jobs" in output
    cluster.wait_until_empty()
    assert moments(cluster.bench, "find_best", "")
    check_every_epoch_once(cluster.bench, trainings=2)


def test_cancel_ends_this_experiment_alone_and_it_can_go_on(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_EPOCH_SECONDS", "4")
    cluster.write()
    foreign = cluster.slurm.ask("sbatch", "--parsable", "--output=/dev/null", "--chdir=/tmp", "--wrap", "sleep 60")
    cluster.run()
    wait_for(cluster.bench, "epoch", f"{MODEL}/fold_0 0")
    assert "cancelled 3 jobs" in cluster.run("--cancel")
    wait_for(cluster.bench, "stop", f"{MODEL}/fold_0")
    deadline = time.monotonic() + 30
    while "study" in cluster.queue():
        assert time.monotonic() < deadline, cluster.queue()
        time.sleep(0.2)
    assert foreign.strip() in cluster.queue("%F")
    cluster.slurm.ask("scancel", foreign.strip())
    assert "no job of this experiment" in cluster.run("--cancel")
    assert "submitted 3 jobs" in cluster.run()
    cluster.wait_until_empty()
    check_every_epoch_once(cluster.bench, trainings=2)


def test_signals_at_the_start_and_in_validation_put_the_training_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_START_SECONDS", "5")
    monkeypatch.setenv("FAKE_VALIDATION_SECONDS", "8")
    bench = cluster.bench
    cluster.write(find_best=False)
    cluster.run()
    # SIGUSR1 comes before the time limit, SIGTERM before a job is cancelled or preempted.
    for fold, number in ((0, "USR1"), (1, "TERM")):
        wait_for(bench, "start", f"{MODEL}/fold_{fold}")
        cluster.slurm.ask("scancel", "--batch", f"--signal={number}", cluster.number(fold))
    wait_for(bench, "validation", f"{MODEL}/fold_0")
    cluster.slurm.ask("scancel", "--batch", "--signal=TERM", cluster.number(0))
    wait_for(bench, "validation", f"{MODEL}/fold_1")
    cluster.slurm.ask("scancel", "--batch", "--signal=USR1", cluster.number(1))
    cluster.wait_until_empty(240)
    check_every_epoch_once(bench, trainings=2)
    assert len(moments(bench, "start", MODEL)) == 6
    assert len(moments(bench, "end", MODEL)) == 2
    journal = (bench.root / "study" / "journal.log").read_text()
    assert journal.count("was stopped before an epoch was complete") == 2
    assert journal.count(f"was stopped after epoch {EPOCHS - 1}") == 2


def test_a_killed_data_loader_and_a_full_disk_are_tried_again_in_the_same_job(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_EPOCH_SECONDS", "2")
    bench = cluster.bench
    bench.break_("disk_full", f"{MODEL}.fold_1", times=2)
    cluster.write()
    cluster.run()
    training = wait_for(bench, "epoch", f"{MODEL}/fold_0 0").pid
    (loader,) = Path(f"/proc/{training}/task/{training}/children").read_text().split()
    send_signal(bench, int(loader), signal.SIGKILL)
    cluster.wait_until_empty()
    check_every_epoch_once(bench, trainings=2)
    assert len(moments(bench, "start", f"{MODEL}/fold_0")) == 2
    assert len(moments(bench, "start", f"{MODEL}/fold_1")) == 3
    logs = {fold: (bench.root / "study" / "logs" / f"{TRAIN}.fold_{fold}.log").read_text() for fold in (0, 1)}
    assert "background workers are no longer alive" in logs[0]
    assert "No space left on device" in logs[1]
    assert moments(bench, "find_best", "")


def test_a_killed_wrapper_ends_its_job_and_the_next_run_goes_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_EPOCH_SECONDS", "3")
    bench = cluster.bench
    cluster.write(folds=[0])
    cluster.run()
    training = wait_for(bench, "epoch", f"{MODEL}/fold_0 0").pid
    once = int(Path(f"/proc/{training}/stat").read_text().rpartition(")")[2].split()[1])
    assert b"nnunetv2_ext.experiments.once" in Path(f"/proc/{once}/cmdline").read_bytes()
    send_signal(bench, once, signal.SIGKILL)
    # At once, whether or not Slurm has ended the training, and what waited for it is gone.
    deadline = time.monotonic() + 60
    while TRAIN in cluster.queue():
        assert time.monotonic() < deadline, cluster.queue()
        time.sleep(0.2)
    assert "submitted 2 jobs" in cluster.run()
    cluster.wait_until_empty()
    check_every_epoch_once(bench, trainings=1)
    assert moments(bench, "end", f"{MODEL}/fold_0")
    assert moments(bench, "find_best", "")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Snakemake needs Python 3.11")
def test_the_files_are_those_of_a_workstation(cluster: Cluster, tmp_path: Path) -> None:
    cascade = {"configurations": ["3d_lowres", "3d_cascade_fullres"], "trainers": [NNUNETS, OURS]}
    cluster.write(**cascade)
    cluster.run()
    cluster.wait_until_empty()
    check_every_epoch_once(cluster.bench, trainings=8)
    on_slurm = files_of_an_experiment(cluster.bench)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("FAKE_EPOCH_SECONDS", "0.5")
        other = make_bench(tmp_path / "workstation", monkeypatch)
        other.write(**cascade)
        command = [sys.executable, "-m", "nnunetv2_ext.cli", "run", str(other.file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        check_every_epoch_once(other, trainings=8)
        assert files_of_an_experiment(other) == on_slurm
