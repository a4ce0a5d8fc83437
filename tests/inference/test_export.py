"""What an export leaves: files that say all that prediction needs and nothing of where they were made, or nothing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from nnunetv2_ext import cli
from nnunetv2_ext.inference import export
from nnunetv2_ext.inference.models import read_model
from nnunetv2_ext.inference.sample import take_sample
from tests.inference.conftest import TRAINER, Exported
from tests.planned_data import LABELS, PlannedData
from tests.test_cli import refuse


def test_files_and_what_is_printed(exported: Exported) -> None:
    names = {f"fold_{fold}.{ending}" for fold in (0, 1) for ending in ("onnx", "xml", "bin")}
    assert {path.name for path in exported.graphs.iterdir()} == names
    assert "Compared with torch on the middle of " in exported.printed
    assert f"{LABELS}/nnUNetPlans_2d/" in exported.printed
    for fold in (0, 1):
        assert f"Wrote {exported.graphs}/fold_{fold}.onnx: onnxruntime differs by at most " in exported.printed
        assert f"Wrote {exported.graphs}/fold_{fold}.xml: openvino differs by at most " in exported.printed
    assert "in 0.0000% of the labels" in exported.printed
    assert f"nnUNetv2_ext predict -i IMAGES -o OUT -m {exported.graphs}" in exported.printed


def test_metadata(exported: Exported, planned_data: PlannedData) -> None:
    program = onnx.load(exported.graphs / "fold_1.onnx")
    onnx.checker.check_model(program)
    metadata = {entry.key: entry.value for entry in program.metadata_props}
    plans = planned_data.plans(LABELS)
    planned = plans["configurations"]["2d"]
    assert json.loads(metadata["plans"]) == plans
    assert json.loads(metadata["dataset_json"]) == planned_data.dataset_json(LABELS)
    assert json.loads(metadata["labels"]) == planned_data.dataset_json(LABELS)["labels"]
    assert json.loads(metadata["spacing"]) == planned["spacing"]
    assert json.loads(metadata["window"]) == planned["patch_size"]
    assert json.loads(metadata["normalisation"])["schemes"] == planned["normalization_schemes"]
    assert json.loads(metadata["mirroring_axes"]) == [0, 1]
    assert (metadata["trainer"], metadata["configuration"], metadata["fold"]) == (TRAINER, "2d", "1")
    from_xml, from_onnx = (read_model(exported.graphs / f"fold_1.{ending}") for ending in ("xml", "onnx"))
    assert from_xml == from_onnx
    assert from_onnx == read_model(exported.model, folds=["1"])


def test_nothing_tells_where_it_was_made(exported: Exported) -> None:
    folders = (Path(torch.__file__).parents[2], Path(export.__file__).parents[2], exported.model, Path.home())
    for path in exported.graphs.iterdir():
        content = path.read_bytes()
        for words in (*map(str, folders), "site-packages"):
            assert words.encode() not in content, (path.name, words)


def test_one_file_from_an_image(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        export, "_write_onnx", lambda *arguments: shutil.copyfile(exported.graphs / "fold_1.onnx", arguments[2])
    )
    image = sorted(exported.images.iterdir())[0]
    output = tmp_path / "new" / "model.onnx"
    wanted = ["export", "-m", str(exported.model), "-f", "1", "-o", str(output), "-i", str(image)]
    cli.main(wanted)
    assert [path.name for path in output.parent.iterdir()] == ["model.onnx"]
    assert f"the middle of {image}, " in capsys.readouterr().out
    assert read_model(output).folds == ("1",)
    refuse("exists: choose another file with -o, or write it anew with --overwrite", *wanted)


def test_sample_without_a_real_image_says_so(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    sample = take_sample(read_model(exported.model))
    assert sample.origin.startswith("smooth noise")
    assert sample.window.std() == pytest.approx(1, abs=0.3)


def test_sample_of_a_cascade_has_classes(cascade: Callable[[], tuple[Path, Path]]) -> None:
    model = read_model(cascade()[1])
    window = take_sample(model).window
    assert window.shape[1] == model.planned.input_channels > 1
    assert (window[0, 1:].sum(0) <= 1).all()
    assert window[0, 1:].flatten(1).any(1).all()


def test_nothing_is_left_where_a_file_gives_other_numbers(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(network: torch.nn.Module, window: torch.Tensor, path: Path, metadata: dict[str, str]) -> None:
        shutil.copyfile(exported.graphs / "fold_0.onnx", path)

    monkeypatch.setattr(export, "_write_onnx", wrong)
    for output in ("model.onnx", "folder"):
        target = tmp_path / "out" / output
        refuse(
            "The file for onnxruntime gives other numbers than torch",
            *("export", "-m", str(exported.model), "-f", "1", "-o", str(target)),
        )
        assert list(target.parent.iterdir()) == []


def test_refusals(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out" / "model.onnx"

    def refused(words: str, *options: str, target: Path = output) -> None:
        refuse(words, "export", *options, "-o", str(target))
        assert not output.parent.exists()

    model = ("-m", str(exported.model))
    refused("name it by -d, -c and -tr, or with -m", *model, "-d", "801", "-c", "2d", "-tr", TRAINER)
    refused("name it by -d, -c and -tr, or with -m", "-d", "801")
    refused("has the folds 0, 1, each of which becomes a file: choose one with -f, or name a folder", *model)
    refused("Fold 2 of", *model, "-f", "2")
    refused("There is no file", *model, "-f", "0", "-i", str(tmp_path / "missing.nii.gz"))
    monkeypatch.setenv("nnUNet_results", str(exported.model.parents[1]))
    refused(f"there are {exported.model.name}", "-d", "801", "-c", "3d_fullres", "-tr", TRAINER)
    monkeypatch.delenv("nnUNet_results")
    refused("nnUNet_results is not set", "-d", "801", "-c", "2d", "-tr", TRAINER)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    refused("is not an earlier export, and is left alone", *model, "--overwrite", target=mine)
    assert (mine / "thesis.tex").exists()
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            refused(f"{package} is not installed: install it with", *model, "-f", "0", "--openvino")


def test_damaged_and_foreign_files(exported: Exported, tmp_path: Path) -> None:
    def refused(words: str, model: Path) -> None:
        refuse(words, "predict", "-i", str(exported.images), "-o", str(tmp_path / "out"), "-m", str(model))
        assert not (tmp_path / "out").exists()

    onnx_file = exported.graphs / "fold_0.onnx"
    for ending, share in (("onnx", 0.5), ("xml", 0.5), ("bin", 0.5)):
        cut = tmp_path / f"cut {ending}"
        shutil.copytree(exported.graphs, cut)
        content = (cut / f"fold_0.{ending}").read_bytes()
        (cut / f"fold_0.{ending}").write_bytes(content[: int(len(content) * share)])
        refused("is cut short or damaged", cut / f"fold_0.{'onnx' if ending == 'onnx' else 'xml'}")
    (tmp_path / "text.onnx").write_text("no graph")
    refused("is cut short or damaged", tmp_path / "text.onnx")
    refused("There is no file", tmp_path / "missing.onnx")
    (tmp_path / "empty").mkdir()
    refused("holds no model", tmp_path / "empty")

    program = onnx.load(onnx_file)

    def changed(name: str, **values: str | None) -> Path:
        copy = onnx.ModelProto()
        copy.CopyFrom(program)
        for entry in list(copy.metadata_props):
            if entry.key in values:
                copy.metadata_props.remove(entry)
        onnx.helper.set_model_props(
            copy,
            {**{entry.key: entry.value for entry in copy.metadata_props}, **{k: v for k, v in values.items() if v}},
        )
        onnx.save(copy, tmp_path / name)
        return tmp_path / name

    refused("does not say how its images are prepared", changed("foreign.onnx", format=None))
    refused("The metadata of", changed("metadata.onnx", plans="{"))
    refused("cannot be used", changed("configuration.onnx", configuration="3d_lowres"))
    refused("where its plans say", changed("window.onnx", configuration="3d_fullres"))
    two = tmp_path / "two"
    two.mkdir()
    shutil.copyfile(onnx_file, two / "fold_0.onnx")
    shutil.copyfile(onnx_file, two / "fold_1.onnx")
    refused("are both fold 0", two)


def test_damaged_and_foreign_checkpoints(exported: Exported, tmp_path: Path) -> None:
    def refused(words: str, name: str, content: str) -> None:
        model = tmp_path / "model"
        shutil.copytree(exported.model, model)
        (model / name).write_text(content)
        refuse(words, "predict", "-i", str(exported.images), "-o", str(tmp_path / "out"), "-m", str(model))
        assert not (tmp_path / "out").exists()
        shutil.rmtree(model)

    plans = json.loads((exported.model / "plans.json").read_text())
    refused("plans.json of", "plans.json", "{")
    refused("dataset.json of", "dataset.json", "[]")
    refused("cannot be used", "dataset.json", "{}")
    plans["configurations"]["2d"]["architecture"]["network_class_name"] = "os.system"
    refused("name os.system, which is neither of nnU-Net nor of nnunetv2_ext", "plans.json", json.dumps(plans))


def test_noise_is_the_same_each_time(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    first, second = (take_sample(read_model(exported.model)).window.numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
