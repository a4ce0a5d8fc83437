"""The archive for BTCV: checked against the test images, and whole or not at all."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext import cli
from nnunetv2_ext.datasets.synapse import BTCV, TRANSUNET
from tests.datasets import trees
from tests.test_cli import refuse

NUMBERS = range(61, 81)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return 20 predictions with all organs, and their images."""
    predictions, images = tmp_path / "predictions", tmp_path / "Testing" / "img"
    for number in NUMBERS:
        trees.write_ct(
            images / f"img{number:04d}.nii.gz",
            predictions / f"img{number:04d}.nii.gz",
            *(number, list(BTCV.values()), BTCV["liver"]),
        )
    return predictions, images


def command(folders: tuple[Path, Path], output: Path, *options: str) -> list[str]:
    predictions, images = map(str, folders)
    return ["submit", "btcv", "-pred", predictions, "-images", images, "-o", str(output), *options]


def test_archive_holds_the_predictions(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "submission.zip"
    cli.main(command(folders, output))
    shown = capsys.readouterr().out
    assert "No prediction has" not in shown
    assert f"Wrote {output} with the 20 test cases" in shown
    assert [path.name for path in output.parent.iterdir()] == ["submission.zip"]
    with zipfile.ZipFile(output) as archive:
        assert archive.namelist() == [f"label{number:04d}.nii.gz" for number in NUMBERS]
        archive.extractall(tmp_path / "unpacked")
    for number in NUMBERS:
        packed = sitk.ReadImage(str(tmp_path / "unpacked" / f"label{number:04d}.nii.gz"))
        image = sitk.ReadImage(str(folders[1] / f"img{number:04d}.nii.gz"))
        prediction = sitk.ReadImage(str(folders[0] / f"img{number:04d}.nii.gz"))
        np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (packed, prediction)))
        assert packed.GetSpacing() == image.GetSpacing()
        assert packed.GetOrigin() == image.GetOrigin()
        assert packed.GetDirection() == image.GetDirection()


def test_names_of_nnunet_and_of_labels_are_taken(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, images = folders
    for number in NUMBERS:
        (predictions / f"img{number:04d}.nii.gz").rename(predictions / f"label{number:04d}.nii.gz")
        (images / f"img{number:04d}.nii.gz").rename(images / f"img{number:04d}_0000.nii.gz")
    labels = {"background": 0, **{name.replace("oeso", "eso"): value for name, value in BTCV.items()}}
    (predictions / "dataset.json").write_text(json.dumps({"labels": labels}))
    (predictions / "._label0061.nii.gz").touch()  # macOS leaves such files in archives
    cli.main(command(folders, tmp_path / "a.zip", "--pattern", "sub/case_{number}.nii.gz"))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist()[-1] == "sub/case_0080.nii.gz"


def test_existing_archive(folders: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "a.zip"
    output.write_text("mine")
    refuse("exists: choose another file with -o", *command(folders, output))
    assert output.read_text() == "mine"
    cli.main(command(folders, output, "--overwrite"))
    assert zipfile.is_zipfile(output)


def change(path: Path, **changes: object) -> None:
    """Write a file anew with other voxels or another geometry."""
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    for name, value in changes.items():
        if name == "label":
            array[0, 0, 0] = value
        elif name == "scale":
            array = array * value
        elif name == "slices":
            array = array[:value]
    changed = sitk.GetImageFromArray(array)
    changed.SetSpacing(changes.get("spacing", image.GetSpacing()))
    changed.SetOrigin(changes.get("origin", image.GetOrigin()))
    sitk.WriteImage(changed, str(path))


BAD_PREDICTIONS = {
    "has the label 14": {"label": 14},
    "has 24 x 24 x 7 voxels, but its image img0070.nii.gz has 24 x 24 x 8": {"slices": 7},
    "lies elsewhere than its image img0070.nii.gz": {"origin": (0.0, 0.0, 0.0)},
    "(its spacing is 1 x 1 x 1 mm instead of": {"spacing": (1.0, 1.0, 1.0)},
    "has values between whole numbers": {"scale": 0.3},
}


@pytest.mark.parametrize("words", BAD_PREDICTIONS)
def test_bad_prediction_is_refused(folders: tuple[Path, Path], tmp_path: Path, words: str) -> None:
    bad = folders[0] / "img0070.nii.gz"
    change(bad, **BAD_PREDICTIONS[words])
    refuse(words, *command(folders, tmp_path / "out" / "a.zip"))
    refuse(str(bad), *command(folders, tmp_path / "out" / "a.zip"))
    assert not any((tmp_path / "out").iterdir())


def test_bad_names_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, images = folders
    output = tmp_path / "a.zip"
    extra = predictions / "img0001.nii.gz"
    shutil.copyfile(predictions / "img0061.nii.gz", extra)
    refuse(f"{extra} is none of the test cases", *command(folders, output))
    extra = extra.rename(predictions / "label0061.nii.gz")
    refuse("are the same case: remove one", *command(folders, output))
    extra.unlink()
    (predictions / "img0064.nii.gz").unlink()
    refuse(f"{images / 'img0064.nii.gz'} has no prediction in {predictions}:", *command(folders, output))
    (predictions / "img0065.nii.gz").unlink()
    refuse("(nor have 1 others)", *command(folders, output))
    (images / "img0080.nii.gz").unlink()
    refuse("has no file img0080.nii.gz, which belongs to BTCV's test set", *command(folders, output))
    refuse("There is no folder", *command((tmp_path / "missing", images), output))
    refuse("There is no folder", *command((predictions, tmp_path / "missing"), output))
    assert not output.exists()


@pytest.mark.parametrize(
    "pattern",
    ["label.nii.gz", "label{number}.nii", "/label{number}.nii.gz", "../{number}.nii.gz", "{number}{x}.nii.gz"],
)
def test_bad_patterns_are_refused(folders: tuple[Path, Path], tmp_path: Path, pattern: str) -> None:
    refuse("does not name files of an archive", *command(folders, tmp_path / "a.zip", "--pattern", pattern))
    refuse("does not end in .zip", *command(folders, tmp_path / "a.tar"))


def test_labels_of_another_order_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, _ = folders
    (predictions / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **TRANSUNET}}))
    refuse("the challenge wants the 13 labels of BTCV", *command(folders, tmp_path / "a.zip"))
    (predictions / "dataset.json").unlink()
    # Without that file the organs' sizes tell: TransUNet's 5 is the liver.
    for path in predictions.iterdir():
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(sitk.ChangeLabel(image, {6: 5, 5: 6}), str(path))
    refuse("The label 5, in BTCV the oesophagus, has the largest mean volume", *command(folders, tmp_path / "a.zip"))
    assert not (tmp_path / "a.zip").exists()


def test_absent_organs_and_empty_predictions_are_told(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folders[0].iterdir():
        image = sitk.ReadImage(str(path))
        lost = dict.fromkeys(range(1, 14), 0) if path.name == "img0061.nii.gz" else {12: 0, 13: 0}
        sitk.WriteImage(sitk.ChangeLabel(image, lost), str(path))
    cli.main(command(folders, tmp_path / "a.zip"))
    shown = capsys.readouterr().out
    assert "Nothing is segmented in img0061.nii.gz." in shown
    assert "No prediction has right adrenal gland, left adrenal gland, which the challenge scores as well." in shown
