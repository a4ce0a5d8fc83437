"""A trained model from wherever it lies: a folder or zip file of nnU-Net, or files of `nnUNetv2_ext export`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.inference.checkpoints import CHECKPOINT, read_checkpoints
from nnunetv2_ext.inference.graphs import find_graphs, read_graphs
from nnunetv2_ext.inference.trained import TrainedModel

__all__ = ["find_result", "read_model"]


def read_model(
    source: Path, *, folds: Sequence[str] | None = None, checkpoint: str = CHECKPOINT, backend: str | None = None
) -> TrainedModel:
    """Read a trained model; nothing that its files hold is executed.

    Args:
        source: folder of a trained model, a zip file of nnU-Net with one, an .onnx or .xml file, or a folder of such.
        folds: which to take, as `0` or `all`; by default all numbered ones, or `all` where there is no other.
        checkpoint: file name in each fold's folder.
        backend: that is to compute it; chooses where a folder holds .onnx and .xml files.

    Raises:
        UserError: if something is missing, damaged, or of another package.
    """
    graphs = find_graphs(source, backend)
    if graphs:
        return read_graphs(source, graphs, folds=folds)
    if source.is_dir() and not (source / "plans.json").is_file():
        raise UserError(
            f"{source} holds no model: it has neither the plans.json of a trained model nor files fold_*.onnx or "
            "fold_*.xml."
        )
    return read_checkpoints(source, folds=folds, checkpoint=checkpoint)


def find_result(dataset: str, configuration: str, trainer: str, plans: str) -> Path:
    """Find the folder of a trained model among nnU-Net's results.

    Args:
        dataset: number or name.
        configuration: name of the configuration, such as 3d_fullres.
        trainer: name of its class.
        plans: identifier of the plans.

    Raises:
        UserError: if nnU-Net's folder is not set, or there is no such model; names those that exist.
    """
    results = os.environ.get("nnUNet_results")
    if not results:
        raise UserError(
            "The environment variable nnUNet_results is not set: export it, or name the model's folder with -m."
        )
    prefix = f"Dataset{int(dataset):03d}_*" if dataset.isdigit() else dataset
    name = f"{trainer}__{plans}__{configuration}"
    trained = [path for folder in sorted(Path(results).glob(prefix)) for path in sorted(folder.glob("*__*__*"))]
    found = [path for path in trained if path.name == name]
    if len(found) != 1:
        there = f"; there are {', '.join(path.name for path in trained)}" if trained else ""
        raise UserError(f"There is no model {name} of dataset {dataset} in {results}{there}: train it first.")
    return found[0]
