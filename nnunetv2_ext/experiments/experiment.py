"""The experiment file: YAML, read into frozen dataclasses; every key is checked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments.section import Section, UniqueKeyLoader
from nnunetv2_ext.io.files import prepare_file, whole_file

__all__ = ["Compare", "Experiment", "FindBest", "Resources", "Slurm", "Training", "read_experiment", "write_template"]

DEVICES = ("cuda", "cpu", "mps")


@dataclass(frozen=True)
class Training:
    """Options of every training.

    Attributes:
        device: `-device` of `nnUNetv2_train`.
        num_gpus: GPUs per training.
        npz: whether the validation keeps its probabilities.
        pretrained_weights: checkpoint per trainer, for `-pretrained_weights`.
        environment: environment variables.
    """

    device: str
    num_gpus: int
    npz: bool
    pretrained_weights: Mapping[str, Path]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Resources:
    """What a workstation has, and what one training needs.

    Attributes:
        gpus: ids of the GPUs of a workstation; none for trainings without.
        cores: CPU cores per training.
        memory_gb: memory per training.
        hours: longest time of a training at a stretch, for clusters.
    """

    gpus: tuple[str, ...]
    cores: int
    memory_gb: int
    hours: float


@dataclass(frozen=True)
class Slurm:
    """What a cluster's site asks for.

    Attributes:
        partition: partition of the trainings.
        lines: further lines after `#SBATCH`.
        cpu_partition: partition of the jobs that train nothing; None for the same.
        cpu_lines: lines of these jobs; None for `lines` without those that ask for GPUs.
        setup: shell lines before each job.
        array_limit: trainings at a time; None for no limit.
        signal_seconds: seconds before the time limit at which a training is asked to stop.
    """

    partition: str | None
    lines: tuple[str, ...]
    cpu_partition: str | None
    cpu_lines: tuple[str, ...] | None
    setup: tuple[str, ...]
    array_limit: int | None
    signal_seconds: int


@dataclass(frozen=True)
class FindBest:
    """The step `nnUNetv2_find_best_configuration`; `ensembling` is whether it tries ensembles."""

    ensembling: bool


@dataclass(frozen=True)
class Compare:
    """The step `nnUNetv2_ext compare`; `options` are further words of its command line."""

    options: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """Everything of an experiment file.

    Attributes:
        file: the file.
        name: name of the experiment, of its folder, and of its jobs on a cluster.
        datasets: numbers or names of datasets.
        configurations, plans, trainers: names.
        folds: fold numbers, or `all` alone.
        training, resources, slurm: see there.
        find_best, compare: the last steps; None where they are left out.
        report: folder of the results.
    """

    file: Path
    name: str
    datasets: tuple[str, ...]
    configurations: tuple[str, ...]
    plans: tuple[str, ...]
    trainers: tuple[str, ...]
    folds: tuple[str, ...]
    training: Training
    resources: Resources
    slurm: Slurm
    find_best: FindBest | None
    compare: Compare | None
    report: Path

    @property
    def folder(self) -> Path:
        """Folder of logs, state and scripts."""
        return self.file.parent / self.name


def read_experiment(path: str | Path) -> Experiment:
    """Read an experiment file.

    Raises:
        UserError: if there is no such file, it is no YAML, or a key or a value is not one that there is.
    """
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise UserError(f"There is no file {file}: write one with `nnUNetv2_ext run FILE --init`.")
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{file} must end in .yaml: an experiment's folder has its name without the ending.")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    top = Section(file, content, [name for name in Experiment.__dataclass_fields__ if name != "file"])
    name = top.take(
        "name",
        file.stem,
        lambda value: value if isinstance(value, str) and re.fullmatch(r"\w[\w.-]*", value) else None,
        "a word of letters, digits, _, - and .",
    )
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise top.error("name", "is missing: the file's name cannot be one, since it has other signs than letters")
    word, listed = r"[\w.-]+", "a list of different names"
    report = top.take("report", f"{name}/report", lambda value: value if isinstance(value, str) else None, "a folder")
    folds = top.words("folds", r"\d+|all", "a list of different fold numbers, or [all]", required=True)
    if "all" in folds and len(folds) > 1:
        raise top.error("folds", "has `all` beside others: put it into an experiment of its own")
    training = _read_training(top)
    return Experiment(
        file=file,
        name=name,
        datasets=top.words("datasets", r"\d+|Dataset\d{3,}_.+", "a list of different numbers or names", required=True),
        configurations=top.words("configurations", word, listed, required=True),
        plans=top.words("plans", word, listed, required=True) if "plans" in top.content else ("nnUNetPlans",),
        trainers=top.words("trainers", word, listed, required=True),
        folds=folds,
        training=training,
        resources=_read_resources(top, training),
        slurm=_read_slurm(top),
        find_best=None
        if top.switched_off("find_best")
        else FindBest(top.part("find_best", ["ensembling"]).flag("ensembling", True)),
        compare=None
        if top.switched_off("compare")
        else Compare(top.part("compare", ["options"]).words("options", r".+", "a list of words")),
        report=file.parent / Path(report).expanduser(),
    )


def _read_training(top: Section) -> Training:
    section = top.part("training", list(Training.__dataclass_fields__))
    nothing: dict[str, str] = {}
    weights = section.take("pretrained_weights", nothing, _texts, "a file per trainer")
    for trainer in weights:
        if trainer not in top.content.get("trainers", ()):
            raise section.error("pretrained_weights", f"names {trainer}, which is not one of the trainers")
    return Training(
        device=section.take("device", "cuda", lambda value: value if value in DEVICES else None, ", ".join(DEVICES)),
        num_gpus=section.number("num_gpus", 1),
        npz=section.flag("npz", False),
        pretrained_weights={name: top.file.parent / Path(path).expanduser() for name, path in weights.items()},
        environment=section.take("environment", nothing, _texts, "texts or numbers by name (quote true and false)"),
    )


def _texts(value: Any) -> dict[str, str] | None:
    if not isinstance(value, dict) or not all(type(entry) in (str, int, float) for entry in value.values()):
        return None
    return {str(name): str(entry) for name, entry in value.items()}


def _read_resources(top: Section, training: Training) -> Resources:
    section = top.part("resources", list(Resources.__dataclass_fields__))

    def ids(value: Any) -> tuple[str, ...] | None:
        if type(value) is int and value >= 0:
            visible = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word]
            return tuple(visible[:value]) if len(visible) >= value else tuple(str(number) for number in range(value))
        if isinstance(value, list) and len({str(entry) for entry in value}) == len(value):
            return tuple(str(entry) for entry in value)
        return None

    gpus = section.take("gpus", ids(1 if training.device == "cuda" else 0) or (), ids, "a number, or a list of ids")
    if gpus and len(gpus) < training.num_gpus:
        raise section.error("gpus", f"has {len(gpus)}, and training.num_gpus asks for {training.num_gpus}")
    return Resources(
        gpus=gpus,
        cores=section.number("cores", 8),
        memory_gb=section.number("memory_gb", 32),
        hours=section.take(
            "hours", 48, lambda value: value if type(value) in (int, float) and value > 0 else None, "a number above 0"
        ),
    )


def _read_slurm(top: Section) -> Slurm:
    section = top.part("slurm", list(Slurm.__dataclass_fields__))
    option, wanted = r"--?\w.*", "a list of options, as --gres=gpu:1"

    def partition(key: str) -> str | None:
        return section.take(key, None, lambda value: value if isinstance(value, str) else None, "a name")

    return Slurm(
        partition=partition("partition"),
        lines=section.words("lines", option, wanted),
        cpu_partition=partition("cpu_partition"),
        cpu_lines=section.words("cpu_lines", option, wanted) if "cpu_lines" in section.content else None,
        setup=section.words("setup", r".*", "a list of shell lines"),
        array_limit=section.number("array_limit", 0) or None,
        signal_seconds=section.number("signal_seconds", 600),
    )


def write_template(path: str | Path) -> Path:
    """Write a commented experiment file, and return its path.

    Raises:
        UserError: if the file exists, or does not end in .yaml.
    """
    file = Path(path).expanduser().absolute()
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{file} must end in .yaml: an experiment's folder has its name without the ending.")
    if file.exists():
        raise UserError(f"{file} exists, and is left as it is: name another file.")
    prepare_file(file, overwrite=False)
    with whole_file(file) as partial:
        partial.write_bytes(files(__package__).joinpath("templates", "experiment.yaml").read_bytes())
    return file
