"""A dataset without images, and stand-ins for nnU-Net's commands that take a moment: for tests of what runs when."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from nnunetv2_ext.experiments.experiment import Experiment, read_experiment
from nnunetv2_ext.experiments.graph import build_graph
from nnunetv2_ext.experiments.jobs import Graph

DATASET = "Dataset901_Fake"
EPOCHS = 4
OURS, NNUNETS = f"nnUNetTrainerPECANet_{EPOCHS}epochs", f"nnUNetTrainer_{EPOCHS}epochs"
# As nnU-Net plans a dataset of large images.
CONFIGURATIONS = {
    "2d": {"data_identifier": "nnUNetPlans_2d", "patch_size": [8, 8]},
    "3d_lowres": {
        "data_identifier": "nnUNetPlans_3d_lowres",
        "patch_size": [8, 8, 8],
        "next_stage": "3d_cascade_fullres",
    },
    "3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres", "patch_size": [8, 8, 8]},
    "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
}
CASES = [f"case_{number}" for number in range(4)]


@dataclass(frozen=True)
class Bench:
    """nnU-Net's three folders and an experiment file, in a folder whose name has a blank and an apostrophe."""

    root: Path

    @property
    def file(self) -> Path:
        return self.root / "study.yaml"

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / DATASET

    @property
    def results(self) -> Path:
        return self.root / "results" / DATASET

    def write(self, **changes: object) -> Experiment:
        """Write the experiment file, with other values than the usual ones, and read it."""
        content: dict[str, object] = {
            "datasets": [901],
            "configurations": ["2d", "3d_lowres", "3d_cascade_fullres"],
            "trainers": [NNUNETS, OURS],
            "folds": [0, 1],
            "training": {"device": "cpu"},
            "resources": {"gpus": ["0", "1"], "cores": 1},
            **changes,
        }
        self.file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return read_experiment(self.file)

    def graph(self, **changes: object) -> Graph:
        """Write the experiment file, and make its jobs."""
        return build_graph(self.write(**changes))

    def preprocess(self, *identifiers: str) -> None:
        """Leave what preprocessing leaves."""
        for identifier in identifiers:
            (self.preprocessed / identifier).mkdir(exist_ok=True)
            for case in CASES:
                (self.preprocessed / identifier / f"{case}.pkl").write_text("x")
        (self.preprocessed / "gt_segmentations").mkdir(exist_ok=True)
        for case in CASES:
            (self.preprocessed / "gt_segmentations" / f"{case}.nii.gz").write_text("x")

    def break_(self, kind: str, job: str, times: int | None = None) -> Path:
        """Let a stand-in fail; return the file whose removal mends it."""
        file = self.root / "faults" / kind / job
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("" if times is None else str(times))
        return file

    def hold(self, epoch: int) -> None:
        """Let trainings wait before an epoch, until `release`."""
        (self.root / "hold.new").write_text(str(epoch))
        (self.root / "hold.new").replace(self.root / "hold")

    def release(self) -> None:
        """Let trainings go on."""
        (self.root / "hold").unlink()

    def finish(self, model: str, folds: Sequence[int]) -> None:
        """Leave what finished trainings leave."""
        for fold in folds:
            folder = self.results / model / f"fold_{fold}"
            (folder / "validation").mkdir(parents=True)
            (folder / "checkpoint_final.pth").write_text("x")
            (folder / "validation" / "summary.json").write_text("{}")


@dataclass(frozen=True)
class Event:
    """A line of the stand-ins' log: when, which process, what, and of which job."""

    time: float
    pid: int
    what: str
    rest: str


def read_events(bench: Bench) -> list[Event]:
    """Read what the stand-ins did, in order."""
    file = bench.root / "runs.log"
    lines = file.read_text().splitlines() if file.is_file() else []
    events = []
    for line in lines:
        moment, pid, what, rest = line.split(" ", 3)
        events.append(Event(float(moment), int(pid), what, rest))
    return events


def wait_for(bench: Bench, what: str, rest: str = "", *, after: int = 0) -> Event:
    """Wait until the stand-ins' log has such a line, after a number of others, and return the last one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [event for event in read_events(bench)[after:] if event.what == what and event.rest.startswith(rest)]
        if found:
            return found[-1]
        time.sleep(0.02)
    raise AssertionError(f"no {what} {rest} in {read_events(bench)}")


@contextmanager
def _held(pid: int) -> Iterator[int]:
    """Yield a descriptor that means this very process, also when its number has gone to another one."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_of(bench: Bench, pid: int) -> bool:
    """Return whether a process was started with the bench's folders: no other test's, and not the one that tests."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return os.fsencode(f"nnUNet_results={bench.root / 'results'}") in variables


def send_signal(bench: Bench, pid: int, number: int) -> None:
    """Send a signal to a process, if it is one of the bench."""
    with _held(pid) as process:
        assert _is_of(bench, pid), f"{pid} is no process of {bench.root}"
        signal.pidfd_send_signal(process, number)


def kill_what_is_left(bench: Bench) -> None:
    """Kill all processes of the bench; how they are called, and who started them, does not matter."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError), _held(int(process.name)) as descriptor:
            if _is_of(bench, int(process.name)):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def wait_for_text(file: Path, text: str) -> None:
    """Wait until a file holds a text."""
    deadline = time.monotonic() + 60
    while not file.is_file() or text not in file.read_text():
        assert time.monotonic() < deadline, f"no {text!r} in {file}"
        time.sleep(0.02)


def check_every_epoch_once(bench: Bench, trainings: int) -> None:
    """Check that every fold and GPU was used once at a time, and that no epoch is missing or was trained twice."""
    events = read_events(bench)
    assert not [event for event in events if event.what == "TWICE"]
    epochs: dict[str, list[int]] = {}
    for event in events:
        if event.what == "epoch":
            job, epoch = event.rest.split()
            epochs.setdefault(job, []).append(int(epoch))
    assert len(epochs) == trainings
    assert all(done == list(range(EPOCHS)) for done in epochs.values()), epochs


# What an engine writes for itself; all else is the same whoever ran the experiment.
OF_AN_ENGINE = {"Snakefile", "jobs.json", "profile", ".snakemake", ".head.lock", "slurm"}


def files_of_an_experiment(bench: Bench) -> dict[str, bytes]:
    """Return what an experiment left in nnU-Net's folders and in its own, by path; logs and locks without content.

    Without the traces of the job that writes folds: they are there already, so that Slurm does not start it.
    """
    found = {}
    for folder in ("preprocessed", "results", "study"):
        for path in sorted((bench.root / folder).rglob("*")):
            name = path.relative_to(bench.root)
            of_folds = path.name.startswith(("splits.", ".splits."))
            if path.is_file() and not of_folds and not (folder == "study" and name.parts[1] in OF_AN_ENGINE):
                timed = path.suffix in (".log", ".lock")
                content = b"" if timed else path.read_bytes()
                # A stamp says which Python wrote it, which in one environment has several names.
                content = re.sub(rb'/python[\d.]*"', b'/python"', content)
                found[str(name)] = content.replace(os.fsencode(bench.root), b"ROOT")
    return found


def make_bench(root: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Make the folders and the dataset, planned but not preprocessed, with two folds."""
    bench = Bench(root)
    for variable in ("raw", "preprocessed", "results"):
        (root / variable).mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{variable}", str(root / variable))
    (root / "raw" / DATASET / "labelsTr").mkdir(parents=True)
    for case in CASES:
        (root / "raw" / DATASET / "labelsTr" / f"{case}.nii.gz").write_text("x")
    bench.preprocessed.mkdir()
    dataset_json = json.dumps({"file_ending": ".nii.gz"})
    for folder in (root / "raw" / DATASET, bench.preprocessed):
        (folder / "dataset.json").write_text(dataset_json)
    (bench.preprocessed / "nnUNetPlans.json").write_text(json.dumps({"configurations": CONFIGURATIONS}))
    halves = [{"train": CASES[:2], "val": CASES[2:]}, {"train": CASES[2:], "val": CASES[:2]}]
    (bench.preprocessed / "splits_final.json").write_text(json.dumps(halves))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("nnUNet_ext_gpu_locks", str(root / "gpu locks"))
    _put_stand_ins_on_the_path(root / "bin", monkeypatch)
    return bench


def _put_stand_ins_on_the_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    fake = Path(__file__).with_name("fake_nnunet.py")
    for name in ("train", "preprocess", "find_best_configuration", "ext"):
        program = folder / f"nnUNetv2_{name}"
        program.write_text(
            f'#!/bin/sh\nexec {shlex.join([sys.executable, "-S", "-E", str(fake), program.name])} "$@"\n'
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
