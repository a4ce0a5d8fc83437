"""The phantom: what is in it, what varies, and that it is written whole or not at all."""

import errno
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.demo import phantom
from nnunetv2_ext.demo.canvas import Canvas, bspline_field
from nnunetv2_ext.demo.phantom import LABELS, make_case, write_dataset

SHAPE = (16, 48, 48)
N_CASES = 8

# HU between which the median of an organ lies in every phase of contrast. The stomach holds food, water and gas.
MEDIAN_HU = {
    "liver": (45, 135),
    "spleen": (90, 150),
    "kidney_right": (90, 240),
    "kidney_left": (90, 240),
    "stomach": (-1000, 100),
    "aorta": (120, 370),
}


@pytest.fixture(scope="module")
def cases() -> list[tuple[np.ndarray, np.ndarray, tuple[float, float, float]]]:
    return [make_case(np.random.default_rng((7, i)), SHAPE) for i in range(N_CASES)]


def test_a_case_has_the_types_the_shape_and_the_spacing_of_a_ct(cases):
    for ct, labels, spacing in cases:
        assert ct.shape == labels.shape == SHAPE
        assert ct.dtype == np.int16
        assert labels.dtype == np.uint8
        assert ct.min() >= -1024
        assert spacing[1] == spacing[2]
        assert spacing[0] > spacing[1]


def test_the_default_voxels_are_clearly_anisotropic():
    _, _, spacing = make_case(np.random.default_rng(0))
    assert spacing[0] / spacing[1] > 1.5


def test_every_organ_is_in_every_case(cases):
    for _, labels, _ in cases:
        assert set(np.unique(labels)) == set(LABELS.values())


def test_organs_have_the_hounsfield_units_of_an_enhanced_abdomen(cases):
    for ct, labels, _ in cases:
        for organ, (low, high) in MEDIAN_HU.items():
            median = np.median(ct[labels == LABELS[organ]])
            assert low < median < high, f"{organ}: {median} HU"


def test_the_air_around_the_patient_is_air_and_there_is_fat_and_bone_in_the_patient(cases):
    for ct, labels, _ in cases:
        assert np.median(ct[:, :2, :]) < -950
        tissue = ct[labels == 0]
        assert np.mean((tissue > -130) & (tissue < -70)) > 0.05
        assert np.mean(tissue > 200) > 0.005


def test_organs_lie_where_a_radiologist_expects_them(cases):
    for _, labels, _ in cases:
        z, y, x = (
            {organ: np.argwhere(labels == value)[:, axis].mean() for organ, value in LABELS.items() if value}
            for axis in range(3)
        )
        assert x["liver"] < x["aorta"] < x["spleen"]  # arrays grow to the patient's left
        assert x["kidney_right"] < x["aorta"] < x["kidney_left"]
        assert y["stomach"] < y["aorta"] < y["kidney_left"]  # and to the back
        assert z["kidney_right"] < z["liver"]  # and to the head


def test_the_same_seed_gives_the_same_case_and_another_seed_another(cases):
    again = make_case(np.random.default_rng((7, 0)), SHAPE)
    assert np.array_equal(again[0], cases[0][0])
    assert np.array_equal(again[1], cases[0][1])
    assert again[2] == cases[0][2]
    for (_, one, _), (_, other, _) in itertools.combinations(cases, 2):
        organs, others = one > 0, other > 0
        assert 2 * np.sum(organs & others) / (organs.sum() + others.sum()) < 0.95


def test_size_contrast_and_noise_vary_from_case_to_case(cases):
    def spread(values: list[float]) -> float:
        return float(np.std(values) / np.mean(values))

    assert spread([spacing[1] for _, _, spacing in cases]) > 0.02
    assert spread([np.median(ct[labels == LABELS["aorta"]]) for ct, labels, _ in cases]) > 0.1
    assert spread([np.prod(spacing) * np.sum(labels == LABELS["spleen"]) for _, labels, spacing in cases]) > 0.1
    noise = [np.std(np.diff(ct[labels == LABELS["liver"]].astype(float))) for ct, labels, _ in cases]
    assert spread(noise) > 0.05


def test_a_spline_field_is_smooth_and_has_unit_size():
    axes = [np.arange(0, 200, 2.0)] * 3
    field = bspline_field(np.random.default_rng(0), axes, knot_mm=20.0)
    assert field.shape == (100, 100, 100)
    assert abs(field.mean()) < 0.15
    assert 0.8 < field.std() < 1.2
    assert np.diff(field, axis=0).std() < 0.2 * field.std()  # control points are ten samples apart


def test_the_window_of_a_body_holds_all_of_it():
    rng = np.random.default_rng(3)
    canvas = Canvas(rng, (20, 40, 40), (6.0, 6.0, 6.0), size=(1.1, 0.9, 1.05), shift=(5, -8, 4), bend_mm=4.0)
    everywhere = (slice(None),) * 3
    centre, radii = (30, -20, 10), (25, 15, 20)
    whole = canvas.ellipsoid(everywhere, centre, radii) > 0
    part = np.zeros_like(whole)
    where = canvas.window(centre, radii)
    part[where] = canvas.ellipsoid(where, centre, radii) > 0
    assert whole.any()
    assert part[where].size < whole.size
    assert np.array_equal(part, whole)


def test_partial_volume_keeps_the_mean_of_a_voxel():
    rng = np.random.default_rng(0)
    canvas = Canvas(rng, (8, 16, 16), (5.0, 5.0, 5.0), size=(1, 1, 1), shift=(0, 0, 0), bend_mm=0.0)
    canvas.paint((slice(0, 9), slice(None), slice(None)), np.ones((9, 32, 32), bool), 100.0, label=1)
    ct, labels = canvas.scan(rng, noise_hu=0.0)
    assert np.all(ct[:4] == 100)
    assert np.all(ct[4] == -450)  # half of it is air
    assert np.all(ct[5:] == -1000)
    assert np.all(labels[:4] == 1)
    assert np.all(labels[5:] == 0)


def test_a_data_set_is_in_nnunets_format(tmp_path: Path):
    written = []
    folder = write_dataset(tmp_path / "raw", "Dataset901_Test", 2, 1, 5, SHAPE, lambda i, n: written.append((i, n)))
    assert written == [(1, 3), (2, 3), (3, 3)]
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*")) == [
        "dataset.json",
        "imagesTr/phantom_000_0000.nii.gz",
        "imagesTr/phantom_001_0000.nii.gz",
        "imagesTs/phantom_002_0000.nii.gz",
        "labelsTr/phantom_000.nii.gz",
        "labelsTr/phantom_001.nii.gz",
        "labelsTs/phantom_002.nii.gz",
    ]
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == 2
    assert description["channel_names"] == {"0": "CT"}  # the name that makes nnU-Net normalise it as a CT
    assert description["labels"] == LABELS
    assert [p.name for p in (tmp_path / "raw").iterdir()] == ["Dataset901_Test"]


def test_files_hold_the_case_with_the_same_geometry_for_image_and_labels(tmp_path: Path):
    folder = write_dataset(tmp_path, "Dataset901_Test", 1, 0, 5, SHAPE)
    image = sitk.ReadImage(str(folder / "imagesTr" / "phantom_000_0000.nii.gz"))
    labels = sitk.ReadImage(str(folder / "labelsTr" / "phantom_000.nii.gz"))
    expected_ct, expected_labels, spacing = make_case(np.random.default_rng((5, 0)), SHAPE)
    assert np.array_equal(sitk.GetArrayFromImage(image), expected_ct)
    assert np.array_equal(sitk.GetArrayFromImage(labels), expected_labels)
    assert image.GetSpacing() == pytest.approx(spacing[::-1], rel=1e-6)
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)  # patient on the back, arrays grow to left, back, head
    for get in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(image, get)() == getattr(labels, get)()


def test_files_are_the_same_byte_for_byte_when_written_again(tmp_path: Path):
    folders = [write_dataset(tmp_path / name, "Dataset901_Test", 1, 0, 5, SHAPE) for name in ("a", "b")]
    files = [sorted(p for p in folder.rglob("*.*")) for folder in folders]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException):
    calls = []

    def break_down(path: Path, *_: object) -> None:
        calls.append(path)
        path.write_bytes(b"half")
        if len(calls) == 3:
            raise failure

    monkeypatch.setattr(phantom, "_write_nifti", break_down)
    with pytest.raises(type(failure)):
        write_dataset(tmp_path, "Dataset901_Test", 2, 1, 5, SHAPE)
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


def test_an_existing_data_set_is_not_touched(tmp_path: Path):
    mine = tmp_path / "Dataset901_Test" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(FileExistsError, match="choose another name"):
        write_dataset(tmp_path, "Dataset901_Test", 1, 0, 5, SHAPE)
    assert mine.read_text() == "precious"
