"""Colour images, as in histology: three channels in one file, through nnU-Net's own commands to a prediction."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import io

from nnunetv2_ext.architectures.danie import DANIE
from nnunetv2_ext.commands.plans import write_network_plans
from tests.planned_data import PlannedData, clean_environment, run

pytestmark = [pytest.mark.commands, pytest.mark.slow]

DATASET, SIZE, N_TRAIN = "Dataset851_Glands", (72, 88), 5
TRAINER = "nnUNetTrainer_1epoch_2iters_bs2_NoMirroring"
PLANS = "nnUNetPlans_DANIE_S"


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw pink tissue with a few dark rings around pale holes; give the image and the glands."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    image = np.broadcast_to(np.array([225.0, 180.0, 205.0]), (*SIZE, 3)).copy()
    glands = np.zeros(SIZE, dtype=np.uint8)
    for _ in range(3):
        centre, radius = rng.uniform(15, np.array(SIZE) - 15), rng.uniform(8, 14)
        distance = np.hypot(rows - centre[0], columns - centre[1]) / radius
        image[distance < 1] = (130, 70, 150)
        image[distance < 0.6] = (245, 235, 240)
        glands[distance < 1] = 1
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8), glands


def write_dataset(raw: Path) -> None:
    rng = np.random.default_rng(0)
    folders = {name: raw / DATASET / name for name in ("imagesTr", "labelsTr", "imagesTs")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for number in range(N_TRAIN + 1):
        image, glands = draw(rng)
        trains = number < N_TRAIN
        name = f"gland_{number:03d}"
        io.imsave(folders["imagesTr" if trains else "imagesTs"] / f"{name}_0000.png", image)
        if trains:
            io.imsave(folders["labelsTr"] / f"{name}.png", glands, check_contrast=False)
    description = {
        "channel_names": {"0": "red", "1": "green", "2": "blue"},
        "labels": {"background": 0, "gland": 1},
        "numTraining": N_TRAIN,
        "file_ending": ".png",
    }
    (raw / DATASET / "dataset.json").write_text(json.dumps(description))


def test_colour_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan, preprocess, train and predict, with plans that name DANIE so that it can be narrow."""
    data = PlannedData(*(tmp_path / name for name in ("raw", "preprocessed", "results")))
    for folder in (data.preprocessed, data.results):
        folder.mkdir()
    write_dataset(data.raw)
    environment = clean_environment(**data.folder_variables())

    def command(*words: str, **variables: str) -> None:
        run(*words, environment={**environment, **variables}, cwd=tmp_path)

    command("nnUNetv2_plan_and_preprocess", "-d", "851", "-c", "2d", "-np", "1", "-npfp", "1", "--no_pbar")
    monkeypatch.setenv("nnUNet_preprocessed", str(data.preprocessed))
    path, _ = write_network_plans("851", "DANIE_S")
    plans = json.loads(path.read_text())
    planned = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert planned["backbone"] == "maxvit_rmlp_tiny_rw_256"
    planned.update(DANIE.narrow_settings)
    path.write_text(json.dumps(plans))

    command("nnUNetv2_train", "851", "2d", "all", "-p", PLANS, "-tr", TRAINER, "-device", "cpu", nnUNet_n_proc_DA="0")
    fold = data.results / DATASET / f"{TRAINER}__{PLANS}__2d" / "fold_all"
    tensors = torch.load(fold / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert tensors["sap.stem.conv1.weight"].shape[1] == tensors["hap.embedding.conv1.weight"].shape[1] == 3
    assert math.isfinite(json.loads((fold / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"])

    command(
        *("nnUNetv2_predict", "-d", "851", "-c", "2d", "-f", "all", "-p", PLANS, "-tr", TRAINER),
        *("-i", str(data.raw / DATASET / "imagesTs"), "-o", str(tmp_path / "predicted")),
        *("-device", "cpu", "-npp", "0", "-nps", "0", "--disable_progress_bar"),
    )
    (segmentation,) = (tmp_path / "predicted").glob("*.png")
    labels = io.imread(segmentation)
    assert labels.shape == SIZE
    assert set(np.unique(labels)) <= {0, 1}
