"""The build context of a container for FLARE.

Source of the interface: the challenge's pages and scripts (flare.grand-challenge.org, JunMa11/FLARE): an image
`<team>:latest`, saved as `<team>.tar.gz`, with `/workspace/predict.sh`, which finds `inputs/CASE_0000.nii.gz` and
writes `outputs/CASE.nii.gz`.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

import torch

import nnunetv2_ext
from nnunetv2_ext.datasets import flare21, flare22, flare23
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.labels import read_dataset_json, same_classes
from nnunetv2_ext.inference.backends import load_predictor, require_package
from nnunetv2_ext.inference.checkpoints import CHECKPOINT, export_model, read_checkpoints
from nnunetv2_ext.inference.trained import TrainedModel
from nnunetv2_ext.io.files import prepare_output, whole_folder
from nnunetv2_ext.submission.laptop import require_memory, write_graphs
from nnunetv2_ext.submission.predict import ENDING
from nnunetv2_ext.submission.requirements import pinned_requirements

__all__ = ["submit_flare"]

# A name of an image that every container engine takes: lower case, with single separators inside.
_TEAM = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_TEMPLATES = {
    "Dockerfile": "Dockerfile",
    "dockerignore": ".dockerignore",
    "predict.sh": "predict.sh",
    "README.md": "README.md",
}
# Where torch's builds for the CPU are.
_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# What the laptop of the challenge runs, which has no GPU.
_LAPTOP_TEMPLATES = {"Dockerfile.laptop": "Dockerfile"}
_EDITIONS = {flare21.NAME: flare21.LABELS, flare22.NAME: flare22.ORGANS, flare23.NAME: flare23.LABELS}


def submit_flare(
    model: Path,
    team: str,
    output: Path,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = CHECKPOINT,
    mirroring: bool = False,
    step_size: float = 0.5,
    not_on_device: bool = False,
    laptop: bool = False,
    overwrite: bool = False,
) -> tuple[TrainedModel, list[str]]:
    """Write a folder from which `docker build` makes the image that FLARE wants.

    Args:
        model: folder of a trained model, or a zip file of nnU-Net with one.
        team: name of the image, in lower case.
        output: folder to write.
        folds: which to take, as `0` or `all`; by default all numbered ones, or `all` where there is no other.
        checkpoint: file name in each fold's folder.
        mirroring: average over mirrored images at test time.
        step_size: step of the sliding window, as a share of the patch.
        not_on_device: keep the sums of windows in main memory instead of the GPU's.
        laptop: whether it is for the tasks without a GPU: OpenVINO instead of torch's network, 8 GB, and no CUDA in the
            image.
        overwrite: replace an earlier build context.

    Returns:
        What was exported, and remarks for the user, one sentence each.

    Raises:
        UserError: in one sentence, for whatever cannot be submitted. Nothing is written then.
    """
    if not _TEAM.fullmatch(team):
        raise UserError(
            f"The team {team!r} cannot name an image: use lower-case letters and digits, joined by one dot, dash or "
            "underscore."
        )
    if not 0 < step_size <= 1:
        raise UserError(f"The step size is {step_size}: choose a share of the patch above 0 and up to 1.")
    prepare_output(
        output, kind="an earlier build context", holds=("Dockerfile", "predict.sh", "model"), overwrite=overwrite
    )
    if laptop:
        for needed in ("onnx", "onnxscript", "onnxruntime", "openvino"):
            require_package(needed)
    pins, remarks = pinned_requirements(also=("openvino",) if laptop else (), without_gpu=laptop)
    with whole_folder(output) as folder:
        (folder / "model").mkdir()
        exported = export_model(model, folder / "model", folds=folds, checkpoint=checkpoint)
        _check_model(folder / "model", exported)
        remarks = [*_remark_on_model(folder / "model", exported), *remarks]
        if laptop:
            shutil.rmtree(folder / "model")
            (folder / "model").mkdir()
            write_graphs(exported, folder / "model")
            require_memory(folder / "model", exported)
        options = [f" --step-size {step_size}", *([" --mirroring"] if mirroring else [])]
        options += [" --not-on-device"] if not_on_device else []
        values = {
            "team": team,
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
            "options": "".join(options),
            "trainer": exported.trainer,
            "plans": exported.plans,
            "configuration": exported.configuration,
            "folds": f"fold{'s' if len(exported.folds) > 1 else ''} {', '.join(exported.folds)}",
            "dataset": exported.dataset,
            "labels": exported.labels,
            "mirroring": "yes" if mirroring else "no",
            "step_size": str(step_size),
            "limits": "-m 8G" if laptop else '--gpus "device=0" -m 28G',
            "index": f" --extra-index-url {_TORCH_INDEX}" if laptop else "",
            "torch_index": _TORCH_INDEX,
            "computes": (
                "It computes on the CPU, with OpenVINO."
                if laptop
                else "Without a GPU it computes on the CPU, and says so in its first lines."
            ),
        }
        templates = {**_TEMPLATES, **_LAPTOP_TEMPLATES} if laptop else _TEMPLATES
        for template, name in templates.items():
            text = files(nnunetv2_ext).joinpath("submission", "templates", template).read_text(encoding="utf-8")
            (folder / name).write_text(Template(text).substitute(values), encoding="utf-8")
        (folder / "predict.sh").chmod(0o755)
        (folder / "requirements.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
        package = Path(nnunetv2_ext.__file__).parent
        shutil.copytree(package, folder / "nnunetv2_ext", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    return exported, remarks


def _check_model(folder: Path, exported: TrainedModel) -> None:
    """Load the model as the container will, and raise unless it can read what the challenge hands over."""
    previous = exported.planned.previous_stage
    if previous is not None:
        raise UserError(
            f"{exported.configuration} needs the predictions of {previous}: submit a model that works alone."
        )
    if len(exported.channels) != 1:
        raise UserError(
            f"The model was trained on {len(exported.channels)} channels ({', '.join(exported.channels)}), and the "
            "challenge hands over one: submit another."
        )
    predictor = load_predictor(read_checkpoints(folder), device=torch.device("cpu"), perform_everything_on_device=False)
    reader = predictor.plans_manager.image_reader_writer_class
    if ENDING not in reader.supported_file_endings:
        raise UserError(
            f"The model reads its images with {reader.__name__}, which does not read the challenge's {ENDING} files: "
            "train it on such files."
        )


def _remark_on_model(folder: Path, exported: TrainedModel) -> list[str]:
    classes = read_dataset_json(folder / "dataset.json").classes
    edition = next((name for name, labels in _EDITIONS.items() if same_classes(classes, labels)), None)
    if edition is not None:
        remarks = [f"The labels are those of {edition}."]
    else:
        remarks = [
            f"The labels ({exported.labels}) are not those of {', '.join(_EDITIONS)}: the challenge scores by number, "
            "so compare them with its list."
        ]
    if len(exported.folds) > 1:
        remarks.append(
            f"{len(exported.folds)} folds are averaged, which takes {len(exported.folds)} times as long as one: choose "
            "with -f."
        )
    return remarks
