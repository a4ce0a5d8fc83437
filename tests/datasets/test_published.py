"""Splits and numbers of labels are the published ones, and the full datasets have the published sizes.

`published.json` was transcribed apart from the code, from the sources that the converters name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from nnunetv2_ext.datasets import acdc, brain_tumour, flare21, flare22, flare23, monuseg, pictures, synapse
from nnunetv2_ext.datasets.convert import collect_dataset
from nnunetv2_ext.datasets.random_split import random_split
from nnunetv2_ext.datasets.registry import DATASETS
from nnunetv2_ext.datasets.source import Source, require_numbers
from nnunetv2_ext.errors import UserError
from tests.test_docs import ROOT, table

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text())

# A statement about other people's work names a part of a repository, a section of a paper, or a challenge's page.
SOURCES = r"[\w-]+/[\w-]+(, commit \w{7})?: .|(DCA: )?arXiv \d{4}\.\d{5}: .|[\w-]+\.[\w.-]+: .|DANIE's paper"


def touch(folder: Path, names: Iterable[str]) -> Path:
    """Make empty files: what a dataset is made of follows from the names alone."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def sizes(source: Source) -> tuple[int, int, list[tuple[int, int]]]:
    """Return the numbers of training and test cases, and of both parts of each fold."""
    known = {case.name for case in source.training_cases}
    for split in source.splits:
        assert not set(split.train) & set(split.val)
        assert {*split.train, *split.val} <= known
        assert (len(set(split.train)), len(set(split.val))) == (len(split.train), len(split.val))
        for source_of_split in split.source.split("; "):
            assert re.match(SOURCES, source_of_split), source_of_split
    folds = [(len(split.train), len(split.val)) for split in source.splits]
    return len(source.training_cases), len(source.test_cases), folds


def test_table_of_datasets_has_all_with_their_numbers() -> None:
    numbers = {}
    for first, _, number, _ in table(ROOT / "docs" / "reproduce" / "README.md", "dataset"):
        names = [re.sub(r" \(.*", "", name) for name in first.split(", ")]
        numbers.update(zip(names, map(int, number.split(", ")), strict=True))
    assert numbers == {dataset.name: dataset.number for dataset in DATASETS}
    assert len(set(numbers.values())) == len(DATASETS)


def test_lists_are_the_published_ones() -> None:
    assert list(flare21.TEST) == PUBLISHED["FLARE21"]["test"]
    assert list(synapse.TRAIN) == PUBLISHED["Synapse"]["train"]
    assert list(synapse.TEST) == PUBLISHED["Synapse"]["val"]
    assert list(acdc.TEST) == PUBLISHED["ACDC"]["test"]
    assert list(acdc.VALIDATION_3D) == PUBLISHED["ACDC"]["val_3d"]
    assert list(acdc.VALIDATION_2D) == PUBLISHED["ACDC"]["val_2d"]
    assert list(brain_tumour.TEST) == PUBLISHED["BrainTumour"]["test"]
    assert list(brain_tumour.VALIDATION) == PUBLISHED["BrainTumour"]["val"]
    assert list(monuseg.TRAIN) == PUBLISHED["MoNuSeg"]["train"]
    assert list(monuseg.VALIDATION) == PUBLISHED["MoNuSeg"]["val"]
    assert list(monuseg.TEST) == PUBLISHED["MoNuSeg"]["test"]


def test_labels_have_the_published_numbers() -> None:
    longer = {"IVC": "inferior vena cava", "right adrenal": "right adrenal gland", "left adrenal": "left adrenal gland"}
    btcv = {longer.get(name, name): number for number, name in enumerate(PUBLISHED["Synapse"]["labels"], start=1)}
    assert btcv == synapse.BTCV
    transunet = PUBLISHED["Synapse"]["transunet"]
    assert {name: number for number, (name, _) in enumerate(transunet, start=1)} == synapse.TRANSUNET
    assert all(synapse.BTCV[name] == int(raw) for name, raw in transunet)
    organs = {name: number for number, name in enumerate(PUBLISHED["FLARE22"]["labels"], start=1)}
    assert organs == flare22.ORGANS
    assert {**organs, "tumour": 14} == flare23.LABELS
    assert flare21.LABELS == {"liver": 1, "kidney": 2, "spleen": 3, "pancreas": 4}
    assert acdc.LABELS == {"right ventricle cavity": 1, "myocardium": 2, "left ventricle cavity": 3}
    assert brain_tumour.LABELS == {"oedema": 1, "non-enhancing tumour": 2, "enhancing tumour": 3}


def test_flare21(tmp_path: Path) -> None:
    names = [f"TrainingImg/train_{n:03d}_0000.nii.gz" for n in range(361)]
    folder = touch(tmp_path, [*names, *(f"TrainingMask/train_{n:03d}.nii.gz" for n in range(361))])
    (remark,) = collect_dataset("flare21", folder, split="challenge").remarks
    assert "there is no ValidationImg" in remark
    touch(folder, [f"ValidationImg/validation_{n:03d}_0000.nii.gz" for n in range(1, 51)])
    held_out = collect_dataset("FLARE21", folder)
    assert sizes(held_out) == (341, 20, [])
    assert {case.name for case in held_out.test_cases} == {f"train_{n:03d}" for n in PUBLISHED["FLARE21"]["test"]}
    assert sizes(collect_dataset("flare21", folder, split="challenge")) == (361, 50, [])


def test_synapse_without_its_test_images(tmp_path: Path) -> None:
    numbers = [*range(1, 11), *range(21, 41)]
    folder = touch(tmp_path, [f"RawData/Training/img/img{n:04d}.nii.gz" for n in numbers])
    touch(folder, [f"RawData/Training/label/label{n:04d}.nii.gz" for n in numbers])
    assert sizes(collect_dataset("BTCV", folder)) == (30, 0, [(18, 12)])


def test_optional_images_are_counted(tmp_path: Path) -> None:
    def remarks(name: str, **options: str) -> str:
        return " ".join(collect_dataset(name, tmp_path, **options).remarks)

    for number in (*range(1, 11), *range(21, 41)):
        touch(tmp_path, [f"a/img{number:04d}.nii.gz", f"b/label{number:04d}.nii.gz"])
    for number in range(1, 51):
        touch(tmp_path, [f"c/FLARE22_Tr_{number:04d}_0000.nii.gz", f"d/FLARE22_Tr_{number:04d}.nii.gz"])
    for number in range(361):
        touch(tmp_path, [f"e/train_{number:03d}_0000.nii.gz", f"f/train_{number:03d}.nii.gz"])
    for name in ("BTCV", "FLARE22"):
        assert "Only" not in remarks(name)
    touch(tmp_path, ["img0061.nii.gz", "img0062.nii.gz", "FLARETs_0001_0000.nii.gz", "ValidationImg/v_001_0000.nii.gz"])
    assert "Only 2 of the 20 test images of BTCV are there." in remarks("BTCV")
    assert "Only 1 of the 50 tuning images are there." in remarks("FLARE22")
    assert "Only 1 of the 50 validation images are there." in remarks("FLARE21", split="challenge")
    touch(tmp_path, [f"img{n:04d}.nii.gz" for n in range(61, 81)])
    assert "Only" not in remarks("BTCV")


def test_two_files_of_one_number_are_refused() -> None:
    found = {"1": Path("1.tif"), "001": Path("001.tif")}
    with pytest.raises(UserError, match=r"1\.tif and 001\.tif have the same number"):
        require_numbers(found, [1], str, Path(), "made up")


def test_acdc(tmp_path: Path) -> None:
    for number in range(1, 101):
        patient = f"training/patient{number:03d}"
        frames = [f"{patient}/patient{number:03d}_frame{frame:02d}" for frame in (1, 12)]
        touch(tmp_path, [f"{frame}{ending}.nii.gz" for frame in frames for ending in ("", "_gt")])
        (tmp_path / patient / "Info.cfg").write_text("ED: 1\nES: 12\n")
    source = collect_dataset("ACDC", tmp_path)
    assert sizes(source) == (160, 40, [(140, 20), (140, 20)])
    # UNETR++ trains on all 80, which is the fold `all`, and validates on the test patients.
    assert not any("UNETR++" in split.used_by for split in source.splits)
    assert any("UNETR++ trains on all other 80 patients (fold `all`)" in remark for remark in source.remarks)
    for split, part in zip(source.splits, ("val_3d", "val_2d"), strict=True):
        assert {int(name[7:10]) for name in split.val} == set(PUBLISHED["ACDC"][part])


def test_brain_tumour(tmp_path: Path) -> None:
    parts = ("imagesTr", "labelsTr")
    folder = touch(tmp_path, [f"{part}/BRATS_{n:03d}.nii.gz" for part in parts for n in range(1, 485)])
    source = collect_dataset("Task01", touch(folder, ["imagesTs/BRATS_485.nii.gz"]))
    assert sizes(source) == (460, 24, [(387, 73)])
    assert [int(name[-3:]) for name in source.splits[0].val] == PUBLISHED["BrainTumour"]["val"]


def test_histology(tmp_path: Path) -> None:
    glas = [(part, n) for part, count in (("train", 85), ("testA", 60), ("testB", 20)) for n in range(1, count + 1)]
    folder = touch(tmp_path, [f"{part}_{n}{ending}.bmp" for part, n in glas for ending in ("", "_anno")])
    assert sizes(collect_dataset("GlaS", folder)) == (85, 80, [])
    names = [name for part in ("train", "val", "test") for name in PUBLISHED["MoNuSeg"][part]]
    touch(folder, [f"{name}.{ending}" for name in [*names, "TCGA-XS-A8TJ-01Z-00-DX1"] for ending in ("tif", "xml")])
    source = collect_dataset("MoNuSeg", folder)
    assert sizes(source) == (30, 14, [(24, 6)])
    assert monuseg.SIZE == (1000, 1000)
    assert "1 picture left out, not of the set of 2018: TCGA-XS-A8TJ-01Z-00-DX1." in source.remarks
    assert any("A7-A13E" in remark and "--pictures uctransnet" in remark for remark in source.remarks)
    with pytest.raises(UserError, match=r"has no file TCGA-BC-A217-01Z-00-DX1\.tif"):
        collect_dataset("MoNuSeg", folder, pictures="uctransnet")
    held = ["BC-A217", "FG-A87N", "UZ-A9PJ", "F9-A8NY", "UZ-A9PN", "MH-A561"]
    touch(folder, [f"TCGA-{name}-01Z-00-DX1.{ending}" for name in held for ending in ("tif", "xml")])
    source = collect_dataset("MoNuSeg", folder, pictures="uctransnet")
    assert sizes(source) == (37, 14, [(24, 6), (24, 6)])
    named, mixed = source.splits
    assert named.train == tuple(PUBLISHED["MoNuSeg"]["train"])
    assert [name[5:12] for name in sorted({*mixed.train} - {*named.train})] == sorted(held)
    assert {*mixed.val} - {*named.val} == {"TCGA-XS-A8TJ-01Z-00-DX1"}


def test_colonoscopy(tmp_path: Path) -> None:
    folder = touch(
        tmp_path / "cvc", [f"{part}/{n}.tif" for part in ("Original", "Ground Truth") for n in range(1, 613)]
    )
    assert sizes(collect_dataset("cvc-clinicdb", folder)) == (612, 0, [(489, 123), (459, 153)])
    names = [f"cju{n:04x}" for n in range(1000)]
    folder = touch(tmp_path / "kvasir", [f"{part}/{name}.jpg" for part in ("images", "masks") for name in names])
    assert sizes(collect_dataset("Kvasir-SEG", folder)) == (1000, 0, [(800, 200)])
    assert pictures.THRESHOLD == 128


def test_random_split_is_the_same_everywhere() -> None:
    """The first of a shuffle with the seed are the test part; written down against another version of scikit-learn."""
    names = [str(number) for number in range(1, 613)]
    shuffled = np.random.RandomState(42).permutation(612)
    split = random_split(names, 0.25, "DCA", "its code")
    assert split.val == tuple(str(number + 1) for number in sorted(shuffled[:153]))
    assert split.train == tuple(str(number + 1) for number in sorted(shuffled[153:]))
    assert split.val[:8] == ("3", "7", "10", "11", "12", "16", "24", "25")


def test_isic(tmp_path: Path) -> None:
    first, parts = 0, {"Training": 2000, "Validation": 150, "Test_v2": 600}
    for part, count in parts.items():
        numbers = range(first, first + count)
        first += count
        touch(tmp_path, [f"ISIC-2017_{part}_Data/ISIC_{n:07d}.jpg" for n in numbers])
        touch(tmp_path, [f"ISIC-2017_{part}_Part1_GroundTruth/ISIC_{n:07d}_segmentation.png" for n in numbers])
    assert sizes(collect_dataset("ISIC2017", tmp_path)) == (2150, 600, [(2000, 150)])
    numbers = range(100, 100 + 2594)
    touch(tmp_path, [f"ISIC2018_Task1-2_Training_Input/ISIC_{n:07d}.jpg" for n in numbers])
    touch(tmp_path, [f"ISIC2018_Task1_Training_GroundTruth/ISIC_{n:07d}_segmentation.png" for n in numbers])
    source = collect_dataset("ISIC2018", tmp_path)
    assert sizes(source) == (2074, 520, [(1815, 259)])
    in_order = [f"ISIC_{n:07d}" for n in numbers]
    assert list(source.splits[0].train) == in_order[:1815]
    assert list(source.splits[0].val) == in_order[1815:2074]
    assert [case.name for case in source.test_cases] == in_order[2074:]


def test_flare24_task_2_has_the_cases_of_flare22(tmp_path: Path) -> None:
    """The download's folders; pseudo-labels and images without labels are passed over."""
    touch(tmp_path, [f"train_gt_label/imagesTr/FLARE22_Tr_{n:04d}_0000.nii.gz" for n in range(1, 51)])
    touch(tmp_path, [f"train_gt_label/labelsTr/FLARE22_Tr_{n:04d}.nii.gz" for n in range(1, 51)])
    touch(tmp_path, [f"validation/Validation-Public-Images/FLARETs_{n:04d}_0000.nii.gz" for n in range(1, 51)])
    touch(tmp_path, [f"validation/Validation-Public-Labels/FLARETs_{n:04d}.nii.gz" for n in range(1, 51)])
    touch(tmp_path, ["train_pseudo_label/imagesTr/Case_00001_0000.nii.gz"])
    touch(tmp_path, [f"train_pseudo_label/{team}/Case_00001.nii.gz" for team in ("flare22_aladdin5_pseudo", "other")])
    source = collect_dataset("FLARE24-T2", tmp_path)
    assert sizes(source) == (50, 50, [])
    assert all(case.label is not None for case in source.test_cases)


@pytest.mark.parametrize(("edition", "cases"), [("FLARE22", 50), ("FLARE23", 2200)])
def test_flare22_and_flare23(tmp_path: Path, edition: str, cases: int) -> None:
    stem = f"{edition}_Tr" if edition == "FLARE22" else edition
    images, labels = ("imagesTr2200", "labelsTr2200") if edition == "FLARE23" else ("images", "labels")
    touch(tmp_path, [f"{images}/{stem}_{n:04d}_0000.nii.gz" for n in range(1, cases + 1)])
    touch(tmp_path, [f"{labels}/{stem}_{n:04d}.nii.gz" for n in range(1, cases + 1)])
    assert sizes(collect_dataset(edition, tmp_path)) == (cases, 0, [])
