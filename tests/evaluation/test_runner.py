"""From folders to reports: files, checks, nnU-Net's json, parallel work, and runs that are killed."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.evaluation import evaluate_predictions as nnunet
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from skimage.io import imsave

from nnunetv2_ext import cli
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.evaluation import runner
from nnunetv2_ext.evaluation.labels import find_labels
from nnunetv2_ext.evaluation.protocols import PROTOCOLS
from nnunetv2_ext.evaluation.runner import evaluate_folders
from nnunetv2_ext.images.label_maps import read_label_image
from nnunetv2_ext.images.labels import LABEL_MAPS, read_dataset_json
from tests.evaluation.files import SPACING, make_folders, random_labels, score_arrays, write_nifti
from tests.test_cli import refuse

FILES = {"metrics.csv", "report.md", "summary.json"}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return make_folders(tmp_path)


def command(folders: tuple[Path, Path], *options: str, protocol: str = "nnunet") -> list[str]:
    reference, prediction = map(str, folders)
    return ["evaluate", "-ref", reference, "-pred", prediction, "--protocol", protocol, "-np", "1", *options]


def read_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# nnU-Net's json


@pytest.mark.parametrize("regions", [False, True])
def test_summary_is_nnunets_with_more(tmp_path: Path, regions: bool) -> None:
    labels = {"background": 0, "a": 1, "b": 2, "c": 3, "never there": 4, "ignore": 5}
    if regions:
        labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": 3, "ignore": 4}
    reference, prediction = make_folders(tmp_path, labels=labels)
    open_voxels = random_labels(0, classes=4)
    open_voxels[open_voxels == 4] = labels["ignore"]
    write_nifti(reference / "case_0.nii.gz", open_voxels)
    _, folder = evaluate_folders(reference, prediction, "nnunet", processes=1)
    ours = nnunet.load_summary_json(str(folder / "summary.json"))

    manager = LabelManager(labels, [1, 2, 3] if regions else None)
    scored = manager.foreground_regions if regions else manager.foreground_labels
    scored = [tuple(part) if isinstance(part, list) else part for part in scored]
    theirs = [
        nnunet.compute_metrics(str(reference / name), str(prediction / name), NibabelIO(), scored, manager.ignore_label)
        for name in ("case_0.nii.gz", "case_1.nii.gz", "case_2.nii.gz")
    ]
    for got, expected in zip(ours["metric_per_case"], theirs, strict=True):
        assert got["reference_file"] == expected["reference_file"]
        assert got["prediction_file"] == expected["prediction_file"]
        assert got["metrics"].keys() == expected["metrics"].keys()
        for key, values in expected["metrics"].items():
            assert {name: got["metrics"][key][name] for name in values} == pytest.approx(values, nan_ok=True)
    for name in ("Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref"):
        values = {key: [case["metrics"][key][name] for case in theirs] for key in ours["mean"]}
        means = {key: np.nan if np.isnan(row).all() else np.nanmean(row) for key, row in values.items()}
        assert {key: mean[name] for key, mean in ours["mean"].items()} == pytest.approx(means, nan_ok=True)
        assert ours["foreground_mean"][name] == pytest.approx(np.mean(list(means.values())), nan_ok=True)


def test_report_and_csv(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(command(folders, "--tolerance", "1.5"))
    folder = folders[1] / "evaluation_nnunet"
    assert {path.name for path in folder.iterdir()} == FILES
    assert not list(folders[1].glob(".*"))
    shown = capsys.readouterr().out
    assert "| HD95" in shown
    assert f"into {folder}." in shown
    summary = json.loads((folder / "summary.json").read_text())
    rows = read_csv(folder)
    assert len(rows) == 9
    for row in rows:
        per_case = next(c for c in summary["metric_per_case"] if c["prediction_file"].endswith(f"{row['case']}.nii.gz"))
        assert summary["labels"][row["label"]] == row["class"]
        for name, value in per_case["metrics"][row["label"]].items():
            assert (row[name] == "") if math.isnan(value) else (float(row[name]) == value)
    report = (folder / "report.md").read_text()
    for metric in PROTOCOLS["nnunet"].metrics:
        lines = [line for line in report.splitlines() if line.startswith(f"| {metric.name} ")]
        assert len(lines) == metric.shown
        for line in lines:  # next to the numbers: definition, unit, rule
            assert metric.definition in line
            assert metric.empty in line
            assert not metric.unit or f"| {metric.unit} " in line
            assert f"{summary['foreground_mean'][metric.name]:.4f}" in line
    assert "1.5 mm" in report


def test_means_say_how_many_cases_they_hold(tmp_path: Path) -> None:
    reference, prediction = make_folders(tmp_path)
    empty = np.zeros_like(random_labels(0))
    write_nifti(prediction / "case_1.nii.gz", empty)
    evaluation, folder = evaluate_folders(reference, prediction, "nnunet", processes=1)
    assert evaluation.count("class 1", "HD95") == 2
    assert evaluation.count("class 1", "Dice") == 3
    assert "(2 of 3)" in (folder / "report.md").read_text()


def test_pooled_scores_count_all_pixels_together(tmp_path: Path) -> None:
    def write(path: Path, labels: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        imsave(path, labels, check_contrast=False)
        return path

    folders = make_folders(tmp_path, classes=1, write=write, ending=".png", shape=(30, 40))
    evaluation, folder = evaluate_folders(*folders, "isic", processes=1)
    pairs = [(random_labels(100 + n, (30, 40), 1), random_labels(n, (30, 40), 1)) for n in range(3)]
    guess, truth = (np.concatenate([pair[i].ravel() for pair in pairs]) > 0 for i in (0, 1))
    pooled = json.loads((folder / "summary.json").read_text())["pooled"]["1"]
    assert pooled["accuracy"] == pytest.approx((guess == truth).mean())
    assert pooled["Dice"] == pytest.approx(2 * (guess & truth).sum() / (guess.sum() + truth.sum()))
    assert pooled["sensitivity"] == pytest.approx((guess & truth).sum() / truth.sum())
    assert pooled["specificity"] == pytest.approx((~guess & ~truth).sum() / (~truth).sum())
    mean = evaluation.mean("foreground", "Dice")
    assert mean == pytest.approx(
        np.mean([2 * ((g > 0) & (t > 0)).sum() / ((g > 0).sum() + (t > 0).sum()) for g, t in pairs])
    )
    assert mean != pytest.approx(pooled["Dice"], abs=1e-4)
    assert "| Dice, pooled " in (folder / "report.md").read_text()


# File formats


def write_itk(path: Path, labels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(labels.T.astype(np.uint8))
    image.SetSpacing(SPACING)
    sitk.WriteImage(image, str(path))
    return path


def write_tif(path: Path, labels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, labels)
    path.with_suffix(".json").write_text(json.dumps({"spacing": SPACING}))
    return path


@pytest.mark.parametrize(
    ("ending", "write"),
    [(".nii.gz", write_nifti), (".nii", write_nifti), (".nrrd", write_itk), (".mha", write_itk), (".tif", write_tif)],
)
def test_every_format_gives_the_same_scores(tmp_path: Path, ending: str, write) -> None:
    folders = make_folders(tmp_path, 1, write=write, ending=ending)
    evaluation, _ = evaluate_folders(*folders, "flare21", labels="flare21", processes=1)
    expected = score_arrays("flare21", random_labels(100), random_labels(0), SPACING)
    for name, scores in expected.metrics.items():
        assert evaluation.cases[0].metrics[name] == pytest.approx(scores)


def test_files_without_a_voxel_size(tmp_path: Path) -> None:
    def write(path: Path, labels: np.ndarray) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        imsave(path, labels, check_contrast=False)
        return path

    folders = make_folders(tmp_path, 2, write=write, ending=".png", shape=(20, 21))
    _, folder = evaluate_folders(*folders, "nnunet", processes=1)
    report = (folder / "report.md").read_text()
    assert "| voxel " in report
    assert "| mm " not in report
    refuse(
        "case_0.png states no voxel size of three axes in mm",
        *command(folders, "--labels", "flare21", protocol="flare21"),
    )
    imsave(folders[1] / "case_1.png", np.zeros((20, 21, 3), dtype=np.uint8), check_contrast=False)
    refuse("case_1.png is a colour image", *command(folders, "--overwrite"))
    imsave(folders[1] / "case_1.png", np.full((20, 21), 255, dtype=np.uint8), check_contrast=False)
    refuse("case_1.png holds the label 255", *command(folders, "--overwrite"))


# Checks


def change(folders: tuple[Path, Path], **settings) -> None:
    write_nifti(folders[1] / "case_1.nii.gz", settings.pop("labels", random_labels(101)), **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"labels": random_labels(1, (13, 14, 8))},
            "has 13 x 14 x 8 voxels, but its reference case_1.nii.gz has 13 x 14 x 9",
        ),
        (
            {"spacing": (0.8, 0.9, 2.0)},
            "4.25 mm (its spacing is 0.8 x 0.9 x 2 mm instead of 0.8 x 0.9 x 2.5 mm)",
        ),
        ({"origin": (5.0, -3.0, 7.2)}, "lies elsewhere than its reference case_1.nii.gz, by up to 0.2 mm"),
        ({"labels": random_labels(1, classes=4)}, "holds the label 4, which"),
        ({"labels": np.full((13, 14, 9), -1, dtype=np.int16)}, "holds the label -1, which"),
        ({"labels": np.full((13, 14, 9), 70000, dtype=np.int32)}, "holds the label 70000, which"),
        ({"labels": np.full((13, 14, 9), 0.5, dtype=np.float32)}, "holds numbers that are not whole"),
        ({"labels": np.full((13, 14, 9), np.nan, dtype=np.float32)}, "holds numbers that are not whole"),
        ({"labels": np.zeros((13, 14, 9, 2), dtype=np.uint8)}, "has the shape (13, 14, 9, 2); a label map has two or"),
    ],
)
def test_what_does_not_fit_is_named(folders: tuple[Path, Path], settings: dict, words: str) -> None:
    change(folders, **settings)
    refuse(words, *command(folders))
    refuse(str(folders[1] / "case_1.nii.gz"), *command(folders))
    assert not (folders[1] / "evaluation_nnunet").exists()


def test_small_differences_of_headers_are_none(folders: tuple[Path, Path]) -> None:
    change(folders, labels=random_labels(101).astype(np.float64), origin=(5.00001, -3.0, 7.0))
    cli.main(command(folders))


def test_reference_that_does_not_state_its_position(folders: tuple[Path, Path]) -> None:
    """SimpleITK, with which nnU-Net reads and writes, places such a file elsewhere than nibabel does."""
    path = folders[0] / "case_1.nii.gz"
    image = nibabel.load(path)
    image.header["qform_code"] = image.header["sform_code"] = 0
    nibabel.save(nibabel.Nifti1Image(image.dataobj, None, image.header), path)
    read = sitk.ReadImage(str(path))
    prediction = sitk.GetImageFromArray(random_labels(101).T)
    prediction.CopyInformation(read)
    sitk.WriteImage(prediction, str(folders[1] / path.name))
    assert not np.allclose(nibabel.load(path).affine, nibabel.load(folders[1] / path.name).affine)
    evaluation, _ = evaluate_folders(*folders, "nnunet", processes=1)
    masks = (random_labels(101) == 1, random_labels(1) == 1)
    expected = score_arrays("nnunet", *masks, SPACING, "binary", {"foreground": 1.0})
    assert evaluation.cases[1].metrics["class 1"] == pytest.approx(expected.metrics["foreground"])
    change(folders, labels=random_labels(101), spacing=(0.8, 0.9, 2.0))
    refuse("its spacing is 0.8 x 0.9 x 2 mm instead of 0.8 x 0.9 x 2.5 mm", *command(folders, "--overwrite"))


def test_fourth_axis_of_one_entry_is_none(folders: tuple[Path, Path], tmp_path: Path) -> None:
    expected, _ = evaluate_folders(*folders, "nnunet", output=tmp_path / "three axes", processes=1)
    write_nifti(folders[0] / "case_1.nii.gz", random_labels(1)[..., None])
    evaluation, _ = evaluate_folders(*folders, "nnunet", processes=1)
    assert evaluation.cases[1].metrics == expected.cases[1].metrics


def test_missing_and_surplus_files_are_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    reference, prediction = folders
    (prediction / "case_0.nii.gz").rename(prediction / "extra.nii.gz")
    refuse(f"{prediction / 'extra.nii.gz'} has no reference", *command(folders))
    (prediction / "extra.nii.gz").unlink()
    refuse(f"{reference / 'case_0.nii.gz'} has no prediction", *command(folders))
    cli.main(command(folders, "--chill"))
    assert {row["case"] for row in read_csv(prediction / "evaluation_nnunet")} == {"case_1", "case_2"}
    (tmp_path / "empty").mkdir()
    refuse("holds no .nii.gz files", *command((reference, tmp_path / "empty")))
    refuse("holds no files", *command((tmp_path / "empty", prediction), "--overwrite"))
    refuse("There is no folder", *command((tmp_path / "nowhere", prediction), "--overwrite"))
    write_itk(reference / "case_0.mha", random_labels(0))
    refuse("holds files of several formats", *command(folders, "-o", str(tmp_path / "other")))


def test_hidden_files_are_left_alone(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        (folder / "._case_0.nii.gz").write_bytes(b"\0\5\26\7")
    (folders[0] / "._case_0.png").write_bytes(b"\0\5\26\7")
    evaluation, _ = evaluate_folders(*folders, "nnunet", processes=1)
    assert [case.prediction.name for case in evaluation.cases] == [f"case_{n}.nii.gz" for n in range(3)]


def test_files_that_are_no_label_maps_are_named(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "colours.nii.gz", np.zeros((4, 5, 6), dtype=[(c, np.uint8) for c in "RGB"]))
    with pytest.raises(UserError, match=r"colours\.nii\.gz holds .* instead of plain numbers"):
        read_label_image(path)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 3), np.uint8), isVector=True), tmp_path / "vectors.mha")
    with pytest.raises(UserError, match=r"vectors\.mha holds several channels instead of plain numbers"):
        read_label_image(tmp_path / "vectors.mha")


def test_damaged_files_are_named(folders: tuple[Path, Path]) -> None:
    path = folders[1] / "case_2.nii.gz"
    path.write_bytes(path.read_bytes()[:100])
    refuse(f"{path} cannot be read as an image", *command(folders))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("no protocol 'dice'; there are nnunet, transunet", ["--protocol", "dice"]),
        ("no label map 'organs'", ["--labels", "organs"]),
        ("cannot be read as nnU-Net's dataset.json", ["--labels", "nowhere.json"]),
        ("leaves no tolerance to choose", ["--protocol", "flare21", "--labels", "flare21", "--tolerance", "2"]),
        ("has no tolerance for aorta", ["--protocol", "flare21", "--labels", "synapse-transunet"]),
        ("The tolerance -1.0 is not a distance", ["--tolerance", "-1"]),
        ("0 processes cannot work", ["-np", "0"]),
    ],
)
def test_options_that_do_not_fit(folders: tuple[Path, Path], words: str, options: list[str]) -> None:
    refuse(words, *command(folders, *options))


def test_labels_come_from_where_the_user_would_look(tmp_path: Path) -> None:
    def dataset_json(**labels) -> Path:
        path = tmp_path / "dataset.json"
        path.write_text(json.dumps({"labels": {"background": 0, **labels}}))
        return path

    found = dataset_json(Kidneys=2, LIVER=1, spleen=3, pancreas=4)
    assert find_labels(None, "flare21", found) is LABEL_MAPS["flare21"]
    assert find_labels(None, None, found) == read_dataset_json(found)
    found = dataset_json(spleen=1, kidney=2, liver=3, pancreas=4)
    with pytest.raises(
        UserError, match="says that 1 is spleen, flare21 says liver; say what the files hold with --lab"
    ):
        find_labels(None, "flare21", found)
    assert find_labels("flare21", "flare21", found) is LABEL_MAPS["flare21"]
    assert find_labels(str(found), "flare21", None).classes["liver"] == 3
    with pytest.raises(UserError, match="has the label 9, which acdc does not know"):
        find_labels(None, "acdc", dataset_json(RV=1, MLV=2, LVC=3, more=9))
    assert find_labels(None, "acdc", dataset_json(RV=1, MLV=2, LVC=3)) is LABEL_MAPS["acdc"]
    written_out = dataset_json(**{"Right Ventricle": 1, "myocardium": 2, "left-ventricle_cavity": 3})
    assert find_labels(None, "acdc", written_out) is LABEL_MAPS["acdc"]
    with pytest.raises(UserError, match="says that 1 is LV, acdc says right ventricle cavity"):
        find_labels(None, "acdc", dataset_json(LV=1, MLV=2, RV=3))
    assert find_labels(None, "btcv-8", dataset_json(spleen=1, esophagus=5, left_adrenal=13)) is LABEL_MAPS["btcv-8"]
    assert find_labels(None, "binary", dataset_json(polyp=1)) is LABEL_MAPS["binary"]
    with pytest.raises(UserError, match=r"no dataset\.json by the label maps"):
        find_labels(None, None, None)
    with pytest.raises(UserError, match="names no label"):
        find_labels(None, None, dataset_json())


def test_unknown_values_are_not_scored_as_background(folders: tuple[Path, Path]) -> None:
    """BTCV's other labels are known to nnFormer's protocol, and change nothing."""
    reference, prediction = folders
    (reference.parent / "dataset.json").unlink()
    before, _ = evaluate_folders(reference, prediction, "nnformer", processes=1)
    labels = random_labels(100)
    labels[labels == 0] = np.where(np.arange((labels == 0).sum()) % 2, 5, 13)
    write_nifti(prediction / "case_0.nii.gz", labels)
    after, _ = evaluate_folders(reference, prediction, "nnformer", processes=1, overwrite=True)
    assert [case.metrics for case in after.cases] == [case.metrics for case in before.cases]
    labels[labels == 5] = 14
    write_nifti(prediction / "case_0.nii.gz", labels)
    refuse("holds the label 14, which btcv-8 does not know", *command(folders, "--overwrite", protocol="nnformer"))


# All or nothing


def test_nothing_is_overwritten_unasked(folders: tuple[Path, Path], tmp_path: Path) -> None:
    cli.main(command(folders))
    folder = folders[1] / "evaluation_nnunet"
    (folder / "report.md").write_text("mine")
    refuse("exists: use it, choose another folder with -o, or write it anew with --overwrite", *command(folders))
    assert (folder / "report.md").read_text() == "mine"
    cli.main(command(folders, "--overwrite"))
    assert (folder / "report.md").read_text().startswith("# Scores")
    assert {path.name for path in folder.iterdir()} == FILES
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.tex").write_text("dear")
    refuse("is not an earlier evaluation", *command(folders, "--overwrite", "-o", str(other)))
    assert (other / "chapter.tex").read_text() == "dear"
    refuse("chapter.tex cannot be written to", *command(folders, "-o", str(other / "chapter.tex" / "new")))
    cli.main(command(folders, "-o", str(tmp_path / "deep" / "new")))
    assert {path.name for path in (tmp_path / "deep" / "new").iterdir()} == FILES


def test_a_run_that_ends_while_it_writes_leaves_the_earlier_one(folders: tuple[Path, Path], monkeypatch) -> None:
    cli.main(command(folders))
    folder = folders[1] / "evaluation_nnunet"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def interrupted(evaluation, where: Path) -> None:
        (where / "summary.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cli.main(command(folders, "--overwrite"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not list(folders[1].glob(".*"))
    # What not even Python can clean up, a killed process, is cleaned up by the next.
    (folders[1] / ".evaluation_nnunet.abc.partial" / "new").mkdir(parents=True)
    cli.main(command(folders, "--overwrite"))
    assert not list(folders[1].glob(".*"))


def test_parallel_work_gives_the_same_in_order(folders: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    evaluate_folders(*folders, "nnunet", output=tmp_path / "one", processes=1)
    evaluate_folders(*folders, "nnunet", output=tmp_path / "two", processes=2)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "3/3" in capsys.readouterr().err
    change(folders, labels=random_labels(1, classes=7))
    with pytest.raises(UserError, match=r"case_1\.nii\.gz holds the label"):
        evaluate_folders(*folders, "nnunet", output=tmp_path / "three", processes=2)
    assert not (tmp_path / "three").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_in_the_middle(tmp_path: Path, kind: signal.Signals) -> None:
    folders = make_folders(tmp_path, 30, shape=(60, 60, 40))
    before = sorted(folders[1].iterdir())
    arguments = [part if part != "1" else "2" for part in command(folders)]
    killed = subprocess.Popen(
        [sys.executable, "-m", "nnunetv2_ext.cli", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    shown = b""
    while b" 1/30" not in shown:
        shown += os.read(killed.stderr.fileno(), 1000) or pytest.fail(shown.decode())
    workers = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    assert len(workers) >= 2
    assert killed.poll() is None
    killed.send_signal(kind)
    killed.communicate(timeout=60)
    until = time.monotonic() + 60
    while any(Path(f"/proc/{worker}/fd").is_dir() and is_alive(worker) for worker in workers):
        assert time.monotonic() < until, "a worker outlives its parent"
        time.sleep(0.1)
    assert sorted(folders[1].iterdir()) == before
    cli.main(command(folders))
    assert len(read_csv(folders[1] / "evaluation_nnunet")) == 90


def is_alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_images_are_read_as_they_are(tmp_path: Path) -> None:
    labels = random_labels(3)
    read = read_label_image(write_nifti(tmp_path / "a.nii.gz", labels.astype(">i2")))
    assert np.array_equal(read.labels, labels)
    assert read.labels.flags.c_contiguous
    assert read.spacing == pytest.approx(SPACING)
