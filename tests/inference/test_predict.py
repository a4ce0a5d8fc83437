"""Prediction gives nnU-Net's segmentations, whatever computes; it can be killed, and refuses in one sentence."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_ext import cli
from nnunetv2_ext.inference import backends, predict
from nnunetv2_ext.inference.backends import open_session
from tests.inference.conftest import Exported
from tests.planned_data import REGIONS, clean_environment
from tests.submission.test_flare import zip_model
from tests.test_cli import refuse

CPU = torch.device("cpu")


def command(model: Path, images: Path, output: Path, *options: str) -> list[str]:
    return ["predict", "-i", str(images), "-o", str(output), "-m", str(model), "--device", "cpu", *options]


def labels(folder: Path) -> dict[str, np.ndarray]:
    """Read the segmentations of a folder."""
    return {path.name: np.asarray(nibabel.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


def by_nnunet(model: Path, images: Path, output: Path, previous: Path | None = None, **settings: Any) -> Path:
    """Predict with nnU-Net's own predictor and export."""
    stock = nnUNetPredictor(device=CPU, allow_tqdm=False, **settings)
    stock.initialize_from_trained_model_folder(str(model), None)
    output.mkdir()
    stock.predict_from_files_sequential(
        str(images), str(output), folder_with_segs_from_prev_stage=None if previous is None else str(previous)
    )
    return output


def same(first: Path, second: Path, tolerated: float = 0) -> None:
    found, expected = labels(first), labels(second)
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert len(np.unique(one)) > 1
        assert np.mean(found[name] != one) <= tolerated


def test_torch_equals_nnunet_with_mirroring_folds_and_from_a_zip(exported: Exported, tmp_path: Path) -> None:
    expected = by_nnunet(exported.model, exported.images, tmp_path / "nnunet")
    cli.main(command(exported.model, exported.images, tmp_path / "folder"))
    same(tmp_path / "folder", expected)
    archive = zip_model(exported.model, tmp_path / "model.zip")
    cli.main(command(archive, exported.images, tmp_path / "zip", "-np", "0"))
    same(tmp_path / "zip", expected)
    # By these, nnU-Net's evaluation and postprocessing know the labels.
    for name in ("dataset.json", "plans.json"):
        assert json.loads((tmp_path / "zip" / name).read_text()) == json.loads((expected / name).read_text())


def test_regions_in_3d_equal_nnunet(make_model: Callable[..., Path], exported: Exported, tmp_path: Path) -> None:
    model = make_model(REGIONS, "3d_fullres")
    expected = by_nnunet(model, exported.images, tmp_path / "nnunet", use_mirroring=False, tile_step_size=0.75)
    cli.main(command(model, exported.images, tmp_path / "ours", "--disable_tta", "-step_size", "0.75"))
    same(tmp_path / "ours", expected)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_files_give_torchs_segmentations(exported: Exported, tmp_path: Path, backend: str) -> None:
    cli.main(command(exported.model, exported.images, tmp_path / "torch"))
    cli.main(command(exported.graphs, exported.images, tmp_path / "ensemble", "--backend", backend))
    same(tmp_path / "ensemble", tmp_path / "torch", 1e-4)
    ending = {"onnxruntime": "onnx", "openvino": "xml"}[backend]
    cli.main(command(exported.model, exported.images, tmp_path / "torch 1", "-f", "1", "--disable_tta"))
    one = command(exported.graphs / f"fold_1.{ending}", exported.images, tmp_path / "one", "--disable_tta")
    cli.main(one)
    same(tmp_path / "one", tmp_path / "torch 1", 1e-4)
    with pytest.raises(AssertionError):
        same(tmp_path / "one", tmp_path / "torch", 1e-4)
    assert json.loads((tmp_path / "one" / "prediction.json").read_text())["backend"] == backend


def signal_stack() -> tuple[int | None, int]:
    """Return address and size of the memory on which this thread takes signals."""

    class Stack(ctypes.Structure):
        _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.address, stack.size


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's stack for signals")
def test_a_signal_after_openvino_is_survived(exported: Exported) -> None:
    """OpenVINO sets a stack for signals, and may free it in another thread."""
    before = signal_stack()
    sessions = [open_session(exported.graphs / "fold_0.xml", "openvino", CPU)]
    assert signal_stack() == before
    thread = threading.Thread(target=sessions.clear)
    thread.start()
    thread.join()
    assert signal_stack() == before


def test_openvino_computes_onnx_files_too(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where onnxruntime is not installed."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("nnunetv2_ext.inference.graphs.find_spec", lambda name: None if name == "onnxruntime" else name)
    model = exported.graphs / "fold_0.onnx"
    cli.main(command(model, exported.images, tmp_path / "out", "--backend", "openvino", "--disable_tta"))
    assert len(labels(tmp_path / "out")) == 2
    refuse("onnxruntime is not installed", *command(model, exported.images, tmp_path / "other"))


def test_finished_cases_are_left_and_half_ones_never_appear(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    wanted = command(exported.model, exported.images, output, "-f", "0", "--disable_tta")
    first, second = (path.name.replace("_0000", "") for path in sorted(exported.images.iterdir()))
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    write = SimpleITKIO.write_seg

    def break_second(self: Any, seg: np.ndarray, path: str, properties: dict) -> None:
        write(self, seg, path, properties)
        if second in path:
            raise OSError("No space left")

    with monkeypatch.context() as patched:
        patched.setattr(SimpleITKIO, "write_seg", break_second)
        with pytest.raises(SystemExit, match=r"could not be segmented \(No space left\)") as stopped:
            cli.main(wanted)
    assert len(str(stopped.value.code).splitlines()) == 1
    assert {path.name for path in output.iterdir()} == {first, "dataset.json", "plans.json", "prediction.json"}
    before = (output / first).stat().st_mtime_ns
    (output / f".partial-{second}").write_text("of a killed run")
    capsys.readouterr()
    cli.main(wanted)
    assert "1 of 2 cases with torch on cpu" in capsys.readouterr().out
    assert (output / first).stat().st_mtime_ns == before
    assert set(labels(output)) == {first, second}
    assert not list(output.glob(".partial*"))

    refuse("holds segmentations by another folds, weights, mirroring: choose", *wanted[:-3], "-f", "1")
    (output / "prediction.json").unlink()
    refuse("holds segmentations by another program", *wanted)
    cli.main([*wanted, "--overwrite"])
    assert (output / first).stat().st_mtime_ns > before


@pytest.mark.commands
@pytest.mark.slow
def test_killed_run_is_continued(exported: Exported, tmp_path: Path) -> None:
    """Many copies of a case; the process is killed after the first ones."""
    (image, _) = sorted(exported.images.iterdir())
    (tmp_path / "images").mkdir()
    for number in range(12):
        shutil.copyfile(image, tmp_path / "images" / f"case{number:02d}_0000.nii.gz")
    output = tmp_path / "out"
    arguments = command(exported.graphs / "fold_0.onnx", tmp_path / "images", output)
    process = subprocess.Popen(
        [sys.executable, "-m", "nnunetv2_ext.cli", *arguments],
        env=clean_environment(PYTHONPATH=os.environ.get("PYTHONPATH", "")),
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while len(labels_there := list(output.glob("case*.nii.gz"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert len(labels_there) < 12
    whole = {path: path.stat().st_mtime_ns for path in output.glob("case*.nii.gz")}
    assert all(np.asarray(nibabel.load(path).dataobj).size for path in whole)
    cli.main(arguments)
    assert len(labels(output)) == 12
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    (expected, *others) = labels(output).values()
    assert all(np.array_equal(expected, other) for other in others)


def test_cascade(cascade: Callable[[], tuple[Path, Path]], exported: Exported, tmp_path: Path) -> None:
    first, second = cascade()
    options = ("--disable_tta", "--previous_stage")
    cli.main(command(second, exported.images, tmp_path / "out", *options, str(first)))
    lowres = by_nnunet(first, exported.images, tmp_path / "lowres", use_mirroring=False)
    same(tmp_path / "out" / "previous_stage", lowres)
    expected = by_nnunet(second, exported.images, tmp_path / "nnunet", previous=lowres, use_mirroring=False)
    same(tmp_path / "out", expected)
    cli.main(command(second, exported.images, tmp_path / "given", *options, str(lowres)))
    same(tmp_path / "given", expected)

    refuse("needs the predictions of 3d_lowres", *command(second, exported.images, tmp_path / "none"))
    refuse("works alone", *command(first, exported.images, tmp_path / "none", *options, str(lowres)))
    refuse(
        "and 3d_cascade_fullres needs 3d_lowres",
        *command(second, exported.images, tmp_path / "none", *options, str(second)),
    )
    next(lowres.glob("*.nii.gz")).unlink()
    refuse(
        "predict all cases with the previous stage",
        *command(second, exported.images, tmp_path / "n", *options, str(lowres)),
    )


def test_images_that_do_not_fit_are_refused(exported: Exported, tmp_path: Path) -> None:
    model, output = exported.graphs / "fold_0.onnx", tmp_path / "out"
    image = next(exported.images.iterdir())
    folder = tmp_path / "images"
    refuse("There is no folder", *command(model, folder, output))
    folder.mkdir()
    refuse("has no image CASE_0000.nii.gz, which this model reads: it is empty", *command(model, folder, output))
    (folder / "a.png").touch()
    refuse("it has files .png", *command(model, folder, output))
    for channel in (0, 1):
        shutil.copyfile(image, folder / f"case_{channel:04d}.nii.gz")
    refuse("0000, 0001 of case, and the model was trained on 1 (CT)", *command(model, folder, output))
    (folder / "case_0000.nii.gz").unlink()
    refuse("0001 of case", *command(model, folder, output))
    refuse("is the folder of the images", *command(model, folder, folder))
    assert not output.exists()

    # What only shows when an image is read ends that case alone.
    (folder / "case_0001.nii.gz").unlink()
    shutil.copyfile(image, folder / "good_0000.nii.gz")
    (folder / "cut_0000.nii.gz").write_bytes(image.read_bytes()[:3000])
    (folder / "plain.nii.gz").touch()
    found = nibabel.load(image)
    two = np.stack([np.asarray(found.dataobj)] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(two, found.affine), folder / "two_0000.nii.gz")
    with pytest.raises(SystemExit) as stopped:
        cli.main(command(model, folder, output, "--disable_tta"))
    plain, cut, two_channels = str(stopped.value.code).splitlines()
    assert "plain.nii.gz is left out" in plain
    assert "cut_0000.nii.gz could not be segmented" in cut
    assert "two_0000.nii.gz has 2 channels, and the model was trained on 1 (CT)" in two_channels
    assert set(labels(output)) == {"good.nii.gz"}
    assert not list(output.glob(".*"))


def test_bad_options_are_refused(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(words: str, model: Path, *options: str) -> None:
        refuse(words, *command(model, exported.images, tmp_path / "out", *options))
        assert not (tmp_path / "out").exists()

    onnx = exported.graphs / "fold_0.onnx"
    refused("Fold 4 of", exported.model, "-f", "4")
    refused("Fold 4 is not in", exported.graphs, "-f", "4")
    refused("No fold of", exported.model, "-chk", "checkpoint_best.pth")
    refused("The step size is 0.0", exported.model, "-step_size", "0")
    refused("openvino computes files that `nnUNetv2_ext export` wrote", exported.model, "--backend", "openvino")
    refused("torch does not take", onnx, "--backend", "torch")
    refused("onnxruntime does not take", exported.graphs / "fold_0.xml", "--backend", "onnxruntime")
    refused("finds no device mps here: choose --device cpu", onnx, "--device", "mps")
    refused("-np is -1", onnx, "-np", "-1")
    for name, model in (("openvino", exported.graphs / "fold_0.xml"), ("onnxruntime", onnx)):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, name, None)
            patched.setattr("nnunetv2_ext.inference.graphs.find_spec", lambda _: None)
            refused(f"{name} is not installed: install it with `pip install {name}`", model)


def test_graph_takes_the_place_of_a_network_under_torchs_compiler(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_compile", "t")
    from nnunetv2_ext.inference.models import read_model

    predictor = backends.load_predictor(read_model(exported.graphs), device=CPU)
    assert isinstance(predictor.network, backends.GraphNetwork)
    x = torch.randn(1, 1, *predictor.configuration_manager.patch_size)
    outputs = []
    for state in predictor.list_of_parameters:
        predictor.network.load_state_dict(state)
        outputs.append(predictor.network(x))
    assert not torch.equal(*outputs)


def test_prepared_cases_come_in_order_and_not_all_at_once() -> None:
    at_work: list[int] = []
    here = predict._AtOnce()
    steps = predict._ahead(here, at_work.append, list(range(5)), 2)
    seen = []
    for case, _ in steps:
        seen.append((case, len(at_work)))
    assert seen == [(0, 3), (1, 4), (2, 5), (3, 5), (4, 5)]
