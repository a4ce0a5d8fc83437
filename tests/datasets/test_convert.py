"""Each dataset from its miniature download to nnU-Net's preprocessed data, and what the files hold then."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image, UnidentifiedImageError

from nnunetv2_ext.datasets import monuseg, synapse, volumes
from nnunetv2_ext.datasets.convert import Report, convert, format_report
from nnunetv2_ext.datasets.pictures import read_picture
from nnunetv2_ext.datasets.registry import DATASETS
from tests.datasets import trees
from tests.datasets.conftest import MINIATURES

pytestmark = pytest.mark.usefixtures("_threads")

Run = Callable[..., Report]


@pytest.fixture
def run(make_source: Callable[[str], Path], folders: SimpleNamespace) -> Run:
    def convert_miniature(name: str, **settings) -> Report:
        folder = make_source(name)
        settings = {"processes": 1, "progress": False, **MINIATURES[name].options, **settings}
        return convert(name.split()[0], folder, **settings)

    return convert_miniature


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_dataset_has_a_miniature() -> None:
    assert {name.split()[0] for name in MINIATURES} == {dataset.name for dataset in DATASETS}


@pytest.mark.parametrize("name", MINIATURES)
def test_planned_and_preprocessed_by_nnunet(
    name: str, run: Run, folders: SimpleNamespace, plan_and_preprocess, monkeypatch
) -> None:
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    report = run(name)
    miniature = MINIATURES[name]
    number, dataset = int(report.folder.name[7:10]), report.folder.name
    assert (len(report.source.training_cases), len(report.source.test_cases)) == miniature.counts
    assert len(names(report.folder / "labelsTr")) == miniature.training
    assert len(names(report.folder / "imagesTr")) == miniature.training * report.source.n_image_files
    if miniature.test:
        assert len(names(report.folder / "imagesTs")) == miniature.test * report.source.n_image_files
    assert f"nnUNetv2_plan_and_preprocess -d {number}" in format_report(report)
    # How large the networks may be depends on the memory alone; estimating it takes most of the time of planning.
    monkeypatch.setattr(ExperimentPlanner, "static_estimate_VRAM_usage", staticmethod(lambda *a, **k: 1))
    plan_and_preprocess(number, "2d")
    cases = {path.stem for path in (folders.preprocessed / dataset / "nnUNetPlans_2d").glob("*.pkl")}
    assert cases == {case.name for case in report.source.training_cases}
    splits = folders.preprocessed / dataset / "splits_final.json"
    assert splits.is_file() == bool(report.source.splits)
    if splits.is_file():
        assert splits.read_bytes() == (report.folder / "splits_final.json").read_bytes()
        for fold in json.loads(splits.read_text()):
            assert fold["train"]
            assert fold["val"]
            assert {*fold["train"], *fold["val"]} <= cases
            assert not {*fold["train"]} & {*fold["val"]}


def test_synapse_keeps_13_organs_or_turns_8_into_transunets_order(run: Run, make_source) -> None:
    raw = run("Synapse").folder
    eight = run("Synapse 8", dataset_id=618).folder
    assert (raw.name, eight.name) == ("Dataset617_Synapse", "Dataset618_Synapse8TransUNet")
    source = voxels(make_source("Synapse") / "RawData" / "Training" / "label" / "label0005.nii.gz")
    assert np.array_equal(voxels(raw / "labelsTr" / "img0005.nii.gz"), source)
    mapped = voxels(eight / "labelsTr" / "img0005.nii.gz")
    expected = {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8}
    for label in range(14):
        assert np.unique(mapped[source == label]).tolist() == [expected.get(label, 0)]
    labels = json.loads((eight / "dataset.json").read_text())["labels"]
    assert list(labels) == ["background", *synapse.TRANSUNET]
    image, label = (
        sitk.ReadImage(str(eight / part)) for part in ("imagesTr/img0005_0000.nii.gz", "labelsTr/img0005.nii.gz")
    )
    assert image.GetOrigin() == label.GetOrigin()
    assert image.GetSpacing() == pytest.approx((0.8, 0.75, 3.0))
    assert names(eight / "imagesTs") == ["img0061_0000.nii.gz"]
    assert not (eight / "labelsTs").exists()


def test_brain_tumour_channels_are_parted_in_order(run: Run, make_source) -> None:
    report = run("BrainTumour")
    source = voxels(make_source("BrainTumour") / "Task01_BrainTumour" / "imagesTr" / "BRATS_011.nii.gz")
    for channel in range(4):
        part = sitk.ReadImage(str(report.folder / "imagesTr" / f"BRATS_011_{channel:04d}.nii.gz"))
        assert np.array_equal(sitk.GetArrayFromImage(part), source[channel])
        assert part.GetOrigin() == pytest.approx((-12.5, 7.0, 100.0))
    channels = json.loads((report.folder / "dataset.json").read_text())["channel_names"]
    assert channels == {"0": "FLAIR", "1": "T1w", "2": "T1gd", "3": "T2w"}
    assert names(report.folder / "labelsTs") == ["BRATS_058.nii.gz"]


def test_acdc_has_the_split_of_both_dimensions(run: Run) -> None:
    report = run("ACDC")
    frames = {
        number: [f"patient{number:03d}_frame01", f"patient{number:03d}_frame{9 + number % 5:02d}"]
        for number in (1, 2, 19, 89)
    }
    three_d, two_d = json.loads((report.folder / "splits_final.json").read_text())
    assert three_d == {"train": frames[1] + frames[19], "val": frames[89]}
    assert two_d == {"train": frames[1] + frames[89], "val": frames[19]}
    assert [case.name for case in report.source.test_cases] == frames[2]


@pytest.mark.parametrize("name", ["ACDC", "GlaS", "CVC-ClinicDB"])
def test_download_may_consist_of_links(name: str, make_source, folders: SimpleNamespace, tmp_path: Path) -> None:
    source = make_source(name)
    linked = tmp_path / "linked"
    linked.mkdir()
    for part in source.iterdir():
        (linked / part.name).symlink_to(part)
    report = convert(name, linked, processes=1, progress=False)
    assert len(report.source.training_cases) == MINIATURES[name].training


def test_glas_instances_become_one_class(run: Run, make_source) -> None:
    report = run("GlaS")
    source = make_source("GlaS") / "Warwick QU Dataset"
    glands = pixels(source / "train_2_anno.bmp")
    assert glands.max() > 1
    assert np.array_equal(pixels(report.folder / "labelsTr" / "train_2.png"), glands > 0)
    assert np.array_equal(pixels(report.folder / "imagesTr" / "train_2_0000.png"), pixels(source / "train_2.bmp"))
    assert names(report.folder / "labelsTs") == ["testA_1.png", "testA_2.png", "testB_1.png"]


def test_monuseg_mask_is_the_union_of_the_outlines(run: Run, tmp_path: Path) -> None:
    report = run("MoNuSeg")
    (xml,) = tmp_path.rglob(f"{monuseg.TRAIN[0]}.xml")
    mask = pixels(report.folder / "labelsTr" / f"{monuseg.TRAIN[0]}.png")
    nucleus, corner = monuseg.outlines(xml)  # the click without an outline is left out
    x, y = (int(value) - 1 for value in nucleus[0])  # as the organisers draw it
    expected = np.zeros_like(mask)
    expected[y : y + 8, x : x + 8] = expected[:2, :2] = 1
    assert corner.min() < 0
    assert np.array_equal(mask, expected)
    assert pixels(report.folder / "imagesTr" / f"{monuseg.TRAIN[0]}_0000.png").shape == (32, 40, 3)
    assert all(name not in report.source.remarks[-1] for name in monuseg.TRAIN)


@pytest.mark.parametrize("name", ["CVC-ClinicDB", "Kvasir-SEG", "ISIC2017", "ISIC2018"])
def test_masks_become_zero_and_one(name: str, run: Run) -> None:
    report = run(name)
    for case in report.source.training_cases:
        mask = pixels(report.folder / "labelsTr" / f"{case.name}.png")
        source = pixels(case.label)
        assert np.unique(mask).tolist() == [0, 1]
        assert np.array_equal(mask, (source if source.ndim == 2 else source[..., 0]) >= 128)


def test_clinicdb_as_published(run: Run, make_source) -> None:
    """Pillow alone reads none of the pictures, and noise of 11 is no polyp unless a threshold makes it one."""
    report, source = run("CVC-ClinicDB"), make_source("CVC-ClinicDB") / "CVC-ClinicDB"
    for number in range(1, 11):
        raw, mask = source / "Original" / f"{number}.tif", pixels(source / "Ground Truth" / f"{number}.tif")
        with pytest.raises(UnidentifiedImageError):
            pixels(raw)
        name = f"cvc_{number:03d}"
        assert np.array_equal(pixels(report.folder / "imagesTr" / f"{name}_0000.png"), tifffile.imread(raw))
        assert np.array_equal(pixels(report.folder / "labelsTr" / f"{name}.png"), mask == 255)
        assert (11 in mask) == (number % 4 == 0)
    noisy = run("CVC-ClinicDB", threshold=1, dataset_id=700).folder / "labelsTr" / "cvc_004.png"
    assert pixels(noisy)[0, 0] == 1


@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_colours_without_their_name_are_read(tmp_path: Path, planes: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / "a.tif"
    stored = rgb if planes == "contig" else np.moveaxis(rgb, -1, 0)
    tifffile.imwrite(path, stored, photometric="minisblack", planarconfig=planes)
    assert np.array_equal(np.asarray(read_picture(path)), rgb)


def test_monuseg_masks_are_the_organisers(tmp_path: Path) -> None:
    """Matlab's first pixel has its middle at (1, 1), so columns 5 to 9 and rows 7 to 10, counted from 1, are inside."""
    path = tmp_path / "a.xml"
    path.write_text(trees.annotation([[(4.5, 6.5), (9.5, 6.5), (9.5, 10.5), (4.5, 10.5)]]))
    expected = np.zeros((12, 14), dtype=bool)
    expected[6:10, 4:9] = True
    assert np.array_equal(monuseg.union_mask(path, expected.shape), expected)


def test_jpeg_noise_of_kvasir_is_background_unless_dcas_threshold_is_asked_for(run: Run) -> None:
    usual, dca = run("Kvasir-SEG"), run("Kvasir-SEG", threshold=1, dataset_id=700)
    sums = [sum(pixels(path).sum() for path in (report.folder / "labelsTr").iterdir()) for report in (usual, dca)]
    assert sums[1] > sums[0]


def test_flare23_counts_partial_labels_and_leaves_them_out_on_request(run: Run) -> None:
    report = run("FLARE23")
    assert "1 of 3 labels lack organs" in format_report(report)
    complete = run("FLARE23", cases="complete", dataset_id=700)
    assert [case.name for case in complete.source.training_cases] == ["FLARE23_0002", "FLARE23_0003"]
    assert "lack organs" not in format_report(complete)


def test_flare21_trains_on_all_cases_for_the_challenge(run: Run) -> None:
    held_out, challenge = run("FLARE21").source, run("FLARE21", split="challenge", dataset_id=700).source
    assert [case.name for case in held_out.test_cases] == ["train_036"]
    assert len(challenge.training_cases) == 3
    assert [case.name for case in challenge.test_cases] == ["validation_001"]


def test_links_lead_to_files_that_need_no_change(run: Run) -> None:
    report = run("Synapse", link=True)
    for case in report.source.training_cases:
        for path, source in (
            (report.folder / "imagesTr" / f"{case.name}_0000.nii.gz", case.images[0]),
            (report.folder / "labelsTr" / f"{case.name}.nii.gz", case.label),
        ):
            assert path.is_symlink()
            assert path.resolve() == source.resolve()
    eight = run("Synapse 8", link=True, dataset_id=618).folder
    assert (eight / "imagesTr" / "img0005_0000.nii.gz").is_symlink()
    assert not (eight / "labelsTr" / "img0005.nii.gz").is_symlink()


def test_label_with_a_rounded_header_gets_its_images_header(run: Run, make_source, folders: SimpleNamespace) -> None:
    """Rounded to single precision, nnU-Net would refuse the spacing or warn of the origin."""
    folder = make_source("FLARE22")
    path = folder / "FLARE22Train" / "labels" / "FLARE22_Tr_0001.nii.gz"
    label = sitk.ReadImage(str(path))
    label.SetOrigin([value + 2e-3 for value in label.GetOrigin()])
    sitk.WriteImage(label, str(path))
    report = convert("FLARE22", folder, processes=1, progress=False, link=True)
    written = report.folder / "labelsTr" / "FLARE22_Tr_0001.nii.gz"
    assert not written.is_symlink()
    image = sitk.ReadImage(str(report.folder / "imagesTr" / "FLARE22_Tr_0001_0000.nii.gz"))
    assert sitk.ReadImage(str(written)).GetOrigin() == image.GetOrigin()
    assert np.array_equal(voxels(written), sitk.GetArrayFromImage(label))


def test_labels_are_read_while_their_image_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A view of an image that is gone shows whatever its memory holds by then."""
    path = trees.write_volume(tmp_path / "label.nii.gz", np.full((4, 5, 6), 3, dtype=np.uint8))
    read, alive, unique = volumes.read_volume, [], np.unique

    def read_and_watch(path: Path) -> sitk.Image:
        image = read(path)
        alive.append(weakref.ref(image))
        return image

    def look(array: np.ndarray) -> np.ndarray:
        assert alive[0]() is not None
        return unique(array)

    monkeypatch.setattr(volumes, "read_volume", read_and_watch)
    monkeypatch.setattr(np, "unique", look)
    assert volumes.labels_of(path) == [3]
