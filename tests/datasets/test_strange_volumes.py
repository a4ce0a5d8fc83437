"""Volumes in the forms that strangers have, converted: what goes in holds the same labels, the rest is refused."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_ext.datasets.source import Case
from nnunetv2_ext.datasets.volumes import labels_of, write_case
from nnunetv2_ext.errors import UserError
from tests.strangers import HEADERS, REFUSED_BY_ITK, damaged, nifti, nifti_bytes, stored_labels
from tests.test_cli import refuse

LABELS = np.random.default_rng(0).integers(0, 4, (6, 7, 5)).astype(np.uint8)
IMAGE = np.random.default_rng(1).integers(0, 100, (6, 7, 5)).astype(np.int16)
NAMES = {"a": 1, "b": 2, "c": 3}


def write(folder: Path, image: Path, label: Path, *, link: bool = False) -> tuple[sitk.Image, sitk.Image]:
    """Write one case, and read what was written."""
    targets = folder / "written_0000.nii.gz", folder / "written.nii.gz"
    write_case(Case("case", (image,), label), targets[:1], targets[1], link=link, labels=NAMES)
    return tuple(sitk.ReadImage(str(target)) for target in targets)


def require_whole_case(image: sitk.Image, label: sitk.Image) -> None:
    assert np.array_equal(sitk.GetArrayFromImage(image).T, IMAGE)
    assert np.array_equal(sitk.GetArrayFromImage(label).T, LABELS)
    for stated in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(image, stated)() == pytest.approx(getattr(label, stated)())


@pytest.mark.parametrize("name", HEADERS)
def test_any_header(tmp_path: Path, name: str) -> None:
    form = {key: value for key, value in HEADERS[name].items() if key not in ("slope", "intercept")}
    image = nifti(tmp_path / "image.nii.gz", IMAGE, **form)
    label = nifti(tmp_path / "label.nii.gz", stored_labels(LABELS, name), **HEADERS[name])
    if name in REFUSED_BY_ITK:
        with pytest.raises(UserError, match=r"image\.nii\.gz has axes that are not at right angles"):
            write(tmp_path, image, label)
        return
    require_whole_case(*write(tmp_path, image, label))
    assert labels_of(label) == [1, 2, 3]


@pytest.mark.parametrize("part", ["image", "label"])
@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("name", ["{}.nii", "{}.nii.gz"])
def test_unpacked_files_are_packed(tmp_path: Path, part: str, link: bool, name: str) -> None:
    """Also those whose name says that they are packed."""
    paths = {}
    for kind, array in (("image", IMAGE), ("label", LABELS)):
        if kind == part:
            paths[kind] = tmp_path / name.format(kind)
            paths[kind].write_bytes(nifti_bytes(array, **HEADERS["sform = qform"]))
        else:
            paths[kind] = nifti(tmp_path / f"{kind}.nii.gz", array, **HEADERS["sform = qform"])
    require_whole_case(*write(tmp_path, **paths, link=link))
    packed = tmp_path / ("written_0000.nii.gz" if part == "image" else "written.nii.gz")
    assert gzip.decompress(packed.read_bytes()) == paths[part].read_bytes()
    assert not packed.is_symlink()


@pytest.mark.parametrize(("axes", "backwards"), [((0, 1, 2), (True, False, True)), ((2, 0, 1), (False, True, False))])
def test_label_in_another_orientation_is_turned_to_its_image(tmp_path: Path, axes, backwards) -> None:
    image = nifti(tmp_path / "image.nii.gz", IMAGE, **HEADERS["oblique"])
    label = nifti(tmp_path / "label.nii.gz", LABELS, **HEADERS["oblique"])
    turned = sitk.Flip(sitk.PermuteAxes(sitk.ReadImage(str(label)), axes), backwards)
    sitk.WriteImage(turned, str(label))
    require_whole_case(*write(tmp_path, image, label, link=True))


@pytest.mark.parametrize("part", ["image", "label"])
@pytest.mark.parametrize("name", damaged(b""))
def test_damaged_files_are_refused(tmp_path: Path, part: str, name: str) -> None:
    paths = {
        "image": nifti(tmp_path / "image.nii.gz", IMAGE, **HEADERS["sform only"]),
        "label": nifti(tmp_path / "label.nii.gz", LABELS, **HEADERS["sform only"]),
    }
    content = damaged(gzip.decompress(paths[part].read_bytes()))[name]
    paths[part] = tmp_path / name
    paths[part].write_bytes(content)
    with pytest.raises(
        UserError, match=rf"{name} cannot be read as an image \(.*\): write, download or unpack it again"
    ):
        write(tmp_path, **paths)


@pytest.mark.usefixtures("_threads", "folders")
def test_unpacked_acdc(make_source: Callable[[str], Path]) -> None:
    from nnunetv2_ext.datasets.convert import convert

    source = make_source("ACDC")
    for path in sorted(source.rglob("patient001_frame*.nii.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    command = ("convert", "ACDC", "-i", str(source), "-np", "1")
    refuse("patient001_frame01.nii and ", *command)
    refuse(" are the same case", *command)
    for path in sorted(source.rglob("patient001_frame*.nii.gz")):
        path.unlink()
    report = convert("ACDC", source, processes=1, progress=False)
    assert (report.folder / "labelsTr" / "patient001_frame01.nii.gz").is_file()
