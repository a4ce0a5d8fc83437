"""The prediction that goes into a container gives what nnU-Net's own gives, with less memory."""

from __future__ import annotations

import copy
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.inference.backends import load_predictor
from nnunetv2_ext.inference.models import read_model
from nnunetv2_ext.inference.segmentation import segment_by_class
from nnunetv2_ext.submission.predict import find_images, main, predict_folder
from tests.planned_data import LABELS, REGIONS, PlannedData

CPU = torch.device("cpu")


def planned_predictor(data: PlannedData, dataset: str, configuration: str, **changes) -> SimpleNamespace:
    """Return what the export asks of a predictor: no network is needed to turn logits into labels."""
    plans = copy.deepcopy(data.plans(dataset))
    if "resampling" in changes:
        settings = {"resampling_fn_probabilities": changes.pop("resampling"), "resampling_fn_probabilities_kwargs": {}}
        plans["configurations"][configuration].update(settings)
    plans.update(changes)
    manager = PlansManager(plans)
    return SimpleNamespace(
        plans_manager=manager,
        configuration_manager=manager.get_configuration(configuration),
        label_manager=manager.get_label_manager(data.dataset_json(dataset)),
    )


def both_ways(logits: torch.Tensor, properties: dict, predictor: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    ours = segment_by_class(logits.clone(), properties, predictor)
    theirs = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits.clone(), predictor.plans_manager, predictor.configuration_manager, predictor.label_manager, properties
    )
    return ours, theirs


@pytest.mark.parametrize("kind", ["smooth", "ties"])
@pytest.mark.parametrize(
    ("dataset", "configuration", "changes"),
    [
        (LABELS, "3d_fullres", {}),
        (LABELS, "3d_fullres", {"resampling": "resample_torch_fornnunet"}),
        (LABELS, "3d_fullres", {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}),
        (LABELS, "2d", {}),
        (REGIONS, "3d_fullres", {}),
        (REGIONS, "2d", {}),
    ],
)
def test_segmentation_is_nnunets(
    planned_data: PlannedData, kind: str, dataset: str, configuration: str, changes: dict
) -> None:
    predictor = planned_predictor(planned_data, dataset, configuration, **changes)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(predictor.label_manager.num_segmentation_heads, 7, 12, 11, generator=generator).half()
    if kind == "ties":
        logits = logits.round()
    spacing = [1.1, 0.9, 2.3]
    properties = {
        "spacing": spacing,
        "shape_after_cropping_and_before_resampling": (9, 15, 10) if configuration == "3d_fullres" else (7, 15, 10),
        "shape_before_cropping": (12, 18, 14),
        "bbox_used_for_cropping": [[2, 11], [1, 16], [3, 13]],
    }
    if configuration == "2d":
        properties["bbox_used_for_cropping"] = [[2, 9], [1, 16], [3, 13]]
    ours, theirs = both_ways(logits, properties, predictor)
    assert len(np.unique(theirs)) == len(logits) + (dataset == REGIONS)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


def test_memory_does_not_grow_with_the_classes(planned_data: PlannedData) -> None:
    size = (64, 64, 64)
    peaks = {}
    for classes in (3, 12):
        predictor = planned_predictor(planned_data, LABELS, "3d_fullres")
        names = {f"organ {number}": number for number in range(1, classes)}
        description = {**planned_data.dataset_json(LABELS), "labels": {"background": 0, **names}}
        predictor.label_manager = predictor.plans_manager.get_label_manager(description)
        logits = torch.randn(classes, 8, 8, 8).half()
        properties = {
            "spacing": [1.0, 1.0, 1.0],
            "shape_after_cropping_and_before_resampling": size,
            "shape_before_cropping": size,
            "bbox_used_for_cropping": [[0, edge] for edge in size],
        }
        tracemalloc.start()
        segment_by_class(logits, properties, predictor)
        peaks[classes] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # nnU-Net keeps two bytes of each class and voxel.
    assert peaks[12] - peaks[3] < 0.5 * np.prod(size)


@pytest.mark.parametrize(
    ("dataset", "configuration"), [(LABELS, "3d_fullres"), (LABELS, "2d"), (REGIONS, "3d_fullres")]
)
def test_folder_of_images(
    make_model: Callable[..., Path], inputs: Path, tmp_path: Path, dataset: str, configuration: str
) -> None:
    """Two folds; nnU-Net's own prediction of the same folder is the reference."""
    folder = make_model(dataset, configuration, folds=("0", "1"))
    before = {path: path.stat().st_mtime_ns for path in [inputs, *inputs.iterdir()]}
    settings = {"use_mirroring": False, "device": CPU, "allow_tqdm": False}
    assert predict_folder(load_predictor(read_model(folder), **settings), inputs, tmp_path / "ours") == []
    assert before == {path: path.stat().st_mtime_ns for path in [inputs, *inputs.iterdir()]}
    stock = nnUNetPredictor(**settings)
    stock.initialize_from_trained_model_folder(str(folder), (0, 1))
    (tmp_path / "theirs").mkdir()
    stock.predict_from_files_sequential(str(inputs), str(tmp_path / "theirs"))
    names = sorted(path.name for path in (tmp_path / "ours").iterdir())
    assert names == ["FLARETs_0000.nii.gz", "FLARETs_0001.nii.gz"]
    for name in names:
        ours, theirs = (nibabel.load(tmp_path / which / name) for which in ("ours", "theirs"))
        assert len(np.unique(ours.dataobj)) > 1
        np.testing.assert_array_equal(ours.dataobj, theirs.dataobj)
        np.testing.assert_array_equal(ours.affine, theirs.affine)
        assert ours.get_data_dtype() == theirs.get_data_dtype()


def test_bad_file_does_not_keep_the_others(
    make_model: Callable[..., Path], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = inputs / "FLARETs_0000_0000.nii.gz"
    cut.write_bytes(cut.read_bytes()[:200])
    shutil.copyfile(inputs / "FLARETs_0001_0000.nii.gz", inputs / "nameless.nii.gz")
    (inputs / "readme.txt").touch()
    flat = inputs / "slice_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 50), dtype=np.int16), np.eye(4)), flat)
    model = make_model("Dataset801_Labels", "2d")
    with pytest.raises(SystemExit) as stopped:
        main(["--model", str(model), "--inputs", str(inputs), "--outputs", str(tmp_path / "outputs")])
    first, second, third = str(stopped.value.code).splitlines()
    assert first == f"error: {inputs / 'nameless.nii.gz'} is left out: its name does not end in _0000.nii.gz."
    assert second.startswith(f"error: {cut} could not be segmented (")
    assert third == f"error: {flat} could not be segmented ({flat} has 2 dimensions instead of 3: it is another file)."
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["FLARETs_0001.nii.gz"]
    assert "[2/3] FLARETs_0001: " in capsys.readouterr().out


def test_options_reach_the_predictor(
    make_model: Callable[..., Path], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = make_model("Dataset801_Labels", "2d"), []
    monkeypatch.setattr(
        "nnunetv2_ext.submission.predict.predict_folder", lambda predictor, *_: seen.append(predictor) or []
    )
    folders = ["--inputs", str(inputs), "--outputs", str(tmp_path / "outputs")]
    main(["--model", str(model), *folders])
    main(["--model", str(model), *folders, "--mirroring", "--step-size", "0.75"])
    main(["--model", str(model), "--load-only"])
    plain, changed = seen
    assert (plain.use_mirroring, plain.tile_step_size) == (False, 0.5)
    assert (changed.use_mirroring, changed.tile_step_size) == (True, 0.75)
    assert plain.allowed_mirroring_axes == (0, 1)


def test_refusals(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        find_images(tmp_path / "missing")
    with pytest.raises(UserError, match=r"has no file CASE_0000\.nii\.gz"):
        find_images(tmp_path)
    with pytest.raises(SystemExit, match="holds no model"):
        main(["--model", str(tmp_path), "--inputs", str(inputs), "--outputs", str(tmp_path / "outputs")])
    with pytest.raises(SystemExit) as stopped:
        main(["--model", str(tmp_path)])
    assert stopped.value.code == 2
