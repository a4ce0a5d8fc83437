"""One job under `once`: stopped, killed, failing, and beside others. Each log shows every epoch once."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunetv2_ext.experiments.jobs import Job
from nnunetv2_ext.experiments.locks import GPU_LOCKS_VARIABLE, take_gpus, take_lock
from nnunetv2_ext.experiments.once import STOPPED, command_now, run_once
from nnunetv2_ext.experiments.state import read_attempts
from tests.experiments.bench import (
    DATASET,
    NNUNETS,
    OURS,
    Bench,
    check_every_epoch_once,
    kill_what_is_left,
    read_events,
    send_signal,
    wait_for,
    wait_for_text,
)

MODEL = f"{OURS}__nnUNetPlans__2d"
NAME, KEY = f"{MODEL}/fold_0", f"train/{DATASET}/{MODEL}/fold_0"


class Runner:
    """Starts `once` as an engine does."""

    def __init__(self, bench: Bench, engine: str) -> None:
        bench.write(configurations=["2d"], trainers=[OURS])
        self.bench = bench
        self.engine = engine
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str, key: str = KEY, **variables: str) -> subprocess.Popen[bytes]:
        once = [sys.executable, "-m", "nnunetv2_ext.experiments.once", str(self.bench.file), key]
        command = [*once, "--engine", self.engine, *options]
        process = subprocess.Popen(
            command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self.started.append(process)
        return process

    def finish(self) -> None:
        """Run the job to its end, and check that nothing was done twice or left out."""
        assert self.start().wait(60) == 0
        check_every_epoch_once(self.bench, trainings=1)
        assert self.job.is_done()

    @property
    def job(self) -> Job:
        return self.bench.graph(configurations=["2d"], trainers=[OURS]).jobs[KEY]


both_engines = pytest.mark.parametrize("runner", ["workstation", "slurm"], indirect=True)


@pytest.fixture
def runner(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Runner]:
    runner = Runner(bench, getattr(request, "param", "workstation"))
    yield runner
    for process in runner.started:
        process.kill()
        process.wait()
    kill_what_is_left(bench)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_after_the_epoch_and_the_next_start_goes_on(runner: Runner, number: int) -> None:
    runner.bench.hold(1)
    once = runner.start()
    wait_for(runner.bench, "epoch", f"{NAME} 0")
    once.send_signal(number)
    wait_for(runner.bench, "asked", NAME)
    runner.bench.release()
    assert once.wait(60) == STOPPED
    assert "was stopped after epoch 1" in runner.job.log.read_text()
    runner.finish()
    assert "--c" in wait_for(runner.bench, "start", NAME).rest


@both_engines
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_validation_and_at_the_start(runner: Runner, number: int) -> None:
    once = runner.start(FAKE_START_SECONDS="30")
    wait_for(runner.bench, "start", NAME)
    once.send_signal(number)
    assert once.wait(60) == STOPPED
    once = runner.start(FAKE_VALIDATION_SECONDS="30")
    wait_for(runner.bench, "validation", NAME)
    once.send_signal(number)
    assert once.wait(60) == STOPPED
    assert not runner.job.is_done()
    runner.finish()


@both_engines
def test_a_killed_training_is_started_again_at_once(runner: Runner) -> None:
    runner.bench.hold(2)
    once = runner.start()
    send_signal(runner.bench, wait_for(runner.bench, "epoch", f"{NAME} 1").pid, signal.SIGKILL)
    runner.bench.release()
    assert once.wait(60) == 0
    assert "killed by signal 9" in runner.job.log.read_text()
    check_every_epoch_once(runner.bench, trainings=1)
    # What failed before is forgotten when all is well.
    assert not runner.job.attempts.exists()


@both_engines
def test_a_killed_data_loader_is_a_failure_that_is_tried_again(runner: Runner) -> None:
    runner.bench.hold(1)
    once = runner.start()
    training = wait_for(runner.bench, "epoch", f"{NAME} 0").pid
    (child,) = Path(f"/proc/{training}/task/{training}/children").read_text().split()
    send_signal(runner.bench, int(child), signal.SIGKILL)
    wait_for_text(Path(f"/proc/{child}/stat"), ") Z ")
    runner.bench.release()
    assert once.wait(60) == 0
    assert "background workers are no longer alive" in runner.job.log.read_text()
    check_every_epoch_once(runner.bench, trainings=1)


@both_engines
def test_a_training_whose_wrapper_was_killed_is_waited_for(runner: Runner) -> None:
    runner.bench.hold(1)
    once = runner.start()
    wait_for(runner.bench, "epoch", f"{NAME} 0")
    once.kill()
    again = runner.start()
    wait_for_text(runner.job.log, "another process runs it")
    runner.bench.release()
    assert again.wait(60) == 0
    check_every_epoch_once(runner.bench, trainings=1)
    assert "is done already" in runner.job.log.read_text()
    assert [event.what for event in read_events(runner.bench)].count("start") == 1


@both_engines
def test_data_loaders_whose_training_and_wrapper_were_killed_are_ended(runner: Runner) -> None:
    runner.bench.hold(1)
    once = runner.start()
    training = wait_for(runner.bench, "epoch", f"{NAME} 0").pid
    once.kill()
    once.wait()
    send_signal(runner.bench, training, signal.SIGKILL)
    runner.bench.release()
    assert take_lock(runner.job.lock) is None  # the data loader holds it
    runner.finish()
    assert "ended what was left of a killed training" in runner.job.log.read_text()


def test_what_fails_at_once_is_given_up_until_it_is_asked_for(runner: Runner) -> None:
    fault = runner.bench.break_("fail", f"{MODEL}.fold_0")
    assert runner.start().wait(60) == 1
    assert runner.start().wait(60) == 1
    assert [event.what for event in read_events(runner.bench)].count("start") == 3
    attempts = read_attempts(runner.job.attempts)
    assert attempts.given_up
    assert attempts.why == "exit code 1"
    fault.unlink()
    runner.job.attempts.unlink()  # as --retry does
    runner.finish()


@both_engines
def test_a_full_disk_is_a_failure_and_a_new_epoch_starts_the_count_again(runner: Runner) -> None:
    # The disk is full while the checkpoint of the first epoch is written, twice.
    runner.bench.break_("disk_full", f"{MODEL}.fold_0", times=2)
    runner.finish()
    assert "No space left on device" in runner.job.log.read_text()
    attempts = read_attempts(runner.job.attempts)
    assert attempts.failed(0, "x").failed(0, "x").failed(1, "x").failures == 1
    assert attempts.failed(0, "x").failed(0, "x").failed(0, "x").given_up


def test_a_stop_that_came_from_elsewhere_is_passed_on_to_a_cluster_only(runner: Runner) -> None:
    runner.bench.hold(1)
    once = runner.start("--engine", "slurm", CUDA_VISIBLE_DEVICES="7")
    stop_the_training_alone(runner.bench)
    assert once.wait(60) == STOPPED
    assert "gpu=7 " in wait_for(runner.bench, "start", NAME).rest
    runner.bench.hold(2)
    once = runner.start()
    stop_the_training_alone(runner.bench)
    assert once.wait(60) == 0
    check_every_epoch_once(runner.bench, trainings=1)
    assert [event.what for event in read_events(runner.bench)].count("start") == 3


def stop_the_training_alone(bench: Bench) -> None:
    before = len(read_events(bench))
    send_signal(bench, wait_for(bench, "ready", NAME, after=before).pid, signal.SIGUSR1)
    wait_for(bench, "asked", NAME, after=before)
    bench.release()


def test_one_gpu_is_given_to_one_training_at_a_time(runner: Runner) -> None:
    runner.bench.write(configurations=["2d"], trainers=[OURS], resources={"gpus": ["5"]})
    processes = [runner.start(key=KEY), runner.start(key=KEY.replace("fold_0", "fold_1"))]
    assert [process.wait(60) for process in processes] == [0, 0]
    check_every_epoch_once(runner.bench, trainings=2)
    assert {event.rest.split()[1] for event in read_events(runner.bench) if event.what == "start"} == {"gpu=5"}
    logs = "".join(path.read_text() for path in runner.job.log.parent.iterdir())
    assert "waits for a GPU" in logs


def test_gpus_are_taken_all_or_none(bench: Bench) -> None:
    first = take_gpus(["0", "1", "2"], 2)
    assert first is not None
    assert list(first) == ["0", "1"]
    assert take_gpus(["0", "1", "2"], 2) is None
    assert list(take_gpus(["0", "1", "2"], 1) or []) == ["2"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
def test_two_users_share_the_gpus_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not pytest's folder, which is closed to others.
    root = Path(tempfile.mkdtemp())
    try:
        root.chmod(0o755)
        monkeypatch.setenv(GPU_LOCKS_VARIABLE, str(root / "locks"))
        before = os.umask(0o077)
        try:
            held = take_gpus(["0", "1"], 1)
        finally:
            os.umask(before)
        assert held is not None
        assert stat.S_IMODE((root / "locks").stat().st_mode) == 0o1777
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setuid(65534)
                taken = take_gpus(["0", "1"], 1)
                code = 0 if taken and list(taken) == ["1"] and take_gpus(["0", "1"], 1) is None else 2
            finally:
                os._exit(code)  # whatever happened: a copy of the tests must not go on
        assert os.waitpid(child, 0)[1] == 0
        # The lock of the other's file, which it has left.
        assert list(take_gpus(["0", "1"], 1) or []) == ["1"]
    finally:
        shutil.rmtree(root)


def test_weights_to_start_from_give_way_to_a_checkpoint(bench: Bench) -> None:
    weights = {"pretrained_weights": {OURS: "w.pth"}, "environment": {"nnUNet_ext_save_every": 5}}
    job = bench.graph(configurations=["2d"], training=weights).jobs[KEY]
    assert command_now(job)[-2:] == ("-pretrained_weights", str(bench.root / "w.pth"))
    (bench.results / NAME).mkdir(parents=True)
    (bench.results / NAME / "checkpoint_best.pth").write_text("0")
    assert command_now(job)[-1] == "--c"
    assert "-pretrained_weights" not in command_now(job)


def test_a_step_that_ends_well_without_its_files_has_failed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = bench.graph(configurations=["2d"], trainers=[OURS])
    key = f"preprocess/{DATASET}/nnUNetPlans_2d"
    (bench.root / "bin" / "nnUNetv2_preprocess").write_text("#!/bin/sh\n")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        assert run_once(graph.experiment, key) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert "ended without its results" in graph.jobs[key].log.read_text()


def test_the_datasets_folder_has_what_was_found_for_the_first_trainer(bench: Bench) -> None:
    graph = bench.graph(configurations=["2d"], trainers=[NNUNETS, OURS])
    for trainer in (NNUNETS, OURS):
        bench.finish(f"{trainer}__nnUNetPlans__2d", (0, 1))
    found = []
    for trainer in (OURS, NNUNETS, OURS):
        once = [sys.executable, "-m", "nnunetv2_ext.experiments.once", str(bench.file)]
        subprocess.run([*once, f"find_best/{DATASET}/{trainer}"], check=True, stdout=subprocess.DEVNULL, timeout=60)
        found.append((bench.results / "inference_instructions.txt").read_text())
    assert found == [OURS, NNUNETS, NNUNETS]
    for trainer in (NNUNETS, OURS):
        kept = graph.experiment.report / "find_best" / DATASET / trainer
        assert (kept / "inference_instructions.txt").read_text() == trainer
