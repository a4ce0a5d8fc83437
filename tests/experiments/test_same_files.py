"""The same experiment by each engine: the same files, whoever ran it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_ext.experiments.slurm_scripts import write_scripts
from tests.experiments.bench import OURS, Bench, check_every_epoch_once, files_of_an_experiment, make_bench

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="Snakemake needs Python 3.11"),
]

CASCADE = {"configurations": ["3d_lowres", "3d_cascade_fullres"], "trainers": [OURS]}


def run_on_this_machine(bench: Bench) -> None:
    bench.write(**CASCADE)
    command = [sys.executable, "-m", "nnunetv2_ext.cli", "run", str(bench.file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run_scripts_for_slurm(bench: Bench) -> None:
    """Run each script as Slurm would, in the order in which they are submitted."""
    graph = bench.graph(**CASCADE, slurm={"setup": [f'export PATH="{bench.root}/bin:$PATH"']})
    for job, batch in enumerate(write_scripts(graph), 1):
        for number in batch.jobs:
            of_array = {} if number is None else {"SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": str(number)}
            done = subprocess.run(
                ["bash", batch.script],
                cwd=graph.experiment.folder,
                env={**os.environ, "SLURM_JOB_ID": str(job), **of_array},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr


def test_both_engines_leave_the_same_files(tmp_path: Path) -> None:
    found = {}
    for run in (run_on_this_machine, run_scripts_for_slurm):
        with pytest.MonkeyPatch.context() as monkeypatch:
            bench = make_bench(tmp_path / f"Ann's {run.__name__}", monkeypatch)
            run(bench)
            check_every_epoch_once(bench, trainings=4)
            found[run] = files_of_an_experiment(bench)
    first, second = found.values()
    assert len([name for name in first if name.endswith("validation/summary.json")]) == 4
    assert first == second
