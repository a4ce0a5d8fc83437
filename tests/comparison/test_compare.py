"""The command `compare` on result folders and folders of predictions: its numbers, and odd input by the sentence."""

from __future__ import annotations

import json
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from nnunetv2_ext.cli import main
from nnunetv2_ext.comparison.results import label_key
from nnunetv2_ext.comparison.training import read_checkpoint
from tests.comparison.trainings import DATASET, entry, write_summary, write_trainings

TRAINERS = ("nnUNetTrainer", "nnUNetTrainerDCA", "OtherPackagesTrainer")
Compare = Callable[..., dict[str, Any]]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path / "results"


@pytest.fixture(autouse=True)
def _no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report, which takes most of the time, but where a test asks for it."""
    if "report" not in request.fixturenames:
        monkeypatch.setattr("nnunetv2_ext.comparison.report.write_report", lambda comparison, folder: None)


@pytest.fixture
def report() -> None:
    """Let the report be written."""


@pytest.fixture
def compare(results: Path, tmp_path: Path) -> Compare:
    """Return a function that runs the command on trainings, and gives the content of comparison.json."""

    def run(
        *options: str, trainers: tuple[str, ...] = TRAINERS, folds: str = "0 1", datasets: str = "1"
    ) -> dict[str, Any]:
        output = tmp_path / "report"
        arguments = ["compare", "-d", *datasets.split(), "-c", "3d_fullres", "-tr", *trainers, "-f", *folds.split()]
        main([*arguments, "-o", str(output), "--overwrite", *options])
        return json.loads((output / "comparison.json").read_text())

    return run


def finding(comparison: dict[str, Any], *words: str) -> str:
    """Return the one sentence among the findings that has all these words."""
    (found,) = [sentence for sentence in comparison["findings"] if all(word in sentence for word in words)]
    return found


def test_the_numbers_of_a_comparison(compare: Compare, results: Path, tmp_path: Path) -> None:
    write_trainings(results, TRAINERS)
    comparison = compare()
    assert comparison["reference"] == "nnUNetTrainer"
    assert comparison["metric"] == "Dice"
    assert list(comparison["trainers"]) == list(TRAINERS)
    means = {}
    for trainer, numbers in comparison["trainers"].items():
        scores = []
        for fold in (0, 1):
            summary = results / DATASET / f"{trainer}__nnUNetPlans__3d_fullres" / f"fold_{fold}/validation/summary.json"
            for case in json.loads(summary.read_text())["metric_per_case"]:
                scores.append(np.mean([values["Dice"] for values in case["metrics"].values()]))
        means[trainer] = np.mean(scores)
        assert numbers["mean"] == pytest.approx(means[trainer], abs=1e-12)
        assert numbers["n"] == 24
        low, high = numbers["ci95"]
        assert low < numbers["mean"] < high
    assert len(comparison["pairs"]) == 3
    for pair in comparison["pairs"]:
        assert pair["difference"] == pytest.approx(means[pair["a"]] - means[pair["b"]], abs=1e-12)
        assert pair["p"] <= pair["p_holm"] <= 1
    assert comparison["friedman"]["mean_ranks"]["nnUNetTrainer"] > 2
    assert comparison["missing"] == []
    cases = (tmp_path / "report/cases.csv").read_text().splitlines()
    assert cases[0] == "dataset,case,trainer,fold,Dice"
    assert len(cases) == 1 + 24 * 3
    assert len((tmp_path / "report/labels.csv").read_text().splitlines()) == 1 + 24 * 3 * 2


def test_a_training_against_itself(compare: Compare, results: Path) -> None:
    write_trainings(results, ("A",))
    pair = compare(trainers=("A", "A"))["pairs"][0]
    assert (pair["difference"], pair["ci95"], pair["p"], pair["p_holm"]) == (0, [0, 0], 1, 1)
    assert (pair["wins"], pair["ties"], pair["losses"]) == (0, 24, 0)


def test_the_same_input_gives_the_same_bytes(compare: Compare, results: Path, tmp_path: Path, report: None) -> None:
    write_trainings(results, TRAINERS)
    folder = tmp_path / "report"

    def contents() -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    compare()
    first = contents()
    assert {"comparison.json", "cases.csv", "labels.csv", "index.html", "report.md", "tables.tex"} <= first.keys()
    compare()
    assert contents() == first
    with pytest.raises(SystemExit, match="exists"):
        main(["compare", "-d", "1", "-c", "3d_fullres", "-tr", *TRAINERS, "-o", str(folder)])


def test_a_thousand_cases_of_five_trainers_are_fast(compare: Compare, results: Path) -> None:
    trainers = tuple("ABCDE")
    write_trainings(results, trainers, folds=range(5), per_fold=200)
    started = time.process_time()
    comparison = compare("--metric", "Dice", "IoU", trainers=trainers, folds="0 1 2 3 4")
    assert time.process_time() - started < 10
    assert comparison["trainers"]["A"]["n"] == 1000


def test_reference_plans_and_names(compare: Compare, results: Path) -> None:
    write_trainings(results, ("A",))
    write_trainings(results, ("A", "B"), plans="nnUNetResEncUNetMPlans")
    comparison = compare("-p", "nnUNetPlans", "nnUNetResEncUNetMPlans", "--reference", "A", trainers=("A", "A"))
    assert list(comparison["trainers"]) == ["A", "A__nnUNetResEncUNetMPlans"]
    sentence = finding(comparison, "plans differ")
    assert "nnUNetPlans (A)" in sentence
    comparison = compare("-p", "nnUNetResEncUNetMPlans", "--reference", "B", trainers=("A", "B"))
    assert [(pair["a"], pair["b"]) for pair in comparison["pairs"]] == [("A", "B")]
    with pytest.raises(SystemExit, match="C is not among those"):
        compare("--reference", "C")
    with pytest.raises(SystemExit, match="2 plans are named for 3 trainers"):
        compare("-p", "x", "y")


def test_several_datasets_are_the_unit(compare: Compare, results: Path) -> None:
    for number in (1, 2, 3):
        write_trainings(results, TRAINERS, dataset=f"Dataset00{number}_X")
    two = compare(datasets="1 2")
    assert two["trainers"]["nnUNetTrainer"]["n"] == 2
    assert "nothing can be said" in finding(two, "fewer than 3")
    three = compare(datasets="1 2 Dataset003_X")
    assert three["unit"] == "dataset"
    assert three["pairs"][0]["n"] == 3
    assert not any("fewer than 3" in sentence for sentence in three["findings"])
    assert [result["dataset"] for result in three["results"]] == [f"Dataset00{n}_X" for n in (1, 2, 3)] + [None]


# Odd input, each with its sentence


def test_a_missing_run_is_listed_with_its_command(compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS[:2])
    write_trainings(results, TRAINERS, folds=(0,))
    fold = results / DATASET / "OtherPackagesTrainer__nnUNetPlans__3d_fullres/fold_2"
    fold.mkdir()
    (fold / "checkpoint_final.pth").touch()
    comparison = compare("--metric", "Dice", folds="0 1 2")
    commands = {(missing["trainer"], missing["fold"]): missing["command"] for missing in comparison["missing"]}
    train = f"nnUNetv2_train {DATASET} 3d_fullres"
    assert commands == {
        ("nnUNetTrainer", 2): f"{train} 2 -tr nnUNetTrainer",
        ("nnUNetTrainerDCA", 2): f"{train} 2 -tr nnUNetTrainerDCA",
        ("OtherPackagesTrainer", 1): f"{train} 1 -tr OtherPackagesTrainer",
        ("OtherPackagesTrainer", 2): f"{train} 2 -tr OtherPackagesTrainer --val",
    }
    assert finding(comparison, "4 are missing")
    assert "0 (OtherPackagesTrainer)" in finding(comparison, "folds differ")
    assert comparison["trainers"]["nnUNetTrainer"]["n"] == 12


def test_a_trainer_without_any_run(compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS[:2])
    comparison = compare()
    assert comparison["trainers"]["OtherPackagesTrainer"] == {"n": 0, "mean": None, "median": None, "ci95": None}
    assert comparison["trainers"]["nnUNetTrainer"]["n"] == 24
    assert len(comparison["missing"]) == 2
    with pytest.raises(SystemExit, match=r"no finished training to compare.*nnUNetv2_train Dataset001_Heart"):
        compare(trainers=("X", "Y"))


def test_a_training_that_has_not_ended(compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS)
    (results / DATASET / "nnUNetTrainerDCA__nnUNetPlans__3d_fullres/fold_1/checkpoint_latest.pth").touch()
    (missing,) = compare()["missing"]
    assert missing["command"].endswith("1 -tr nnUNetTrainerDCA --c")
    assert "not come to its end" in missing["what"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"metric_per_case": [{}]}', '{"metric_per_case": []}', '{"mean": 1}'])
def test_a_corrupted_summary(text: str, compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS)
    write_summary(results, "nnUNetTrainerDCA", 1, []).write_text(text)
    comparison = compare()
    (missing,) = comparison["missing"]
    assert "summary.json" in missing["what"]
    assert comparison["trainers"]["nnUNetTrainerDCA"]["n"] == 12


@pytest.mark.parametrize("dice", ["0.9", 1.5, -1, [0.5]])
def test_a_dice_that_is_none(dice: Any, compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS)
    wrong = entry("heart_0000", {"1": 0.5, "2": 0.5})
    wrong["metrics"]["1"]["Dice"] = dice
    write_summary(results, "nnUNetTrainerDCA", 0, [wrong])
    comparison = compare()
    if isinstance(dice, str):  # a number all the same
        assert comparison["missing"] == []
    else:
        assert "Dice of label 1" in comparison["missing"][0]["what"] or "float" in comparison["missing"][0]["what"]


def change_first(trainer_of_change: str, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Any:
    def changed(trainer: str, fold: int, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return change(entries) if trainer == trainer_of_change and fold == 0 else entries

    return changed


def test_a_case_missing_in_one_trainer(compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS, change=change_first("nnUNetTrainerDCA", lambda entries: entries[1:]))
    comparison = compare()
    assert "heart_0000" in finding(comparison, "nnUNetTrainerDCA has no score of")
    assert {numbers["n"] for numbers in comparison["trainers"].values()} == {23}


def test_a_case_twice(compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS, change=change_first("nnUNetTrainerDCA", lambda entries: [*entries, entries[0]]))
    comparison = compare()
    assert "heart_0000" in finding(comparison, "more than once")
    assert comparison["trainers"]["nnUNetTrainerDCA"]["n"] == 24
    write_summary(results, "nnUNetTrainer", 1, [entry("heart_0000", {"1": 0.1, "2": 0.1})])
    comparison = compare()
    assert "heart_0000" in finding(comparison, "validated in fold 0 and again in fold 1")


def test_other_splits(compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS)
    fold = results / DATASET / "nnUNetTrainerDCA__nnUNetPlans__3d_fullres"
    (fold / "fold_0").rename(fold / "fold_9")
    (fold / "fold_1").rename(fold / "fold_0")
    (fold / "fold_9").rename(fold / "fold_1")
    assert "24 cases" in finding(compare(), "splits", "differ")


def test_labels_that_are_absent(compare: Compare, results: Path) -> None:
    """NaN Dice: absent on both sides; and predicted by one trainer where the reference has nothing."""

    def absent(trainer: str, fold: int, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if fold == 0:
            entries[0] = entry("heart_0000", {"1": 0.5, "2": None})
            entries[1] = entry("heart_0001", {"1": 0.5, "2": None})
            if trainer == "nnUNetTrainerDCA":
                entries[1]["metrics"]["2"].update(Dice=0.0, IoU=0.0, FP=7, n_pred=7)
        return entries

    write_trainings(results, TRAINERS, change=absent)
    comparison = compare()
    assert "heart_0000, label 2" in finding(comparison, "in any trainer")
    assert "heart_0001, label 2" in finding(comparison, "some trainers only")
    assert comparison["failures"]["nnUNetTrainerDCA"]["false_positives"] == 1
    assert comparison["failures"]["nnUNetTrainer"]["false_positives"] == 0
    assert comparison["failures"]["nnUNetTrainer"]["without_reference"] == 2
    assert comparison["labels"]["2"]["nnUNetTrainer"]["n"] == 22


def test_a_missed_organ_is_counted(compare: Compare, results: Path) -> None:
    def missed(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        entries[3]["metrics"]["1"].update(Dice=0.0, IoU=0.0, TP=0, n_pred=0, FP=0)
        return entries

    write_trainings(results, TRAINERS, change=change_first("nnUNetTrainerDCA", missed))
    failures = compare()["failures"]
    assert {name: numbers["missed"] for name, numbers in failures.items()} == {
        "nnUNetTrainer": 0,
        "nnUNetTrainerDCA": 1,
        "OtherPackagesTrainer": 0,
    }
    assert failures["nnUNetTrainerDCA"]["worst_cases"][0] == "heart_0003"


def test_regions_one_class_and_other_classes(compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS, labels=("(1, 2)", "(2,)"))
    comparison = compare()
    assert list(comparison["labels"]) == ["2", "(1, 2)"]
    assert finding(comparison, "regions")
    write_trainings(results, TRAINERS, labels=("1",))
    assert finding(compare(), "one label")
    write_trainings(results, TRAINERS[1:], labels=("1", "2"))
    comparison = compare()
    assert "labels 1 (nnUNetTrainer)" in finding(comparison, "labels", "differ")
    assert list(comparison["labels"]) == ["1"]
    write_trainings(results, TRAINERS[1:], labels=("3",))
    with pytest.raises(SystemExit, match=r"no label .* in common"):
        compare()


def test_region_keys_are_nnunets() -> None:
    from nnunetv2.evaluation.evaluate_predictions import key_to_label_or_region

    for key in ("1", "12", "(1, 2)", "(1,2,3)", "(1, 2,)"):
        found = key_to_label_or_region(key)
        assert label_key(key) == str(found if isinstance(found, int) else tuple(found))
    for key in ("", "a", "(1", "1, 2", "__import__('os')"):
        with pytest.raises(ValueError, match="neither"):
            label_key(key)


def test_the_ignore_label_and_names(compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS)
    labels = {"background": 0, "atrium": 1, "<b>ventricle</b>": 2, "ignore": 3}
    for trainer in TRAINERS:
        path = results / DATASET / f"{trainer}__nnUNetPlans__3d_fullres" / "dataset.json"
        path.write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    comparison = compare()
    assert finding(comparison, "ignore label (3)")
    assert comparison["datasets"][0]["labels"] == {"1": "atrium", "2": "<b>ventricle</b>"}


def test_few_cases_and_one_seed(compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS, per_fold=3)
    comparison = compare()
    assert "n = 6" in finding(comparison, "fewer than 20")
    assert finding(comparison, "trained once")
    write_trainings(results, TRAINERS, per_fold=1, folds=(0,))
    alone = compare(folds="0")
    assert alone["trainers"]["nnUNetTrainer"]["ci95"] is None
    assert finding(alone, "One fold alone")


# What trainings say about themselves


def describe(results: Path, trainer: str, fold: int, **debug: str) -> Path:
    folder = results / DATASET / f"{trainer}__nnUNetPlans__3d_fullres" / f"fold_{fold}"
    (folder / "debug.json").write_text(json.dumps(debug))
    return folder


def test_settings_that_differ(compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS)
    same = {"num_epochs": "1000", "num_iterations_per_epoch": "250", "batch_size": "2", "is_ddp": "False",
            "inference_allowed_mirroring_axes": "(0, 1, 2)", "torch_version": "2.7.0", "gpu_name": "A100"}  # fmt: skip
    other = {**same, "num_epochs": "250", "batch_size": "4", "inference_allowed_mirroring_axes": "None",
             "torch_version": "2.8.0", "gpu_name": "H100"}  # fmt: skip
    for fold in (0, 1):
        describe(results, "nnUNetTrainer", fold, **same)
        describe(results, "nnUNetTrainerDCA", fold, **same)
        describe(results, "OtherPackagesTrainer", fold, **other)
    comparison = compare()
    groups = "(nnUNetTrainer, nnUNetTrainerDCA), {} (OtherPackagesTrainer)"
    assert "1000 x 250 " + groups.format("250 x 250") in finding(comparison, "lengths of training differ")
    assert "2 " + groups.format("4") in finding(comparison, "batch sizes differ")
    assert "0, 1, 2 " + groups.format("none") in finding(comparison, "axes of mirroring differ")
    assert "2.7.0 " + groups.format("2.8.0") in finding(comparison, "versions of torch differ")
    assert "A100 " + groups.format("H100") in finding(comparison, "different cards")
    describe(results, "nnUNetTrainer", 1, **{**same, "num_epochs": "500"})
    comparison = compare()
    assert "500 x 250 (fold 1)" in finding(comparison, "several lengths of training")
    assert "short" not in comparison["kinds_of_findings"]
    describe(results, "nnUNetTrainerDCA", 0, **{**same, "num_epochs": "10", "num_iterations_per_epoch": "50"})
    assert "10 x 50 (nnUNetTrainerDCA);" in finding(compare(), "short", "decides nothing")


def test_costs_of_epochs(compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS, folds=(0,))
    folder = describe(results, "nnUNetTrainer", 0)
    line = {
        "train_loss": 0.1,
        "val_loss": 0.1,
        "device": "A100",
        "max_allocated_mib": 7000.5,
        "max_reserved_mib": 8000.0,
    }
    # Epoch 1 was trained again after a crash.
    seconds = [(0, 100.0), (1, 90.0), (1, 120.0), (2, 110.0)]
    lines = [json.dumps({"epoch": epoch, "seconds": took, **line}) for epoch, took in seconds]
    (folder / "epochs.jsonl").write_text("\n".join([*lines, '{"epoch": 3, "sec']))
    folder = describe(results, "OtherPackagesTrainer", 0, gpu_name="A100")
    # A gap of a day between two epochs: the training was resumed.
    starts = [np.float64(0.0), np.float64(100000.0)]
    shared = torch.zeros(10)
    torch.save(
        {
            "network_weights": {"encoder.w": shared, "decoder.encoder.w": shared, "b": torch.ones(3)},
            "logging": {"epoch_start_timestamps": starts, "epoch_end_timestamps": [start + 50 for start in starts]},
            "init_args": {"device": torch.device("cpu")},
        },
        folder / "checkpoint_final.pth",
    )
    log = "\n2026-01-01 10:00:{}: predicting heart_{}"
    (folder / "training_log_2026_1_1_10_00_00.txt").write_text(log.format("00.0", 1) + log.format("02.5", 2))
    comparison = compare(folds="0")
    costs = {cost["trainer"]: cost for cost in comparison["costs"]}
    ours, others = costs["nnUNetTrainer"], costs["OtherPackagesTrainer"]
    assert (ours["memory_measured_mib"], ours["memory_reserved_mib"], ours["card"]) == (7000.5, 8000, "A100")
    assert ours["seconds_per_epoch"] == 110
    assert ours["gpu_hours"] == pytest.approx(420 / 3600)
    assert (others["parameters"], others["seconds_per_epoch"], others["inference_seconds"]) == (13, 50, 2.5)
    assert others["gpu_hours"] == pytest.approx(100 / 3600)
    assert finding(comparison, "epochs.jsonl", "1 lines")


def test_checkpoints_of_an_earlier_numpy(tmp_path: Path) -> None:
    """They name the place of numpy's scalars before numpy 2."""
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"logging": {"epoch_start_timestamps": [np.float64(1.5)], "dice": [[np.float32(0.5)]]}}, path)
    older = tmp_path / "older.pth"
    with zipfile.ZipFile(path) as new, zipfile.ZipFile(older, "w") as old:
        for item in new.infolist():
            old.writestr(item, new.read(item).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert path.read_bytes() != older.read_bytes()
    assert read_checkpoint(path) == read_checkpoint(older)
    assert read_checkpoint(older)["logging"]["epoch_start_timestamps"] == [1.5]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def test_nothing_that_is_read_is_executed(
    compare: Compare, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_trainings(results, TRAINERS, folds=(0,))
    folder = describe(results, "OtherPackagesTrainer", 0)
    torch.save({"logging": {}, "network_weights": Bomb()}, folder / "checkpoint_final.pth")
    comparison = compare(folds="0")
    assert "is not read" in finding(comparison, "checkpoint_final.pth", "OtherPackagesTrainer", "fold 0: ")
    (folder / "checkpoint_final.pth").write_bytes(pickle.dumps(Bomb()))
    assert compare(folds="0")["trainers"]["OtherPackagesTrainer"]["n"] == 12
    assert not Path("exploded").exists()


def test_damaged_records_are_named(compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS, folds=(0,))
    folder = describe(results, "nnUNetTrainer", 0)
    (folder / "debug.json").write_text("{")
    for name in ("plans.json", "dataset.json"):
        (folder.parent / name).write_text("[1]")
    comparison = compare(folds="0")
    assert finding(comparison, "debug.json cannot be read")
    assert finding(comparison, "plans.json cannot be read")
    assert comparison["trainers"]["nnUNetTrainer"]["n"] == 12


def test_a_validation_older_than_its_training(compare: Compare, results: Path) -> None:
    import os

    write_trainings(results, TRAINERS, folds=(0,))
    folder = describe(results, "nnUNetTrainer", 0)
    torch.save({"logging": {}}, folder / "checkpoint_final.pth")
    os.utime(folder / "validation/summary.json", (1, 1))
    assert "fold 0" in finding(compare(folds="0"), "older than checkpoint_final.pth")


def test_a_baseline_of_less_memory(compare: Compare, results: Path) -> None:
    write_trainings(results, TRAINERS, folds=(0,))
    for trainer, mib in zip(TRAINERS, (7000.0, 20000.0, 7500.0), strict=True):
        record = {"epoch": 0, "seconds": 1.0, "device": "A100", "max_allocated_mib": mib}
        (describe(results, trainer, 0) / "epochs.jsonl").write_text(json.dumps(record))
    sentence = finding(compare(folds="0"), "took 7,000 MiB")
    assert "20,000 MiB (nnUNetTrainerDCA)" in sentence
    assert "OtherPackagesTrainer" not in sentence


# Label maps


def write_label_map(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), np.diag([1.0, 1.0, 2.0, 1.0])), path)


def spheres(shift: int) -> np.ndarray:
    labels = np.zeros((24, 24, 12))
    labels[6 + shift : 14 + shift, 6:14, 3:9] = 1
    labels[15:20, 15 + shift : 20 + shift, 2:8] = 2
    return labels


@pytest.fixture
def references(tmp_path: Path) -> Path:
    folder = tmp_path / "raw" / DATASET / "labelsTs"
    for case in range(3):
        write_label_map(folder / f"heart_{case}.nii.gz", spheres(0))
    (folder.parent / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1, "b": 2}}))
    return folder


def test_folders_of_predictions(references: Path, tmp_path: Path) -> None:
    for name, shift in (("exact", 0), ("off", 1)):
        for case in range(3 if name == "exact" else 2):
            write_label_map(tmp_path / name / f"heart_{case}.nii.gz", spheres(shift))
    output = tmp_path / "report"
    main(["compare", "--predictions", f"exact={tmp_path / 'exact'}", f"off={tmp_path / 'off'}", "-ref", str(references),
          "--metric", "HD95", "NSD", "Dice", "-np", "1", "-o", str(output)])  # fmt: skip
    comparison = json.loads((output / "comparison.json").read_text())
    assert comparison["metric"] == "HD95"
    assert not comparison["higher_is_better"]
    assert comparison["trainers"]["exact"]["mean"] == 0
    assert comparison["trainers"]["off"]["mean"] == 1
    assert comparison["trainers"]["off"]["n"] == 2
    (pair,) = comparison["pairs"]
    assert (pair["a"], pair["wins"], pair["losses"]) == ("off", 0, 2)
    assert "heart_2" in finding(comparison, "off has no score")
    dice = next(result for result in comparison["results"] if result["metric"] == "Dice")
    # Overlap of two boxes that are shifted by one voxel: 7 of 8, and 4 of 5 voxels.
    assert dice["trainers"]["off"]["mean"] == pytest.approx((7 / 8 + 4 / 5) / 2)


def test_distances_of_trainings_come_from_their_label_maps(
    compare: Compare, results: Path, tmp_path: Path, references: Path
) -> None:
    shutil.copytree(references, tmp_path / "preprocessed" / DATASET / "gt_segmentations")
    for trainer, shift in zip(TRAINERS, (0, 1, 2), strict=True):
        entries = [entry(f"heart_{case}", {"1": 0.5, "2": 0.25}) for case in range(2)]
        folder = write_summary(results, trainer, 0, entries).parent
        shutil.copyfile(references.parent / "dataset.json", folder.parents[1] / "dataset.json")
        for case in range(2):
            write_label_map(folder / f"heart_{case}.nii.gz", spheres(shift))
    comparison = compare("--metric", "Dice", "HD95", "-np", "1", folds="0")
    # nnU-Net's own Dice where it has one.
    assert comparison["trainers"]["nnUNetTrainerDCA"]["mean"] == 0.375
    distances = next(result for result in comparison["results"] if result["metric"] == "HD95")
    assert [numbers["mean"] for numbers in distances["trainers"].values()] == pytest.approx([0, 1, 2])
    anew = compare("--protocol", "nnformer", "--labels", str(references.parent / "dataset.json"), "-np", "1", folds="0")
    assert anew["trainers"]["nnUNetTrainer"]["mean"] == 1
    (results / DATASET / "nnUNetTrainerDCA__nnUNetPlans__3d_fullres/fold_0/validation/heart_0.nii.gz").unlink()
    with pytest.raises(SystemExit, match="lacks the prediction of heart_0"):
        compare("--metric", "HD95", "-np", "1", folds="0")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-d", "1"], "compare takes one of two"),
        (["--predictions", "a=x", "a=y", "-ref", "z"], "same name"),
        (["--predictions", "a=x", "-ref", "z"], "no folder x, which --predictions a=x names"),
        (["-d", "1", "-c", "c", "-tr", "A", "-ref", "z"], "not both"),
        (["-d", "77", "-c", "c", "-tr", "A"], "no folder for dataset 77"),
        (["-d", "1", "-c", "c", "-tr", "A", "--metric", "Dize"], "no metric 'Dize'"),
        (["-d", "1", "-c", "c", "-tr", "A", "--protocol", "x"], "no protocol 'x'"),
    ],
)
def test_options_that_do_not_fit(options: list[str], words: str, results: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=words):
        main(["compare", *options, "-o", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()


def test_fold_all_is_refused(compare: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare(folds="all")
    assert "own training cases" in capsys.readouterr().err
