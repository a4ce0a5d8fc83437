"""Compare an exported network with torch: labels voxel by voxel, seconds per case, and peak memory.

Each network of the list is trained for a few steps on a planned dataset, exported with OpenVINO's files beside, and
predicts the dataset's test images with each backend, in a process of its own that has one thread. Memory is the
largest resident size of that process, with Python, torch and nnU-Net in it; seconds are process time. The table goes
into docs/benchmarks.md.

Usage: python -m benchmarks.deployment DATASET [--steps N] [--only TRAINER:CONFIGURATION ...] [--print]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.export import peak_mib
from benchmarks.page import write_block
from nnunetv2_ext.inference.backends import BACKENDS, load_predictor
from nnunetv2_ext.inference.cases import find_cases, prepare_case
from nnunetv2_ext.inference.checkpoints import read_checkpoints
from nnunetv2_ext.inference.export import export_graphs
from nnunetv2_ext.inference.models import read_model
from nnunetv2_ext.inference.sample import take_sample
from nnunetv2_ext.inference.segmentation import segment_by_class
from nnunetv2_ext.io.tables import format_table
from nnunetv2_ext.plans.dataset import read_planned_dataset
from nnunetv2_ext.trainers import find_own_trainer

CONFIGURATIONS = {2: "2d", 3: "3d_fullres"}
# One network per family, and the dimensions that it serves.
NETWORKS = {
    "nnUNetTrainerPECANet": (3, 2),
    "nnUNetTrainerDCA": (3, 2),
    "nnUNetTrainerDCAUNet": (3, 2),
    "nnUNetTrainerSwinUNETRRecA": (3, 2),
    "nnUNetTrainerNNFormerRecA": (3, 2),
    "nnUNetTrainerSwinUNetRecA": (2,),
    "nnUNetTrainerDATransUNetRecA": (2,),
    "nnUNetTrainerDANIE_S": (2,),
}
FILES = {"onnxruntime": "model.onnx", "openvino": "model.xml"}


def train(name: str, configuration: str, dataset: str, steps: int, results: Path) -> Path:
    """Train for a few steps of a training of one epoch, which has no warm-up, and return the model's folder."""
    os.environ.update(nnUNet_results=str(results), nnUNet_n_proc_DA="0", nnUNet_compile="f")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    planned = read_planned_dataset(dataset)
    plans = {**planned.plans, "continue_training": False}
    trainer = find_own_trainer(f"{name}_1epoch")(plans, configuration, "all", planned.dataset_json, torch.device("cpu"))
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.initialize()
        trainer.on_train_start()
        trainer.on_train_epoch_start()
    for _ in range(steps):
        trainer.train_step(next(trainer.dataloader_train))
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    return Path(trainer.output_folder_base)


def export(folder: Path, work: Path) -> dict[str, float]:
    """Export a model, and return the largest difference of logits per backend on a real window."""
    torch.set_num_threads(1)
    model = read_checkpoints(folder)
    found = export_graphs(model, work / FILES["onnxruntime"], take_sample(model), openvino=True)
    return {one.backend: one.difference for one in found}


def predict(source: Path, backend: str, images: Path) -> tuple[list[np.ndarray], float, float]:
    """Return segmentations, seconds of process time per case, and the peak memory in MiB."""
    torch.set_num_threads(1)
    model = read_model(source)
    predictor = load_predictor(
        model, backend=backend, device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False,
        perform_everything_on_device=False,
    )  # fmt: skip
    cases, _ = find_cases(images, model)
    segmentations, start = [], time.process_time()
    for case in cases:
        data, properties = prepare_case(case, predictor)
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
        segmentations.append(segment_by_class(logits, properties, predictor))
    return segmentations, (time.process_time() - start) / len(cases), peak_mib()


def in_process(function: Any, *arguments: Any) -> Any:
    """Call a function in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measure(name: str, configuration: str, dataset: str, steps: int, images: Path) -> list[str]:
    """Return a row of the table."""
    work = Path(tempfile.mkdtemp())
    try:
        folder = in_process(train, name, configuration, dataset, steps, work)
        differences = in_process(export, folder, work)
        found = {
            backend: in_process(predict, work / FILES[backend] if backend in FILES else folder, backend, images)
            for backend in BACKENDS
        }
    finally:
        shutil.rmtree(work)
    expected = found["torch"][0]
    cells = [f"{name.removeprefix('nnUNetTrainer')}, {configuration}"]
    cells += [f"{seconds:.2f}" for _, seconds, _ in found.values()]
    cells += [f"{memory:,.0f}" for *_, memory in found.values()]
    voxels = sum(one.size for one in expected)
    for backend in FILES:
        other = sum(int((one != two).sum()) for one, two in zip(expected, found[backend][0], strict=True))
        cells.append(f"{other} of {voxels:,} ({differences[backend]:.0e})")
    labels = len(np.unique(np.concatenate([one.ravel() for one in expected])))
    return [*cells, str(labels)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="number or name of a planned dataset with test images")
    parser.add_argument("--steps", type=int, default=10, help="of training (default: %(default)s)")
    parser.add_argument("--only", nargs="+", help="some of the networks, as nnUNetTrainerPECANet:2d")
    parser.add_argument("--print", action="store_true", help="print the table instead of writing it into the page")
    arguments = parser.parse_args()
    planned = read_planned_dataset(arguments.dataset)
    images = Path(os.environ["nnUNet_raw"]) / planned.folder.name / "imagesTs"
    wanted = arguments.only or [
        f"{name}:{CONFIGURATIONS[dims]}" for name, served in NETWORKS.items() for dims in served
    ]
    rows = []
    for one in wanted:
        name, _, configuration = one.partition(":")
        start = time.perf_counter()
        rows.append(measure(name, configuration, arguments.dataset, arguments.steps, images))
        print(f"{' | '.join(rows[-1])} ({time.perf_counter() - start:.0f} s)", flush=True)
    headers = ["network"]
    headers += [f"{backend}, s" for backend in BACKENDS] + [f"{backend}, MiB" for backend in BACKENDS]
    headers += [f"{backend}: other labels (logits)" for backend in FILES] + ["labels seen"]
    sizes = "; ".join(
        f"{name}: window {' x '.join(map(str, planned.configuration(name).configuration_manager.patch_size))}"
        for name in CONFIGURATIONS.values()
    )
    text = (
        f"{planned.folder.name}, {sizes}; {len(list(images.iterdir()))} test images, {arguments.steps} steps of "
        f"training, no mirroring; {platform.machine()} CPU, one thread, torch {torch.__version__}, onnxruntime "
        f"{version('onnxruntime')}, OpenVINO {version('openvino')}.\n\n" + format_table(headers, rows, markdown=True)
    )
    if arguments.print:
        print(text)
    else:
        write_block("deployment", text)


if __name__ == "__main__":
    main()
