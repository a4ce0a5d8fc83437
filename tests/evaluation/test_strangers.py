"""`evaluate` on files in the forms that strangers have: references of any header, and predictions by nnU-Net."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from PIL import Image

from nnunetv2_ext import cli
from nnunetv2_ext.evaluation.renumbered import find_renumbering
from nnunetv2_ext.evaluation.report import Evaluation
from nnunetv2_ext.evaluation.runner import evaluate_folders
from tests.evaluation.files import random_labels, score_arrays, write_nifti
from tests.strangers import (
    HEADERS,
    NO_LABEL_PICTURES,
    OTHER_HEADERS,
    REFUSED_BY_ITK,
    SPACING,
    damaged,
    mha_bytes,
    nifti,
    nifti_bytes,
    nrrd_bytes,
    stored_labels,
)
from tests.test_cli import refuse

SHAPE = (13, 14, 9)
TRUTH, GUESS = random_labels(1, SHAPE), random_labels(2, SHAPE)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    made = tmp_path / "labelsTs", tmp_path / "predictions"
    for folder in made:
        folder.mkdir()
    return made


def evaluate(
    folders: tuple[Path, Path], protocol: str = "nnunet", labels: str | None = "acdc", **options
) -> Evaluation:
    return evaluate_folders(*folders, protocol, labels=labels, processes=1, overwrite=True, **options)[0]


def command(folders: tuple[Path, Path], *options: str) -> list[str]:
    reference, prediction = map(str, folders)
    return [
        *("evaluate", "-ref", reference, "-pred", prediction, "--protocol", "nnunet", "--labels", "acdc"),
        *("-np", "1", "--overwrite", *options),
    ]


def expected(spacing: tuple[float, ...] | None = SPACING, guess: np.ndarray = GUESS, truth: np.ndarray = TRUTH) -> dict:
    """Return the scores of arrays, by the protocol nnunet with a tolerance of 1 mm."""
    names = ("right ventricle cavity", "myocardium", "left ventricle cavity")
    scores = score_arrays("nnunet", guess, truth, spacing, "acdc", dict.fromkeys(names, 1.0))
    return {name: pytest.approx(values, nan_ok=True) for name, values in scores.metrics.items()}


def predict(reference: Path, prediction: Path, labels: np.ndarray = GUESS) -> None:
    """Write a prediction as nnU-Net does for an image with the reference's header: through the reader of its format."""
    reader = SimpleITKIO()
    if reference.name.endswith(".tif"):
        reader = Tiff3DIO()
    elif reference.name.endswith(".nii") or reference.name.startswith(REFUSED_BY_ITK):
        reader = NibabelIO()
    _, properties = reader.read_seg(str(reference))
    stored = labels if reference.name.endswith(".tif") else labels.T
    reader.write_seg(stored, str(prediction), properties)


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_predictions_of_nnunet_fit_references_of_any_header(folders, name: str, ending: str) -> None:
    """`sform of ones` is ACDC as published."""
    reference = nifti(folders[0] / f"{name}{ending}", stored_labels(TRUTH, name), **HEADERS[name])
    predict(reference, folders[1] / reference.name)
    evaluation = evaluate(folders)
    assert evaluation.cases[0].metrics == expected((1.0, 1.0, 1.0) if name == "zooms of ones" else SPACING)
    assert evaluation.remarks == ()


@pytest.mark.parametrize("name", OTHER_HEADERS)
@pytest.mark.parametrize(("ending", "make"), [(".mha", mha_bytes), (".nrrd", nrrd_bytes)])
def test_predictions_of_nnunet_fit_references_of_other_formats(folders, ending: str, make, name: str) -> None:
    reference = folders[0] / f"case{ending}"
    reference.write_bytes(make(TRUTH, **OTHER_HEADERS[name]))
    predict(reference, folders[1] / reference.name)
    evaluation = evaluate(folders)
    assert evaluation.cases[0].metrics == expected((1.25, np.hypot(1.5, 0.3), 8.0) if name == "sheared" else SPACING)
    assert evaluation.remarks == ()


def test_published_acdc_by_its_protocol(folders) -> None:
    reference = nifti(folders[0] / "patient001_frame01.nii.gz", TRUTH, **HEADERS["sform of ones"])
    predict(reference, folders[1] / reference.name)
    evaluation = evaluate(folders, "acdc", None)
    assert evaluation.cases[0].metrics == score_arrays("acdc", GUESS, TRUTH, SPACING).metrics


@pytest.mark.parametrize("planes", [1, 2, 3, 4, 5, 6])
def test_thin_tiffs_have_their_planes_first(folders, planes: int) -> None:
    truth, guess = TRUTH.T[:planes], GUESS.T[:planes]
    reference = folders[0] / "case.tif"
    tifffile.imwrite(reference, truth, photometric="minisblack")
    reference.with_suffix(".json").write_text(json.dumps({"spacing": [10, 1, 1]}))
    predict(reference, folders[1] / "case.tif", guess)
    assert evaluate(folders).cases[0].metrics == expected((10.0, 1.0, 1.0), guess, truth)


def test_tiff_reference_that_states_no_voxel_size(folders, capsys) -> None:
    for case in ("a", "b"):
        tifffile.imwrite(folders[0] / f"{case}.tif", TRUTH.T)
        Tiff3DIO().write_seg(GUESS.T, str(folders[1] / f"{case}.tif"), {"spacing": (10, 1, 1)})
    evaluation = evaluate(folders)
    said = "The reference states no voxel size; that of the prediction is taken, 10 x 1 x 1 mm (a and 1 others)."
    assert evaluation.remarks == (said,)
    assert evaluation.cases[0].metrics == expected((10.0, 1.0, 1.0), GUESS.T, TRUTH.T)
    cli.main(command(folders))
    assert said in capsys.readouterr().out
    assert said in (folders[1] / "evaluation_nnunet" / "report.md").read_text()
    assert json.loads((folders[1] / "evaluation_nnunet" / "summary.json").read_text())["remarks"] == [said]
    for folder in folders:
        for path in folder.glob("*.json"):
            path.rename(folders[int(folder == folders[0])] / path.name)
    assert "The prediction states no voxel size; that of the reference is taken" in evaluate(folders).remarks[0]


def test_scale_factor_whose_labels_are_whole_up_to_rounding(folders) -> None:
    truth = (TRUTH > 0).astype(np.uint8)
    nifti(folders[0] / "case.nii.gz", truth * 255, **HEADERS["scale factor"])
    write_nifti(folders[1] / "case.nii.gz", truth)
    nifti(folders[1] / "case.nii.gz", truth, **HEADERS["sform only"])
    assert evaluate(folders, labels="binary").mean("foreground", "Dice") == 1.0


@pytest.mark.parametrize("side", [0, 1])
def test_masks_of_0_and_255_where_the_only_class_is_1(folders, side: int) -> None:
    truth, guess = TRUTH[..., 0] > 0, GUESS[..., 0] > 0
    for folder, mask in zip(folders, (truth, guess), strict=True):
        Image.fromarray(mask.astype(np.uint8)).save(folder / "case.png")
    before = evaluate(folders, "polyp", None).cases[0].metrics
    Image.fromarray((truth, guess)[side].astype(np.uint8) * 255).save(folders[side] / "case.png")
    evaluation = evaluate(folders, "polyp", None)
    assert evaluation.cases[0].metrics == before
    kind = ("reference", "prediction")[side]
    assert evaluation.remarks == (f"The {kind} is a mask of 0 and 255; 255 counts as 1 (case).",)
    refuse(f"{folders[side] / 'case.png'} holds the label 255", *command(folders))
    Image.fromarray(np.where((truth, guess)[side], np.uint8(254), np.uint8(0))).save(folders[side] / "case.png")
    refuse("holds the label 254, which binary does not know", *command(folders, "--labels", "binary"))


def test_upper_case_endings(folders) -> None:
    Image.fromarray(TRUTH[..., 0]).save(folders[0] / "case.PNG")
    Image.fromarray(GUESS[..., 0]).save(folders[1] / "case.png")
    assert evaluate(folders).cases[0].metrics == expected(None, GUESS[..., 0], TRUTH[..., 0])


def test_unpacked_reference_and_packed_prediction(folders) -> None:
    nifti(folders[0] / "patient001_frame01.nii", TRUTH, **HEADERS["sform of ones"])
    predict(nifti(folders[0].parent / "image.nii.gz", TRUTH, **HEADERS["sform of ones"]), folders[1] / "p.nii.gz")
    (folders[1] / "p.nii.gz").rename(folders[1] / "patient001_frame01.nii.gz")
    evaluation = evaluate(folders)
    assert evaluation.cases[0].metrics == expected()
    nifti(folders[0] / "patient001_frame01.nii.gz", TRUTH)
    refuse("patient001_frame01.nii.gz are the same case: move one of them elsewhere", *command(folders))


@pytest.mark.parametrize(("axes", "backwards"), [((0, 1, 2), (True, False, True)), ((2, 0, 1), (False, True, False))])
def test_another_orientation_at_the_same_place(folders, axes, backwards) -> None:
    reference = nifti(folders[0] / "case.nii.gz", TRUTH, **HEADERS["sform = qform"])
    predict(reference, folders[1] / "case.nii.gz")
    turned = sitk.Flip(sitk.PermuteAxes(sitk.ReadImage(str(folders[1] / "case.nii.gz")), axes), backwards)
    sitk.WriteImage(turned, str(folders[1] / "case.nii.gz"))
    evaluation = evaluate(folders)
    assert evaluation.cases[0].metrics == expected()
    assert "axes run otherwise than the reference's, through the same voxels; turned (case)." in evaluation.remarks[0]


# Labels in another order


def renumber(labels: np.ndarray, numbers: dict[int, int]) -> np.ndarray:
    return np.array([numbers.get(value, value) for value in range(10)], dtype=np.uint8)[labels]


def nearly(labels: np.ndarray) -> np.ndarray:
    """Return labels of which a few voxels are background."""
    changed = labels.copy()
    changed[np.random.default_rng(0).random(labels.shape) < 0.05] = 0
    return changed


@pytest.mark.parametrize("numbers", [{1: 3, 3: 1}, {1: 2, 2: 3, 3: 1}])
def test_labels_in_another_order_are_pointed_out(folders, capsys, numbers: dict[int, int]) -> None:
    write_nifti(folders[0] / "case.nii.gz", TRUTH)
    write_nifti(folders[1] / "case.nii.gz", renumber(nearly(TRUTH), numbers))
    cli.main(command(folders))
    shown = capsys.readouterr().out
    names = {1: "right ventricle cavity", 2: "myocardium", 3: "left ventricle cavity"}
    parts = ", ".join(f"{new} lies on {old} ({names[old]})" for old, new in sorted(numbers.items(), key=lambda n: n[1]))
    assert f"Beware: the labels of the prediction look renumbered against the reference: {parts}. Convert" in shown
    write_nifti(folders[1] / "case.nii.gz", nearly(TRUTH))
    assert evaluate(folders).remarks == ()


def test_shifted_labels_are_refused_with_the_true_reason(folders) -> None:
    write_nifti(folders[0] / "case.nii.gz", TRUTH)
    write_nifti(folders[1] / "case.nii.gz", renumber(TRUTH, {1: 2, 2: 3, 3: 4}))
    refuse(
        f"{folders[1] / 'case.nii.gz'} holds the label 4, which acdc does not know (1 right ventricle cavity, "
        "2 myocardium, 3 left ventricle cavity); the labels of the prediction look renumbered against the reference: "
        "2 lies on 1 (right ventricle cavity), 3 lies on 2 (myocardium), 4 lies on 3 (left ventricle cavity)",
        *command(folders),
    )


def test_bad_predictions_do_not_look_renumbered() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        table = rng.integers(0, 50, (5, 5))
        assert find_renumbering(table) == {}
    missed = np.diag([100, 0, 20, 30, 40])
    missed[1, 0] = 50
    assert find_renumbering(missed) == {}
    assert find_renumbering(np.diag([100, 50])[:, ::-1]) == {}


# Refusals: each names the file, the reason, and something that helps


WHOLE = nifti_bytes(TRUTH, **HEADERS["sform = qform"])
REMEDIES = {
    "has a palette": "write the numbers as grey values",
    "has an alpha channel": "write it without",
    "is a colour image": "a label map has one channel",
}


def probabilities(path: Path) -> None:
    nifti(path, TRUTH * np.float32(0.3), **HEADERS["sform = qform"])


def elsewhere(path: Path) -> None:
    nifti(path, TRUTH, **HEADERS["sform elsewhere"])


def smaller(path: Path) -> None:
    nifti(path, TRUTH[1:], **HEADERS["sform = qform"])


def four_axes(path: Path) -> None:
    nifti(path, np.stack([TRUTH, TRUTH], axis=-1))


@pytest.mark.parametrize(
    ("name", "write", "reason", "remedy"),
    [
        *(
            (name, content, f"{name} cannot be read as an image (", "write, download or unpack it again")
            for name, content in damaged(WHOLE).items()
        ),
        ("case.nii", gzip.compress(WHOLE), "is compressed", "rename it to case.nii.gz"),
        ("case.nii.gz", probabilities, "holds numbers that are not whole", "a label map is wanted, not probabilities"),
        ("case.nii.gz", elsewhere, "lies elsewhere than its reference", "bring the prediction into the geometry of"),
        ("case.nii.gz", smaller, "has 12 x 14 x 9 voxels", "bring the prediction into the geometry of"),
        ("case.nii.gz", four_axes, "has the shape (13, 14, 9, 2)", "a label map has two or three axes"),
        *(("case.png", make, words, REMEDIES[words]) for words, make in NO_LABEL_PICTURES.items()),
        ("case.png", b"\x89PNG", "cannot be read as a picture", "download or unpack it again"),
    ],
)
def test_refusals_say_what_helps(folders, name: str, write, reason: str, remedy: str) -> None:
    if name.endswith(".png"):
        Image.fromarray(TRUTH[..., 0]).save(folders[0] / name)
    else:
        nifti(folders[0] / name, TRUTH, **HEADERS["sform = qform"])
    path = folders[1] / name
    if isinstance(write, bytes):
        path.write_bytes(write)
    elif write in NO_LABEL_PICTURES.values():
        write(TRUTH[..., 0]).save(path)
    else:
        write(path)
    for words in (str(path), reason, remedy):
        refuse(words, *command(folders))
    assert [left.name for left in folders[1].iterdir()] == [name]
