"""The build context for FLARE's laptop: complete, linted, run within 8 GB, and refused where that is too little."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.inference.checkpoints import read_checkpoints
from nnunetv2_ext.submission import flare, laptop
from nnunetv2_ext.submission.flare import submit_flare
from nnunetv2_ext.submission.requirements import pinned_requirements
from tests.planned_data import clean_environment
from tests.submission.test_flare import lint
from tests.submission.test_requirements import install
from tests.test_cli import refuse

LIMITS = "ulimit -v 8388608"  # KiB


@pytest.mark.commands
@pytest.mark.slow
def test_runs_within_the_laptops_memory(make_model: Callable[..., Path], inputs: Path, tmp_path: Path) -> None:
    """As the challenge starts it, on two cases; the segmentation is nnU-Net's but for rounding."""
    pytest.importorskip("openvino")
    folder, context = make_model(), tmp_path / "context"
    _, remarks = submit_flare(folder, "team", context, laptop=True)
    assert {path.name for path in (context / "model").iterdir()} == {"fold_0.xml", "fold_0.bin"}
    assert lint("hadolint", context / "Dockerfile") == ""
    assert lint("shellcheck", context / "predict.sh") == ""
    readme, dockerfile = (context / "README.md").read_text(), (context / "Dockerfile").read_text()
    assert "docker container run -m 8G --name team --rm" in readme
    assert "--gpus" not in readme + dockerfile
    assert "NVIDIA" not in dockerfile
    # Said, but not done: the challenge does not either.
    assert "--shm-size=" not in readme
    requirements = (context / "requirements.txt").read_text().splitlines()
    assert next(line for line in requirements if line.startswith("torch==")).endswith("+cpu")
    assert any(line.startswith("openvino==") for line in requirements)
    assert not [line for line in requirements if line.startswith(("nvidia", "triton"))]
    assert not [remark for remark in remarks if "special build" in remark]

    environment = clean_environment(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        nnUNet_ext_NO_AUTOLOAD="1",
        https_proxy="http://127.0.0.1:9",
    )
    environment.pop("PYTHONPATH", None)
    shutil.copytree(inputs, context / "inputs")
    command = ["/bin/bash", "-c", f"{LIMITS} && sh {context / 'predict.sh'}"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[2/2] FLARETs_0001: " in done.stdout
    stock = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    stock.initialize_from_trained_model_folder(str(folder), (0,))
    (tmp_path / "stock").mkdir()
    stock.predict_from_files_sequential(str(inputs), str(tmp_path / "stock"))
    for path in (tmp_path / "stock").glob("*.nii.gz"):
        expected, got = (
            np.asarray(nibabel.load(one / path.name).dataobj) for one in (path.parent, context / "outputs")
        )
        # Random weights leave voxels where two labels are nearly equal.
        assert (expected != got).mean() < 1e-3


def test_a_model_that_does_not_fit_is_refused_in_a_sentence(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here with less memory than any model needs."""
    pytest.importorskip("openvino")
    folder = make_model(configuration="2d")
    monkeypatch.setattr(flare, "require_memory", lambda *given: laptop.require_memory(*given, memory=0.25))
    refuse(
        "A window of 2d (48 x 48 voxels) cannot be computed in 0.25 GB of memory, which is all that the laptop has",
        *("submit", "flare", "--laptop", "--model", str(folder), "--team", "team", "-o", str(tmp_path / "context")),
    )
    assert not (tmp_path / "context").exists()


def test_files_that_cannot_be_used_are_not_called_too_large(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may be named relative to where the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "graphs").mkdir()
    model = read_checkpoints(make_model(configuration="2d"))
    with pytest.raises(UserError, match=r"^The files for OpenVINO cannot be used \(error: .*/graphs holds no model"):
        laptop.require_memory(Path("graphs"), model)


def test_pins_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an environment whose torch brings CUDA."""
    install(tmp_path, "mine", needs=("torch", "numpy"))
    install(tmp_path, "torch", "2.13.0+cu130", needs=("numpy", "nvidia-cublas", "triton"))
    install(tmp_path, "nvidia_cublas", needs=("nvidia_nvrtc",))
    for name in ("numpy", "triton", "openvino"):
        install(tmp_path, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert pinned_requirements("mine", also=("openvino",), without_gpu=True) == (
        ["numpy==1.0", "openvino==1.0", "torch==2.13.0+cpu"],
        [],
    )
