"""Make the jobs of an experiment from its file, the plans of its datasets, and nnU-Net's three folders."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_ext.catalog import BASELINE
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments.experiment import Experiment
from nnunetv2_ext.experiments.folders import DEFAULT_FOLDS, FOLDERS, dataset_number, nnunet_folder, training_cases
from nnunetv2_ext.experiments.jobs import COMPARE, FIND_BEST, PREPROCESS, SPLITS, TRAIN, Fold, Graph, Job, slug
from nnunetv2_ext.experiments.state import is_preprocessed, is_trained, stamp_is_valid
from nnunetv2_ext.plans.dataset import PlannedDataset, read_planned_dataset
from nnunetv2_ext.trainers.names import closest_name, parse_name

__all__ = ["build_graph"]

# nnU-Net's own numbers of processes for preprocessing: more take too much memory.
PROCESSES = {"2d": 8, "3d_lowres": 8}
OTHER_PROCESSES = 4


def build_graph(experiment: Experiment) -> Graph:
    """Make the jobs of an experiment.

    Raises:
        UserError: if nnU-Net's folders are not set, a dataset has no plans, or a configuration or fold cannot be.
    """
    return _Builder(experiment).build()


@dataclass(frozen=True)
class _Planned:
    """A configuration of one dataset's plans."""

    dataset: PlannedDataset
    plans: str
    configuration: str

    @property
    def settings(self) -> dict[str, Any]:
        return self.dataset.settings(self.configuration)


class _Builder:
    """Collects jobs, each after those that it waits for."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.folders = {name: nnunet_folder(name) for name in FOLDERS}
        self.jobs: dict[str, Job] = {}
        self.notes: list[str] = []

    def build(self) -> Graph:
        experiment = self.experiment
        for trainer in experiment.trainers:
            self._check_trainer(trainer)
        planned: list[_Planned] = []
        for dataset in experiment.datasets:
            for plans in experiment.plans:
                content = read_planned_dataset(dataset, plans)
                planned += [_Planned(content, plans, name) for name in self._configurations(content, plans)]
        for entry in planned:
            self._preprocess(entry)
        for name in dict.fromkeys(entry.dataset.folder.name for entry in planned):
            self._splits(name)
        # A cascade stands after the stage before it, wherever the file names it.
        for entry in sorted(planned, key=lambda entry: "previous_stage" in entry.settings):
            for trainer in experiment.trainers:
                self._train(entry, trainer, planned)
        self._find_best()
        self._compare()
        return Graph(experiment, self.jobs, tuple(dict.fromkeys(self.notes)))

    def _check_trainer(self, trainer: str) -> None:
        parsed = parse_name(trainer)
        meant = None if parsed else closest_name(trainer)
        if meant:
            raise UserError(f"{self.experiment.file}: there is no trainer {trainer}; did you mean {meant}?")
        if parsed is None or parsed == (BASELINE, None):
            same = f"; {trainer}_1000epochs is the same training, and does not" if parsed else ""
            self.notes.append(f"{trainer} saves every 50 epochs, and loses what came after when it is stopped{same}.")

    def _configurations(self, content: PlannedDataset, plans: str) -> list[str]:
        """List the experiment's configurations that the plans of a dataset have."""
        names, there = self.experiment.configurations, content.plans["configurations"]
        missing = [name for name in names if name not in there]
        if len(missing) == len(names):
            raise UserError(
                f"{plans} of {content.folder.name} have none of the configurations {', '.join(names)}: "
                f"they have {', '.join(there)}."
            )
        self.notes += [f"{plans} of {content.folder.name} have no {name}: it is left out." for name in missing]
        found = [name for name in names if name in there]
        for name in found:
            previous = content.settings(name).get("previous_stage")
            if previous and previous not in found:
                raise UserError(f"{self.experiment.file}: {name} needs {previous}: add it to the configurations.")
        return found

    def _add(self, kind: str, *rest: str, command: tuple[str, ...], **values: Any) -> Job:
        key = "/".join((kind, *rest))
        folder = self.experiment.folder
        job = Job(
            key=key,
            kind=kind,
            command=command,
            log=folder / "logs" / f"{slug(key)}.log",
            attempts=folder / "state" / f"{slug(key)}.json",
            **values,
        )
        self.jobs[key] = job
        return job

    def _stamp(self, *words: str) -> Path:
        return self.experiment.folder / "done" / f"{slug('/'.join(words))}.json"

    def _preprocess(self, planned: _Planned) -> None:
        dataset, identifier = planned.dataset.folder, planned.settings["data_identifier"]
        if f"{PREPROCESS}/{dataset.name}/{identifier}" in self.jobs:
            return  # other plans or another configuration, the same data
        # nnU-Net preprocesses for a cascade under the name of the configuration that it inherits from.
        settings = planned.dataset.plans["configurations"][planned.configuration]
        configuration = settings["inherits_from"] if "previous_stage" in settings else planned.configuration
        processes = min(self.experiment.resources.cores, PROCESSES.get(configuration, OTHER_PROCESSES))
        ending = planned.dataset.dataset_json["file_ending"]
        raw = self.folders["nnUNet_raw"] / dataset.name

        def is_done() -> bool:
            return is_preprocessed(dataset, identifier, training_cases(raw, dataset, ending), ending)

        self._add(
            PREPROCESS,
            dataset.name,
            identifier,
            command=(
                *(
                    "nnUNetv2_preprocess",
                    "-d",
                    dataset_number(dataset.name),
                    "-plans_name",
                    planned.plans,
                    "-c",
                    configuration,
                ),
                *("-np", str(processes), "--no_pbar"),
            ),
            after=(),
            output=self._stamp(PREPROCESS, dataset.name, identifier),
            # One for all data of a dataset: each run of the command writes the labels for the validation.
            lock=dataset / ".preprocess.lock",
            is_done=is_done,
        )

    def _splits(self, dataset: str) -> None:
        file = self.folders["nnUNet_preprocessed"] / dataset / "splits_final.json"
        data = tuple(key for key in self.jobs if key.startswith(f"{PREPROCESS}/{dataset}/"))
        self._add(
            SPLITS,
            dataset,
            command=(sys.executable, "-m", "nnunetv2_ext.experiments.splits", dataset),
            after=data[:1],
            output=self._stamp(SPLITS, dataset),
            lock=file.with_name(".splits.lock"),
            is_done=file.is_file,
        )

    def _train(self, planned: _Planned, trainer: str, all_planned: list[_Planned]) -> None:
        settings, dataset = planned.settings, planned.dataset.folder.name
        dims, entry = len(settings["patch_size"]), parse_name(trainer)
        if entry and dims not in entry[0].dims:
            self.notes.append(f"{trainer} has no network of {dims} dimensions: {planned.configuration} is left out.")
            return
        folds = self._number_of_folds(dataset)
        wanted = self.experiment.folds
        following = [other for other in all_planned if other.settings.get("previous_stage") == planned.configuration]
        following = [other for other in following if (other.dataset, other.plans) == (planned.dataset, planned.plans)]
        if following and wanted != ("all",):
            # The cascade trains on what all folds of the stage before predicted.
            added = [fold for fold in map(str, range(folds)) if fold not in wanted]
            if added:
                self.notes.append(
                    f"{dataset}: {planned.configuration} is trained for fold {', '.join(added)} too, because "
                    f"{following[0].configuration} needs what it predicts for all cases."
                )
            wanted = (*wanted, *added)
        identifiers = {settings["data_identifier"], *(other.settings["data_identifier"] for other in following)}
        after = [f"{PREPROCESS}/{dataset}/{identifier}" for identifier in sorted(identifiers)]
        after.append(f"{SPLITS}/{dataset}")
        if "previous_stage" in settings:
            before = f"{trainer}__{planned.plans}__{settings['previous_stage']}"
            after += [key for key in self.jobs if key.startswith(f"{TRAIN}/{dataset}/{before}/")]
        model = f"{trainer}__{planned.plans}__{planned.configuration}"
        for number in wanted:
            folder = self.folders["nnUNet_results"] / dataset / model / f"fold_{number}"
            fold = Fold(dataset, trainer, planned.plans, planned.configuration, number, folder)
            self._add(
                TRAIN,
                dataset,
                model,
                folder.name,
                command=self._train_command(fold),
                after=tuple(after),
                output=folder / "validation" / "summary.json",
                lock=folder / ".run.lock",
                is_done=lambda folder=folder: is_trained(folder),
                fold=fold,
            )

    def _train_command(self, fold: Fold) -> tuple[str, ...]:
        training = self.experiment.training
        command = ["nnUNetv2_train", fold.dataset, fold.configuration, fold.fold, "-tr", fold.trainer, "-p", fold.plans]
        if training.device != "cuda":
            command += ["-device", training.device]
        if training.num_gpus > 1:
            command += ["-num_gpus", str(training.num_gpus)]
        if training.npz:
            command.append("--npz")
        weights = training.pretrained_weights.get(fold.trainer)
        # `once` takes `--c` instead where there is a checkpoint to go on from.
        return (*command, "-pretrained_weights", str(weights)) if weights else (*command, "--c")

    def _number_of_folds(self, dataset: str) -> int:
        file = self.folders["nnUNet_preprocessed"] / dataset / "splits_final.json"
        try:
            folds = len(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else DEFAULT_FOLDS
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{file} cannot be read ({error}): write it anew, or remove it for nnU-Net's own."
            ) from error
        wrong = [fold for fold in self.experiment.folds if fold != "all" and int(fold) >= folds]
        if wrong:
            raise UserError(
                f"{self.experiment.file}: there is no fold {', '.join(wrong)} of {dataset}, whose {folds} folds "
                f"(splits_final.json) count from 0."
            )
        return folds

    def _trainings(self) -> list[tuple[Job, Fold]]:
        """List the trainings whose folds the experiment names."""
        folds = self.experiment.folds
        return [(job, job.fold) for job in self.jobs.values() if job.fold and job.fold.fold in folds]

    def _find_best(self) -> None:
        """Add the search for the best configuration of each trainer; to compare trainers is the last step's work."""
        step = self.experiment.find_best
        if step is None or self.experiment.folds == ("all",):
            return
        trainings = self._trainings()
        for dataset, trainer in dict.fromkeys((fold.dataset, fold.trainer) for _, fold in trainings):
            chosen = [(job, fold) for job, fold in trainings if (fold.dataset, fold.trainer) == (dataset, trainer)]
            command = ["nnUNetv2_find_best_configuration", dataset, "-tr", trainer]
            command += ["-p", *dict.fromkeys(fold.plans for _, fold in chosen)]
            command += ["-c", *dict.fromkeys(fold.configuration for _, fold in chosen)]
            command += ["-f", *self.experiment.folds, "-np", str(self.experiment.resources.cores)]
            if not (step.ensembling and self.experiment.training.npz):
                command.append("--disable_ensembling")
            # One at a time per dataset: nnU-Net writes what it found into the dataset's folder.
            lock = self.folders["nnUNet_results"] / dataset / ".find_best.lock"
            self._report_job(FIND_BEST, dataset, trainer, command=command, after=[job for job, _ in chosen], lock=lock)

    def _compare(self) -> None:
        """Add the comparison of the trainers in each configuration."""
        step = self.experiment.compare
        if step is None or self.experiment.folds == ("all",):
            return
        trainings = self._trainings()
        for plans, configuration in dict.fromkeys((fold.plans, fold.configuration) for _, fold in trainings):
            chosen = [
                (job, fold) for job, fold in trainings if (fold.plans, fold.configuration) == (plans, configuration)
            ]
            trainers = list(dict.fromkeys(fold.trainer for _, fold in chosen))
            if len(trainers) < 2:
                self.notes.append(f"{configuration} ({plans}) has one trainer: nothing is compared.")
                continue
            name = f"{plans}__{configuration}"
            numbers = [dataset_number(dataset) for dataset in dict.fromkeys(fold.dataset for _, fold in chosen)]
            command = ["nnUNetv2_ext", "compare", "-d", *numbers, "-c", configuration, "-tr", *trainers, "-p", plans]
            command += ["-f", *self.experiment.folds, "-o", str(self.experiment.report / name)]
            command += ["--overwrite", *step.options]  # a training that is added makes the comparison anew
            lock = self.experiment.folder / "done" / f".{name}.lock"
            self._report_job(COMPARE, name, command=command, after=[job for job, _ in chosen], lock=lock)

    def _report_job(self, kind: str, *words: str, command: list[str], after: list[Job], lock: Path) -> None:
        """Add a step that reads finished trainings, and is done again when one of them is newer."""
        stamp, inputs = self._stamp(kind, *words), [job.output for job in after]
        self._add(
            kind,
            *words,
            command=tuple(command),
            after=tuple(job.key for job in after),
            output=stamp,
            lock=lock,
            is_done=lambda: stamp_is_valid(stamp, command, inputs),
        )
