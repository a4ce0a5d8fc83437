"""An experiment on Snakemake, with stand-ins for nnU-Net's commands: order, failures, and what a restart does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments.once import STOPPED
from nnunetv2_ext.experiments.workstation import run_workstation, write_workflow
from tests.experiments.bench import (
    NNUNETS,
    OURS,
    Bench,
    check_every_epoch_once,
    kill_what_is_left,
    make_bench,
    read_events,
    send_signal,
    wait_for,
    wait_for_text,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="Snakemake needs Python 3.11"),
]

MODEL = f"{OURS}__nnUNetPlans__2d"
TWO_FOLDS = {"configurations": ["2d"], "trainers": [OURS]}


class Command:
    """`nnUNetv2_ext run`, as a user starts it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *options: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "nnunetv2_ext.cli", "run", str(self.bench.file), *options],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # What a shell starts in the background ignores Ctrl+C, and so would this.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self.started.append(process)
        return process

    def __call__(self, *options: str, expect: int = 0) -> str:
        process = self.start(*options)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == expect, output
        return output


def processes_in(folder: Path, *words: bytes) -> list[int]:
    """List processes by the folder in which they run, and words of their command."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if (process / "cwd").samefile(folder) and all(word in command for word in words):
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.fixture
def command(bench: Bench) -> Iterator[Command]:
    command = Command(bench)
    yield command
    for process in command.started:
        process.kill()
        process.wait()
    kill_what_is_left(bench)


def test_a_failing_fold_stops_what_needs_it_alone_and_retry_finishes_the_experiment(command: Command) -> None:
    bench = command.bench
    bench.write(configurations=["3d_lowres", "3d_cascade_fullres"])
    lowres = f"{NNUNETS}__nnUNetPlans__3d_lowres"
    fault = bench.break_("fail", f"{lowres}.fold_1")
    output = command(expect=1)
    log = bench.root / "study" / "logs" / f"train.{bench.results.name}.{lowres}.fold_1.log"
    assert f"Failed: train {bench.results.name} {lowres} fold_1" in output
    assert "exit code 1; 3 times without a new epoch; given up until --retry" in output
    assert f"log   {log}" in output
    assert "look  tail -n 30 '" in output
    # The others went on; what needs the fold did not start, and is named.
    ended = {event.rest for event in read_events(bench) if event.what == "end"}
    assert len(ended) == 5
    assert not any(event.rest.startswith(f"{NNUNETS}__nnUNetPlans__3d_cascade") for event in read_events(bench))
    not_started = output.split("Not started")[1]
    for name in (f"{NNUNETS}__nnUNetPlans__3d_cascade_fullres fold_0", f"find_best {bench.results.name} {NNUNETS}"):
        assert name in not_started
    assert OURS not in not_started.replace("compare", "")
    fault.unlink()
    assert "15 of 15 jobs done" in command("--retry")
    check_every_epoch_once(bench, trainings=8)
    check_order(bench)
    # Finished: not even Snakemake is started.
    before = len(read_events(bench))
    output = command()
    assert "Building DAG" not in output
    assert len(read_events(bench)) == before
    # And by itself Snakemake finds nothing either.
    snakemake = [sys.executable, "-m", "snakemake", "--workflow-profile", "profile", "--dry-run"]
    by_hand = subprocess.run(snakemake, cwd=bench.root / "study", capture_output=True, text=True, check=True)
    assert "Nothing to be done" in by_hand.stdout + by_hand.stderr


def check_order(bench: Bench) -> None:
    """Check the order that nnU-Net's cascade needs, in the stand-ins' log."""
    place = {(event.what, event.rest.split()[0]): index for index, event in enumerate(read_events(bench))}
    for trainer in (NNUNETS, OURS):
        for fold in (0, 1):
            start = place["start", f"{trainer}__nnUNetPlans__3d_cascade_fullres/fold_{fold}"]
            for lowres in (0, 1):
                assert place["end", f"{trainer}__nnUNetPlans__3d_lowres/fold_{lowres}"] < start
            assert place["preprocess", "3d_fullres"] < place["start", f"{trainer}__nnUNetPlans__3d_lowres/fold_{fold}"]
        assert place["end", f"{trainer}__nnUNetPlans__3d_cascade_fullres/fold_1"] < place["find_best", trainer]


def test_ctrl_c_and_killed_heads_lose_no_epoch_and_start_nothing_twice(command: Command) -> None:
    bench, folder = command.bench, command.bench.root / "study"
    bench.write(**TWO_FOLDS, find_best=False)
    bench.hold(1)
    first = command.start()
    wait_for(bench, "epoch", f"{MODEL}/fold_0 0")
    wait_for(bench, "epoch", f"{MODEL}/fold_1 0")
    assert "is running already" in command(expect=1)
    assert re.search(r"\n  0     running     1/4", command("--status"))
    first.send_signal(signal.SIGINT)
    wait_for(bench, "asked", f"{MODEL}/fold_0")
    wait_for(bench, "asked", f"{MODEL}/fold_1")
    bench.release()
    output = first.communicate(timeout=60)[0]
    assert first.returncode == STOPPED, output
    assert "trainings finish their epoch and save it" in output
    assert re.search(r"\n  1     stopped     2/4", command("--status"))

    bench.hold(2)
    before = len(read_events(bench))
    second = command.start()
    wait_for(bench, "ready", f"{MODEL}/fold_0", after=before)
    wait_for(bench, "ready", f"{MODEL}/fold_1", after=before)
    # Of two heads one is left, and the experiment is still running.
    second.kill()
    second.wait()
    assert "is running already" in command(expect=1)
    (snakemake,) = processes_in(folder, b"snakemake", b"--workflow-profile")
    send_signal(bench, snakemake, signal.SIGKILL)
    while processes_in(folder, b"snakemake", b"--workflow-profile"):
        time.sleep(0.05)
    assert any((folder / ".snakemake" / "locks").iterdir())
    third = command.start()
    wait_for_text(folder / "journal.log", "another process runs it")
    bench.release()
    output = third.communicate(timeout=120)[0]
    assert third.returncode == 0, output
    check_every_epoch_once(bench, trainings=2)


def test_a_snakemake_that_was_started_by_hand_is_left_alone(command: Command) -> None:
    bench, folder = command.bench, command.bench.root / "study"
    bench.write(**TWO_FOLDS)
    (folder / ".snakemake" / "locks").mkdir(parents=True)
    (folder / ".snakemake" / "locks" / "0.input.lock").touch()
    by_hand = subprocess.Popen(["bash", "-c", "exec -a snakemake sleep 60"], cwd=folder)
    try:
        while by_hand.pid not in processes_in(folder, b"snakemake", b"60"):
            time.sleep(0.05)
        assert f"Snakemake runs in {folder} already, as process {by_hand.pid}" in command(expect=1)
    finally:
        by_hand.kill()
        by_hand.wait()


def test_the_files_are_the_same_for_the_same_experiment(bench: Bench) -> None:
    def contents() -> dict[str, bytes]:
        folder = bench.root / "study"
        return {name: (folder / name).read_bytes() for name in ("Snakefile", "jobs.json", "profile/config.yaml")}

    write_workflow(bench.graph())
    first = contents()
    bench.preprocess("nnUNetPlans_2d")
    bench.finish(MODEL, [0])
    write_workflow(bench.graph())
    assert contents() == first


def test_a_summary_without_its_training_is_not_taken_for_one(command: Command) -> None:
    bench = command.bench
    bench.write(**TWO_FOLDS)
    bench.finish(MODEL, [0])
    (bench.results / MODEL / "fold_0" / "checkpoint_final.pth").unlink()
    assert "but no checkpoint_final.pth of its training" in command(expect=1)
    assert read_events(bench) == []


def test_without_snakemake_the_other_ways_are_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = bench.graph()
    monkeypatch.setattr("nnunetv2_ext.experiments.workstation.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'`pip install "nnunetv2_ext\[run\]"`, or run the commands that --print lists'):
        run_workstation(graph)
    monkeypatch.setattr(sys, "version_info", (3, 10, 14))
    with pytest.raises(UserError, match=r"Snakemake needs Python 3\.11: run the commands that --print lists"):
        run_workstation(graph)
    assert not (bench.root / "study").exists()


def test_braces_in_a_path_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(tmp_path / "{study}", monkeypatch)
    with pytest.raises(UserError, match="has braces, which Snakemake takes for its own signs"):
        run_workstation(bench.graph())
    assert not (bench.root / "study").exists()
