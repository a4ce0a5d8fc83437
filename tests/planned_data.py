"""Small datasets for tests of the trainers: made, planned and preprocessed by nnU-Net's own command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from nnunetv2_ext.demo.phantom import write_dataset
from nnunetv2_ext.plans.dataset import PlannedDataset

LABELS, REGIONS, IGNORE = "Dataset801_Labels", "Dataset802_Regions", "Dataset803_Ignore"
CONFIGURATIONS = ("2d", "3d_fullres")
SHAPE = (16, 48, 48)
N_TRAIN, N_TEST = 5, 1


def script(name: str) -> str:
    """Return the path of a console script of the environment that runs the tests."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def clean_environment(**extra: str) -> dict[str, str]:
    """Return an environment for subprocesses in which nothing points to this package."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("nnUNet", "PYTEST", "TORCH_"))}
    # Without PASSIVE, waiting threads take the cores from the working ones.
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "nnUNet_def_n_proc": "1"}
    return {**kept, **quiet, **extra}


def run(*command: str, environment: dict[str, str], cwd: Path, expect: int = 0) -> str:
    """Run a command of the test environment and give its output; fail with that output on another exit code."""
    done = subprocess.run(
        [script(command[0]), *command[1:]], env=environment, cwd=cwd, capture_output=True, text=True, timeout=900
    )
    output = done.stdout + done.stderr
    assert done.returncode == expect, f"{' '.join(command)} ended with {done.returncode}:\n{output[-4000:]}"
    return output


@dataclass(frozen=True)
class PlannedData:
    """nnU-Net's three folders with the datasets of this module.

    Attributes:
        raw, preprocessed, results: the folders.
    """

    raw: Path
    preprocessed: Path
    results: Path

    def with_results(self, folder: Path) -> PlannedData:
        """Return the same data with another folder for results."""
        folder.mkdir(parents=True, exist_ok=True)
        return replace(self, results=folder)

    def folder_variables(self) -> dict[str, str]:
        """Return nnU-Net's three environment variables."""
        return {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
        }

    def plans(self, dataset: str, name: str = "nnUNetPlans") -> dict[str, Any]:
        """Read plans of a dataset."""
        return json.loads((self.preprocessed / dataset / f"{name}.json").read_text())

    def dataset_json(self, dataset: str) -> dict[str, Any]:
        """Read a dataset.json."""
        return json.loads((self.preprocessed / dataset / "dataset.json").read_text())

    def planned(self, dataset: str) -> PlannedDataset:
        """Read a dataset as the commands do."""
        return PlannedDataset(self.preprocessed / dataset, self.plans(dataset), self.dataset_json(dataset))

    def copy(self, folder: Path) -> PlannedData:
        """Copy everything, for a test that writes into nnU-Net's folders."""
        shutil.copytree(self.raw.parent, folder)
        return PlannedData(folder / "raw", folder / "preprocessed", folder / "results")


def _change_labels(raw: Path, dataset: str, **changes: Any) -> None:
    path = raw / dataset / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _write_datasets(raw: Path) -> None:
    for dataset in (LABELS, REGIONS, IGNORE):
        write_dataset(raw, dataset, n_train=N_TRAIN, n_test=N_TEST, seed=1, shape=SHAPE)
    labels = json.loads((raw / LABELS / "dataset.json").read_text())["labels"]
    organs = [number for name, number in labels.items() if name != "background"]
    _change_labels(
        raw,
        REGIONS,
        labels={"background": 0, "any organ": organs, "all but the first": organs[1:]},
        regions_class_order=[organs[0], organs[1]],
    )
    # nnU-Net wants the ignore label to be the highest.
    renamed = {name: number for name, number in labels.items() if number < max(organs)}
    _change_labels(raw, IGNORE, labels={**renamed, "ignore": max(organs)})


def _make_narrow(plans_file: Path) -> None:
    """Return the planned networks a quarter of their widths, which no test depends on."""
    plans = json.loads(plans_file.read_text())
    for name in CONFIGURATIONS:
        planned = plans["configurations"][name]["architecture"]["arch_kwargs"]
        planned["features_per_stage"] = [width // 4 for width in planned["features_per_stage"]]
    plans_file.write_text(json.dumps(plans))


def _preprocess_like_labels(data: PlannedData, dataset: str) -> None:
    """Return a dataset with the same images the plans of `LABELS`, and preprocess its cases in this process.

    nnU-Net's command starts a pool of processes for each step, which takes most of its time on data this small.
    """
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    target = data.preprocessed / dataset
    shutil.copytree(data.preprocessed / LABELS, target, ignore=shutil.ignore_patterns("nnUNetPlans_*"))
    shutil.copyfile(data.raw / dataset / "dataset.json", target / "dataset.json")
    plans = {**data.plans(LABELS), "dataset_name": dataset}
    (target / "nnUNetPlans.json").write_text(json.dumps(plans))
    manager = PlansManager(plans)
    for name in CONFIGURATIONS:
        configuration = manager.get_configuration(name)
        (target / configuration.data_identifier).mkdir()
        for label in sorted((data.raw / dataset / "labelsTr").glob("*.nii.gz")):
            case = label.name.removesuffix(".nii.gz")
            DefaultPreprocessor(verbose=False).run_case_save(
                str(target / configuration.data_identifier / case),
                [str(data.raw / dataset / "imagesTr" / f"{case}_0000.nii.gz")],
                str(label),
                manager,
                configuration,
                data.dataset_json(dataset),
            )


def prepare(root: Path) -> PlannedData:
    """Make the datasets in a folder, or use them if another worker has."""
    data = PlannedData(root / "raw", root / "preprocessed", root / "results")
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(str(root) + ".lock"):
        done = root / "complete"
        if not done.exists():
            _write_datasets(data.raw)
            for folder in (data.preprocessed, data.results):
                folder.mkdir(exist_ok=True)
            run(
                "nnUNetv2_plan_and_preprocess",
                *("-d", "801", "-c", *CONFIGURATIONS, "-np", "1", "1", "-npfp", "1", "--no_pbar"),
                environment=clean_environment(**data.folder_variables()),
                cwd=root,
            )
            _make_narrow(data.preprocessed / LABELS / "nnUNetPlans.json")
            for dataset in (REGIONS, IGNORE):
                _preprocess_like_labels(data, dataset)
            done.touch()
    return data
