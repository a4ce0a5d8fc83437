"""An experiment on a real Slurm of one node: order, time limit, requeueing, preemption, failures, the controller away.

The stand-ins for nnU-Net's commands write down what ran when.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.experiments.bench import DATASET, NNUNETS, OURS, Bench, check_every_epoch_once, read_events, wait_for
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
        assert done.returncode == expect, done.stdout + done.stderr
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
