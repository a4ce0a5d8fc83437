"""`submit` on files in the forms that strangers have: what goes into a container's network, and into BTCV's archive."""

from __future__ import annotations

import copy
import gzip
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_ext import cli
from nnunetv2_ext.datasets.synapse import BTCV
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.inference.cases import Case, prepare_case
from tests.datasets import trees
from tests.planned_data import LABELS, PlannedData
from tests.strangers import HEADERS, REFUSED_BY_ITK, damaged, nifti, nifti_bytes, stored_labels
from tests.test_cli import refuse

IMAGE = np.random.default_rng(0).integers(0, 200, (20, 24, 6)).astype(np.int16)


@pytest.fixture
def predictor(planned_data: PlannedData) -> SimpleNamespace:
    """Return what is asked of a predictor before its network sees anything."""
    plans = PlansManager(copy.deepcopy(planned_data.plans(LABELS)))
    return SimpleNamespace(
        plans_manager=plans,
        configuration_manager=plans.get_configuration("3d_fullres"),
        dataset_json=planned_data.dataset_json(LABELS),
    )


@pytest.mark.parametrize("name", HEADERS)
def test_the_network_sees_what_nnunet_gives_it(tmp_path: Path, predictor: SimpleNamespace, name: str) -> None:
    path = nifti(tmp_path / "case_0000.nii.gz", stored_labels(IMAGE, name), **HEADERS[name])
    case = Case("case", (path,), dimensions=3)
    if name in REFUSED_BY_ITK:
        with pytest.raises(UserError, match=r"case_0000\.nii\.gz has axes that are not at right angles"):
            prepare_case(case, predictor)
        return
    data, properties = prepare_case(case, predictor)
    configuration = predictor.configuration_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    expected, _, stated = preprocessor.run_case(
        [str(path)], None, predictor.plans_manager, configuration, predictor.dataset_json
    )
    assert np.array_equal(data, expected)
    assert properties["sitk_stuff"] == stated["sitk_stuff"]


@pytest.mark.parametrize("name", damaged(b""))
def test_damaged_images_are_named(tmp_path: Path, predictor: SimpleNamespace, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(damaged(nifti_bytes(IMAGE, **HEADERS["sform = qform"]))[name])
    with pytest.raises(
        UserError, match=rf"{name} cannot be read as an image \(.*\): write, download or unpack it again"
    ):
        prepare_case(Case("case", (path,), dimensions=3), predictor)


def test_unpacked_image_under_the_name_of_a_packed_one(tmp_path: Path, predictor: SimpleNamespace) -> None:
    packed = nifti(tmp_path / "a.nii.gz", IMAGE, **HEADERS["sform = qform"])
    unpacked = tmp_path / "b.nii.gz"
    unpacked.write_bytes(gzip.decompress(packed.read_bytes()))
    first, second = (prepare_case(Case("case", (path,), dimensions=3), predictor)[0] for path in (packed, unpacked))
    assert np.array_equal(first, second)


# BTCV's archive


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return 20 predictions and their images, whose headers have the forms of `HEADERS` in turn."""
    predictions, images = tmp_path / "predictions", tmp_path / "img"
    forms = [name for name in HEADERS if name not in REFUSED_BY_ITK]
    for number in range(61, 81):
        name = forms[number % len(forms)]
        labels = trees.organs(np.random.default_rng(number), list(BTCV.values()), BTCV["liver"])
        form = {key: value for key, value in HEADERS[name].items() if key not in ("slope", "intercept")}
        nifti(images / f"img{number:04d}.nii.gz", labels.T.astype(np.int16), **form)
        nifti(predictions / f"img{number:04d}.nii.gz", stored_labels(labels.T, name), **HEADERS[name])
    return predictions, images


def command(folders: tuple[Path, Path], output: Path) -> list[str]:
    predictions, images = map(str, folders)
    return ["submit", "btcv", "-pred", predictions, "-images", images, "-o", str(output)]


def test_predictions_of_any_header_go_into_the_archive(folders: tuple[Path, Path], tmp_path: Path) -> None:
    packed = folders[0] / "img0070.nii.gz"
    packed.write_bytes(gzip.decompress(packed.read_bytes()))
    cli.main(command(folders, tmp_path / "a.zip"))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    for number in range(61, 81):
        written, image = (
            sitk.ReadImage(str(path))
            for path in (tmp_path / "unpacked" / f"label{number:04d}.nii.gz", folders[1] / f"img{number:04d}.nii.gz")
        )
        labels = trees.organs(np.random.default_rng(number), list(BTCV.values()), BTCV["liver"])
        assert np.array_equal(sitk.GetArrayFromImage(written), labels)
        for stated in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(written, stated)() == pytest.approx(getattr(image, stated)())


@pytest.mark.parametrize("name", ["half.nii.gz", "cut.nii.gz", "page.nii.gz"])
def test_damaged_predictions_are_named(folders: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    path = folders[0] / "img0070.nii.gz"
    path.write_bytes(damaged(gzip.decompress(path.read_bytes()))[name])
    refuse(f"{path} cannot be read as an image (", *command(folders, tmp_path / "a.zip"))
    assert not (tmp_path / "a.zip").exists()
