"""Where a training's curves go, beside nnU-Net's own log: a CSV file, TensorBoard, MLflow.

A sink is opened when a training starts or goes on, with the epoch that comes next: what it holds of that epoch and
later ones is from before a crash, and is taken back or, where that is impossible, not written twice.
"""

from __future__ import annotations

import csv
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.files import whole_file

__all__ = ["LOG_VARIABLE", "SINKS", "CSVSink", "MLflowSink", "Sink", "TensorBoardSink", "chosen_sinks", "open_sink"]

LOG_VARIABLE = "nnUNet_ext_log"
CSV_FILE = "log.csv"
TENSORBOARD_FOLDER = "tensorboard"
MLFLOW_RUN_FILE = "mlflow_run_id.txt"
_EPOCH = "epoch"


class Sink(Protocol):
    """Takes the numbers of each epoch."""

    def record(self, epoch: int, values: Mapping[str, float]) -> None:
        """Write the numbers of an epoch, by name."""

    def summarise(self, name: str, value: float) -> None:
        """Write a number that belongs to the training as a whole."""

    def close(self, finished: bool) -> None:
        """End; `finished` says whether the last epoch was trained."""


class CSVSink:
    """One row per epoch in `log.csv`, which is there whole after each; it has no place for numbers of a whole training.

    Args:
        folder: folder of the fold.
        first_epoch: the epoch that comes next; rows from it on are taken back.
        run: what the training is, by name.
    """

    def __init__(self, folder: Path, first_epoch: int, run: Mapping[str, str]) -> None:
        self.path = folder / CSV_FILE
        self.rows: list[dict[str, Any]] = []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row[_EPOCH]) < first_epoch]

    def record(self, epoch: int, values: Mapping[str, float]) -> None:
        self.rows.append({_EPOCH: epoch, **values})
        # A training that goes on elsewhere can have other columns, such as a GPU's memory.
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with whole_file(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def summarise(self, name: str, value: float) -> None:
        pass

    def close(self, finished: bool) -> None:
        pass


class TensorBoardSink:
    """Scalars in the folder `tensorboard`; see `CSVSink` for the arguments."""

    def __init__(self, folder: Path, first_epoch: int, run: Mapping[str, str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Readers drop what earlier files hold of that step and later ones.
        self.writer: Any = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=first_epoch)
        self.epoch = first_epoch

    def record(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.epoch = epoch
        self.writer.flush()

    def summarise(self, name: str, value: float) -> None:
        self.writer.add_scalar(name, value, self.epoch)
        self.writer.flush()

    def close(self, finished: bool) -> None:
        self.writer.flush()


class MLflowSink:
    """A run of MLflow, whose id is kept in the fold's folder; see `CSVSink` for the arguments.

    MLflow cannot take back: an epoch that is trained again keeps its first numbers. Where runs go is MLflow's own
    setting, `MLFLOW_TRACKING_URI`; the experiment is `MLFLOW_EXPERIMENT_NAME`, or called like the dataset.
    """

    def __init__(self, folder: Path, first_epoch: int, run: Mapping[str, str]) -> None:
        from mlflow import MlflowClient

        self.client: Any = MlflowClient()
        self.written = -1
        kept = folder / MLFLOW_RUN_FILE
        if first_epoch and kept.is_file():
            self.run_id = kept.read_text(encoding="utf-8").strip()
            self.written = max(
                (int(one.value) for one in self.client.get_metric_history(self.run_id, _EPOCH)), default=-1
            )
            self.client.update_run(self.run_id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run["dataset"]
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        title = f"{run['trainer']} {run['configuration']} fold {run['fold']}"
        self.run_id = self.client.create_run(experiment_id, run_name=title).info.run_id
        for key, value in run.items():
            self.client.log_param(self.run_id, key, value)
        with whole_file(kept) as partial:
            partial.write_text(self.run_id + "\n", encoding="utf-8")

    def record(self, epoch: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if epoch <= self.written:
            return
        now = int(time.time() * 1000)
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        metrics = [Metric(_allowed(name), value, now, epoch) for name, value in {**finite, _EPOCH: epoch}.items()]
        self.client.log_batch(self.run_id, metrics=metrics)
        self.written = epoch

    def summarise(self, name: str, value: float) -> None:
        if math.isfinite(value):
            self.client.log_metric(self.run_id, _allowed(name), float(value))

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


def _allowed(name: str) -> str:
    """Replace what MLflow does not take in names."""
    return re.sub(r"[^\w\-. /]", "_", name)


SINKS: dict[str, Callable[[Path, int, Mapping[str, str]], Sink]] = {
    "csv": CSVSink,
    "tensorboard": TensorBoardSink,
    "mlflow": MLflowSink,
}


def chosen_sinks() -> Sequence[str]:
    """Read which sinks the variable `nnUNet_ext_log` names, separated by commas.

    Raises:
        UserError: for an unknown one, or one whose library is not installed.
    """
    value = os.environ.get(LOG_VARIABLE, "")
    names = list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    for name in names:
        if name not in SINKS:
            raise UserError(f"{LOG_VARIABLE} is {value!r}, which has {name!r}: it takes {', '.join(SINKS)}, by commas.")
        if name != "csv" and find_spec(name) is None:
            raise UserError(
                f"{LOG_VARIABLE} has {name}, which is not installed: run pip install 'nnunetv2_ext[{name}]', or leave "
                "it out."
            )
    return names


def open_sink(name: str, folder: Path, first_epoch: int, run: Mapping[str, str]) -> Sink:
    """Open a sink, a key of `SINKS`; see `CSVSink` for the other arguments.

    Raises:
        UserError: if that fails, as for a server out of reach; says why.
    """
    try:
        return SINKS[name](folder, first_epoch, run)
    except Exception as error:
        # Each library has types of errors of its own.
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise UserError(f"{name} of {LOG_VARIABLE} cannot be opened ({reason}): mend that, or leave it out.") from error
