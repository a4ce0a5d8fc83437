"""The folder for a model hub: it loads after a download, its card parses, and nothing in it tells of its origin."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from safetensors import safe_open

from nnunetv2_ext import cli
from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.submission.credits import citations
from nnunetv2_ext.submission.hub import submit_hub
from tests.planned_data import REGIONS
from tests.submission.conftest import TRAINER
from tests.test_cli import refuse

SECRETS = ("gpu-node-17.example", "jane_doe", "/cluster/home/jane_doe")


def summary(dice: float) -> dict:
    return {
        "mean": {"1": {"Dice": dice}, "2": {"Dice": float("nan")}},
        "foreground_mean": {"Dice": dice},
        "metric_per_case": [{"prediction_file": f"{SECRETS[2]}/results/case.nii.gz"}] * 3,
    }


@pytest.fixture
def model(make_model: Callable[..., Path]) -> Path:
    """Make a model with everything in it that tells of its origin."""
    folder = make_model(folds=("0", "1"))
    for fold in ("0", "1"):
        path = folder / f"fold_{fold}" / "checkpoint_final.pth"
        content = torch.load(path, weights_only=False)
        content["init_args"]["dataset_json"] = {"root": SECRETS[2], "host": SECRETS[0]}
        content["logging"] = {"folder": SECRETS[2]}
        torch.save(content, path)
        (path.parent / "debug.json").write_text(json.dumps({"hostname": SECRETS[0], "output_folder": SECRETS[2]}))
        (path.parent / "training_log_2026.txt").write_text(SECRETS[1])
        (path.parent / "validation").mkdir()
        (path.parent / "validation" / "summary.json").write_text(json.dumps(summary(0.8 + int(fold) / 10)))
    description = json.loads((folder / "dataset.json").read_text())
    description["dataset"] = {"case": {"images": [f"{SECRETS[2]}/case_0000.nii.gz"], "label": SECRETS[2]}}
    (folder / "dataset.json").write_text(json.dumps({**description, "licence": "CC-BY-NC 4.0", "numTraining": 12}))
    return folder


def segment(folder: Path, inputs: Path, output: Path) -> dict[str, np.ndarray]:
    """Predict as nnUNetv2_predict does."""
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0, 1), "checkpoint_final.pth")
    output.mkdir()
    predictor.predict_from_files_sequential(str(inputs), str(output))
    return {path.name: np.asarray(nibabel.load(path).dataobj) for path in output.glob("*.nii.gz")}


def test_downloaded_folder_predicts_the_same_everywhere(model: Path, inputs: Path, tmp_path: Path) -> None:
    cli.main(["submit", "hub", "--model", str(model), "-o", str(tmp_path / "shared"), "--licence", "cc-by-4.0"])
    downloaded = shutil.copytree(tmp_path / "shared", tmp_path / "elsewhere" / "download")
    expected, got = segment(model, inputs, tmp_path / "before"), segment(downloaded, inputs, tmp_path / "after")
    assert expected.keys() == got.keys()
    assert len(got) == 2
    cli.main(["predict", "-i", str(inputs), "-o", str(tmp_path / "own"), "-m", str(downloaded), "--disable_tta"])
    for name, segmentation in expected.items():
        np.testing.assert_array_equal(got[name], segmentation)
        np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "own" / name).dataobj), segmentation)


def test_nothing_tells_of_its_origin(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: SECRETS[0])
    monkeypatch.setenv("USER", SECRETS[1])
    submit_hub(model, tmp_path / "shared")
    found = sorted(path.relative_to(tmp_path / "shared").as_posix() for path in (tmp_path / "shared").rglob("*.*"))
    weights = [f"fold_{fold}/checkpoint_final.{kind}" for fold in (0, 1) for kind in ("pth", "safetensors")]
    assert found == ["README.md", "dataset.json", *weights, "plans.json"]
    words = [*SECRETS, str(tmp_path), str(Path.home()), os.environ["nnUNet_results"]]
    for name in found:
        content = (tmp_path / "shared" / name).read_bytes()
        assert [word for word in words if word.encode() in content] == [], name
    for fold in (0, 1):
        checkpoint = torch.load(tmp_path / "shared" / f"fold_{fold}" / "checkpoint_final.pth", weights_only=True)
        assert checkpoint.keys() == {
            *("network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes"),
        }
        assert checkpoint["init_args"] == {"configuration": "3d_fullres"}
        with safe_open(tmp_path / "shared" / f"fold_{fold}" / "checkpoint_final.safetensors", "pt") as tensors:
            assert set(tensors.keys()) == set(checkpoint["network_weights"])
            for name, tensor in checkpoint["network_weights"].items():
                assert torch.equal(tensors.get_tensor(name), tensor)


def test_card_parses_and_is_filled(model: Path, tmp_path: Path) -> None:
    comparison = tmp_path / "comparison.json"
    trainers = {"nnUNetTrainer": {"n": 60, "mean": 0.891, "ci95": [0.884, 0.897]}}
    comparison.write_text(json.dumps({"reference": "nnUNetTrainer", "metric": "Dice", "trainers": trainers}))
    _, remarks = submit_hub(model, tmp_path / "shared", licence="cc-by-4.0", comparison=comparison)
    assert remarks == []
    card = ModelCard.load(tmp_path / "shared" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.pipeline_tag == "image-segmentation"
    assert {"nnU-Net", "medical-imaging", "3D", "CT"} <= set(card.data.tags)
    words = " ".join(card.text.split())
    for part in (
        f"| trainer | `{TRAINER}` |",
        "12 cases",
        "DCA on the planned network (`DCAPlannedNetwork`)",
        "-m MODEL -f 0 1",
        "use_folds=(0, 1,)",
        "| 0 | 3 | 0.8000 |",
        "| 1 | 3 | 0.9000 |",
        "Training data: CC-BY-NC 4.0.",
        "arXiv 2303.17696",
        "Nature Methods 18",
        "| `nnUNetTrainer` | 60 | 0.8910 | 0.8840 to 0.8970 |",
    ):
        assert part in " ".join(words.split()), part
    assert "$" not in card.text


def test_every_trainer_has_its_papers() -> None:
    for entry in TRAINERS:
        assert len(citations(entry)) >= 3, entry.name
    (pretrained,) = [entry for entry in TRAINERS if entry.name == "nnUNetTrainerSwinUNETRRecA_pretrained"]
    assert any("Tang" in line for line in citations(pretrained))
    assert any("RecA" in line for line in citations(pretrained))


def test_regions_without_scores(make_model: Callable[..., Path], tmp_path: Path) -> None:
    _, remarks = submit_hub(make_model(REGIONS, "2d"), tmp_path / "shared")
    assert [remark.split(":")[0] for remark in remarks] == [
        "The card states no licence of the weights",
        "No validation/summary.json was found, so the card has no scores.",
    ]
    assert "No scores came with the model." in (tmp_path / "shared" / "README.md").read_text()


def test_what_cannot_be_shared_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: SECRETS[0])

    def command(*options: str) -> list[str]:
        return ["submit", "hub", "--model", str(model), "-o", str(tmp_path / "shared"), *options]

    refuse("cannot be read as comparison.json", *command("--comparison", str(model / "plans.json")))
    refuse("Fold 4 of", *command("-f", "4"))
    description = json.loads((model / "dataset.json").read_text())
    for origin in (f"{tmp_path}/data", SECRETS[0]):
        (model / "dataset.json").write_text(json.dumps({**description, "description": f"from {origin}"}))
        refuse("dataset.json would tell", *command())
    (model / "dataset.json").write_text(json.dumps(description))
    (model / "fold_0" / "validation" / "summary.json").write_text("{}")
    refuse("summary.json is not nnU-Net's", *command())
    assert not (tmp_path / "shared").exists()
