"""Geometry and voxels of every form of a file are those that nnU-Net's own reader gives for it."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path

import nibabel
import nibabel.processing
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from PIL import Image

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.grids import Grid, Turn, same_grid, turn_between
from nnunetv2_ext.images.label_maps import read_label_image, whole_numbers
from nnunetv2_ext.images.volumes import grid_of, read_header, read_volume
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

LABELS = np.random.default_rng(0).integers(0, 4, (6, 7, 5)).astype(np.uint8)


def require_what_itk_gives(path: Path) -> None:
    """Compare with `SimpleITKIO`, whose arrays and spacings have the axes in reverse order."""
    voxels, properties = SimpleITKIO().read_seg(str(path))
    read = read_label_image(path)
    stated = properties["sitk_stuff"]
    dims = len(stated["spacing"])
    assert np.array_equal(read.labels, np.rint(voxels[0] if dims == 3 else voxels[0, 0]).T)
    assert read.spacing == pytest.approx(stated["spacing"])
    if "SimpleITK" in read.grid.placements:
        placement = read.grid.placements["SimpleITK"]
        assert placement[:dims, 3] == pytest.approx(stated["origin"])
        directions = np.reshape(stated["direction"], (dims, dims))
        assert np.allclose(placement[:dims, :dims], directions * stated["spacing"])


def require_what_nibabel_gives(path: Path) -> None:
    voxels, properties = NibabelIO().read_seg(str(path))
    read = read_label_image(path)
    assert np.array_equal(read.labels, np.rint(voxels[0]).T)
    if "nibabel" in read.grid.placements:
        assert np.allclose(read.grid.placements["nibabel"], properties["nibabel_stuff"]["original_affine"])
    # nnU-Net takes any unit for mm here; a distance in mm needs the true one.
    millimetres = {"m": 1000.0, "micrometre": 0.001}
    unit = next((size for name, size in millimetres.items() if HEADERS.get(path.stem, {}).get("units") == name), 1.0)
    assert read.spacing == pytest.approx([size * unit for size in properties["spacing"][::-1]])


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_nifti(tmp_path: Path, name: str, ending: str) -> None:
    path = nifti(tmp_path / f"{name}{ending}", stored_labels(LABELS, name), **HEADERS[name])
    read = read_label_image(path)
    assert np.array_equal(read.labels, LABELS)
    assert read.labels.flags.c_contiguous
    assert ("SimpleITK" in read.grid.placements) == (name not in (*REFUSED_BY_ITK, "codes 0"))
    assert read.spacing == pytest.approx((1.0, 1.0, 1.0) if name == "zooms of ones" else SPACING)
    if name in REFUSED_BY_ITK or ending == ".nii":
        require_what_nibabel_gives(path)
    else:
        require_what_itk_gives(path)


@pytest.mark.parametrize("name", HEADERS)
def test_volumes_for_converters_are_those_of_itk(tmp_path: Path, name: str) -> None:
    path = nifti(tmp_path / "image.nii.gz", stored_labels(LABELS, name), **HEADERS[name])
    if name in REFUSED_BY_ITK:
        for read in (read_header, read_volume):
            with pytest.raises(
                UserError, match=r"image\.nii\.gz has axes that are not at right angles \(78\.69 degrees\)"
            ):
                read(path)
        return
    image, header, expected = read_volume(path), read_header(path), sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))
    assert same_grid(grid_of(header), grid_of(expected))
    assert image.GetDirection() == expected.GetDirection()


def test_remedies_for_sheared_axes_work(tmp_path: Path) -> None:
    rounding = {"zooms": SPACING, "sform": ((-1.25, 0.01, 0, -30), (0, -1.5, 0, 20), (0, 0, 8, -100))}
    path = nifti(tmp_path / "rounding.nii.gz", LABELS, **rounding)
    with pytest.raises(UserError, match=r"image\.set_qform\(image\.affine\)"):
        read_volume(path)
    image = nibabel.load(path)
    image.set_qform(image.affine)
    image.set_sform(image.get_qform())
    nibabel.save(image, tmp_path / "mended.nii.gz")
    mended = read_volume(tmp_path / "mended.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(mended).T, LABELS)
    assert mended.GetSpacing() == pytest.approx(SPACING, rel=1e-3)
    sheared = nibabel.load(nifti(tmp_path / "sheared.nii.gz", LABELS.astype(np.float32), **HEADERS["sheared"]))
    nibabel.save(nibabel.processing.resample_to_output(sheared, order=0), tmp_path / "resampled.nii.gz")
    assert set(np.unique(sitk.GetArrayFromImage(read_volume(tmp_path / "resampled.nii.gz")))) == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_types_of_numbers(tmp_path: Path, kind: str, endian: str) -> None:
    path = nifti(tmp_path / "a.nii.gz", LABELS.astype(kind), **{**HEADERS["sform only"], "endian": endian})
    assert np.array_equal(read_label_image(path).labels, LABELS)
    require_what_itk_gives(path)


@pytest.mark.parametrize(
    "shape", [(6, 7), (6, 7, 1), (6, 7, 5, 1), (6, 7, 1, 1), (6, 7, 5, 1, 1), (1, 7, 5), (6, 7, 3)]
)
def test_numbers_of_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(0, 4, shape).astype(np.uint8)
    path = nifti(tmp_path / "a.nii.gz", array, qform=((0.0, 0.0, 0.0), (1.0, 2.0, 3.0), 1.0))
    require_what_itk_gives(path)
    assert read_label_image(path).labels.shape == shape[:3]


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".gipl", ".nii.gz"])
def test_formats_of_itk(tmp_path: Path, ending: str, slices: int) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(2).integers(0, 4, (slices, 7, 6)).astype(np.uint8))
    image.SetSpacing(SPACING)
    image.SetOrigin((-12.0, 3.0, 100.0))
    if ending != ".gipl":
        image.SetDirection((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(image, str(path), useCompression=ending != ".gipl")
    require_what_itk_gives(path)


@pytest.mark.parametrize("name", OTHER_HEADERS)
@pytest.mark.parametrize(("ending", "make"), [(".mha", mha_bytes), (".nrrd", nrrd_bytes)])
@pytest.mark.parametrize("kind", [np.uint8, np.int16])
def test_headers_of_other_formats(tmp_path: Path, ending: str, make, name: str, kind: type) -> None:
    """SimpleITK takes sheared axes in these, and so does nnU-Net."""
    path = tmp_path / f"a{ending}"
    path.write_bytes(make(LABELS.astype(kind), **OTHER_HEADERS[name]))
    require_what_itk_gives(path)
    read, expected = read_label_image(path), sitk.ReadImage(str(path))
    steps = np.array(OTHER_HEADERS[name]["axes"]).T
    assert np.array_equal(read.labels, LABELS)
    assert np.allclose(read.grid.placements["SimpleITK"][:3, :3], steps)
    image = read_volume(path)
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))
    assert same_grid(grid_of(image), grid_of(expected))
    assert same_grid(grid_of(read_header(path)), grid_of(expected))


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("name", ["sform of ones", "qform only", "unit m", "negative zooms", "scale factor", "sheared"])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_thin_volumes_of_any_header(tmp_path: Path, ending: str, name: str, slices: int) -> None:
    labels = LABELS[..., :1].repeat(slices, axis=2) if slices > LABELS.shape[2] else LABELS[..., :slices]
    path = nifti(tmp_path / f"{name}{ending}", stored_labels(labels, name), **HEADERS[name])
    assert np.array_equal(read_label_image(path).labels, labels)
    if name in REFUSED_BY_ITK or ending == ".nii":
        require_what_nibabel_gives(path)
    else:
        require_what_itk_gives(path)
    if name not in REFUSED_BY_ITK:
        assert np.array_equal(np.rint(sitk.GetArrayFromImage(read_volume(path)).T), labels)


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("options", [{}, {"photometric": "minisblack"}, {"compression": "zlib"}, {"byteorder": ">"}])
def test_tiff(tmp_path: Path, slices: int, options: dict) -> None:
    """A reader that takes three or four planes for colours would move the axis."""
    planes = np.random.default_rng(3).integers(0, 4, (slices, 7, 6)).astype(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, planes, **options)
    assert read_label_image(path).spacing is None
    path.with_suffix(".json").write_text(json.dumps({"spacing": [10, 1, 1.5]}))
    read = read_label_image(path)
    voxels, properties = Tiff3DIO().read_seg(str(path))
    assert np.array_equal(read.labels, planes)
    assert np.array_equal(read.labels, voxels[0])
    assert read.spacing == tuple(properties["spacing"]) == (10, 1, 1.5)


def test_one_plane_with_three_voxel_edges_is_a_volume(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, LABELS[0], imagej=True)
    assert read_label_image(path).labels.shape == (7, 5)
    path.with_suffix(".json").write_text(json.dumps({"spacing": [10, 1, 1]}))
    assert read_label_image(path).labels.shape == (1, 7, 5)


@pytest.mark.parametrize("content", ["{}", '{"spacing": [1, 2]}', '{"spacing": [0, 1, 1]}', '{"spacing": "x"}', "["])
def test_spacing_of_a_tiff_that_is_none(tmp_path: Path, content: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", LABELS)
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json states .*spacing.*: write "):
        read_label_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("a.png", "a.PNG", "a.bmp", "a.BMP", "a.tif") for kind in (np.uint8, bool)),
        *((name, np.uint16) for name in ("a.png", "a.PNG", "a.tif")),
    ],
)
def test_pictures(tmp_path: Path, name: str, kind: type) -> None:
    path = tmp_path / name
    Image.fromarray(LABELS[0].astype(kind)).save(path)
    read = read_label_image(path)
    assert np.array_equal(read.labels, LABELS[0].astype(kind))
    assert np.array_equal(read.labels, NaturalImage2DIO().read_seg(str(path))[0][0, 0])
    assert read.spacing is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(("a.png", words) for words in NO_LABEL_PICTURES),
        ("a.bmp", "has a palette"),
        ("a.bmp", "is a colour image"),
        ("a.tif", "is a colour image"),
    ],
)
def test_pictures_that_nnunet_does_not_read_as_labels(tmp_path: Path, name: str, words: str) -> None:
    NO_LABEL_PICTURES[words](LABELS[0]).save(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} {words}"):
        read_label_image(tmp_path / name)


def test_colours_with_an_alpha_channel_are_refused(tmp_path: Path) -> None:
    Image.fromarray(LABELS[0]).convert("RGBA").save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png is a colour image"):
        read_label_image(tmp_path / "a.png")


def test_remedies_for_pictures_work(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    NO_LABEL_PICTURES["has a palette"](LABELS[0]).save(path)
    Image.fromarray(np.asarray(Image.open(path))).save(path)
    assert np.array_equal(read_label_image(path).labels, LABELS[0])
    NO_LABEL_PICTURES["has an alpha channel"](LABELS[0]).save(path)
    Image.open(path).getchannel(0).save(path)
    assert np.array_equal(read_label_image(path).labels, LABELS[0])


# Files that are not whole, or are another file than they seem


WHOLE = nifti_bytes(LABELS, **HEADERS["sform only"])
DAMAGED = damaged(WHOLE)


@pytest.mark.parametrize("read", [read_label_image, read_volume])
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, name: str, read) -> None:
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} cannot be read as an image .*: write, download or"):
        read(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("ending", "make"), [(".mha", mha_bytes), (".nrrd", nrrd_bytes)])
def test_cut_off_volumes_of_other_formats_are_refused(tmp_path: Path, ending: str, make, packed: bool) -> None:
    path, content = tmp_path / f"a{ending}", make(LABELS, **{**OTHER_HEADERS["straight"], "packed": packed})
    path.write_bytes(content[:-30])
    for read in (read_label_image, read_volume):
        with pytest.raises(UserError, match=rf"^{re.escape(str(path))} cannot be read as an image .*: write, download"):
            read(path)


def test_half_a_volume_in_a_whole_metaimage(tmp_path: Path) -> None:
    """SimpleITK leaves what happened to be in memory in place of the rest."""
    path = tmp_path / "a.mha"
    whole = mha_bytes(LABELS, **OTHER_HEADERS["packed"])
    half = zlib.compress(LABELS.tobytes(order="F")[: LABELS.size // 2])
    header = whole[: whole.index(b"LOCAL\n") + 6]
    path.write_bytes(re.sub(rb"(CompressedDataSize =) \d+", rb"\1 %d" % len(half), header) + half)
    assert sitk.ReadImage(str(path)).GetSize() == LABELS.shape
    for read in (read_label_image, read_volume):
        with pytest.raises(UserError, match=r"a\.mha cannot be read as an image \(it ends after 105 of 210 bytes"):
            read(path)


def test_half_a_volume_of_gipl(tmp_path: Path) -> None:
    path = tmp_path / "a.gipl"
    sitk.WriteImage(sitk.GetImageFromArray(LABELS.T), str(path))
    assert np.array_equal(read_label_image(path).labels, LABELS)
    path.write_bytes(path.read_bytes()[:-100])
    assert sitk.ReadImage(str(path)).GetSize() == LABELS.shape
    with pytest.raises(UserError, match=r"a\.gipl cannot be read as an image \(it ends after 110 of 210 bytes"):
        read_label_image(path)


def test_half_a_stack_of_planes(tmp_path: Path) -> None:
    """tifffile gives the planes that it finds, which may look like a picture."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, LABELS.T, photometric="minisblack", compression="zlib")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert tifffile.imread(path).shape != LABELS.T.shape
    with pytest.raises(UserError, match=r"a\.tif cannot be read as an image .*page"):
        read_label_image(path)


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".tif", ".png", ".bmp"])
def test_damaged_files_of_other_formats_are_refused(tmp_path: Path, ending: str) -> None:
    path, labels = tmp_path / f"a{ending}", np.random.default_rng(5).integers(0, 4, (40, 40)).astype(np.uint8)
    if ending in (".mha", ".nrrd"):
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(path), useCompression=True)
    else:
        Image.fromarray(labels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=rf"a{ending} cannot be read as a"):
        read_label_image(path)


def test_uncompressed_file_with_the_name_of_a_compressed_one_is_read_as_nnunet_does(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(WHOLE)
    require_what_itk_gives(path)
    assert np.array_equal(read_label_image(path).labels, LABELS)
    assert np.array_equal(sitk.GetArrayFromImage(read_volume(path)).T, LABELS)


def test_compressed_file_with_the_name_of_an_uncompressed_one(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(gzip.compress(WHOLE))
    with pytest.raises(UserError, match=r"a\.nii is compressed, .*: rename it to a\.nii\.gz"):
        read_label_image(tmp_path / "a.nii")


def test_unpacked_file_beside_the_packed_one(tmp_path: Path) -> None:
    """SimpleITK reads the header of one and the voxels of the other."""
    packed = nifti(tmp_path / "a.nii.gz", LABELS)
    nifti(tmp_path / "a.nii", LABELS[::-1])
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(packed))).T, LABELS[::-1])
    for read in (read_label_image, read_volume, read_header):
        with pytest.raises(UserError, match=r"a\.nii\.gz and a\.nii lie in one folder, .*: move one of them elsewhere"):
            read(packed)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5, 1.01])
def test_numbers_that_are_no_labels(tmp_path: Path, value: float) -> None:
    """SimpleITK turns numbers that are not finite into zeros."""
    labels = LABELS.astype(np.float32)
    labels[2, 3, 4] = value
    with pytest.raises(UserError, match="holds numbers that are not whole"):
        read_label_image(nifti(tmp_path / "a.nii.gz", labels))


def test_whole_numbers_up_to_rounding() -> None:
    almost = LABELS * np.float32(1.0000001)
    assert np.array_equal(whole_numbers(almost), LABELS)
    assert whole_numbers(LABELS) is LABELS
    assert whole_numbers(LABELS + 0.01) is None
    assert whole_numbers(LABELS.astype(complex)) is None


# Grids


def grid(size: tuple[int, ...] = (6, 7, 5), at: tuple[float, ...] = (0, 0, 0), reader: str = "SimpleITK") -> Grid:
    placement = np.diag([*SPACING, 1.0])
    placement[:3, 3] = at
    return Grid(size, SPACING, {reader: placement})


def test_one_tolerance() -> None:
    """A tenth of the smallest voxel edge, 1.25 mm."""
    assert same_grid(grid(at=(0, 0, 0.124)), grid())
    assert not same_grid(grid(at=(0, 0, 0.126)), grid())
    assert not same_grid(grid((6, 7, 4)), grid())


def test_a_side_that_states_nothing_contradicts_nothing() -> None:
    elsewhere = grid(at=(100, 0, 0))
    assert same_grid(Grid((6, 7, 5)), elsewhere)
    assert same_grid(elsewhere, Grid((6, 7, 5), SPACING))
    assert not same_grid(elsewhere, Grid((6, 7, 5), (1.25, 1.5, 7.0)))
    assert not same_grid(Grid((6, 7, 1), (1.25, 1.5, 8.0)), Grid((6, 7, 1), (1.25, 1.5, 7.0)))
    assert same_grid(elsewhere, grid(reader="nibabel"))  # only the spacings can be compared


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2), (1, 2, 0)])
@pytest.mark.parametrize("backwards", [(True, False, False), (True, True, False), (True, True, True)])
def test_axes_are_turned_to_those_of_another_image(axes, backwards) -> None:
    image = sitk.GetImageFromArray(LABELS.T)
    image.SetSpacing(SPACING)
    image.SetOrigin((3.0, -4.0, 5.0))
    turned = sitk.Flip(sitk.PermuteAxes(image, axes), backwards)
    found = turn_between(grid_of(turned), grid_of(image))
    assert np.array_equal(found.apply(sitk.GetArrayFromImage(turned).T), LABELS)
    assert same_grid(grid_of(turned).turned(found), grid_of(image))
    turned.SetOrigin(np.add(turned.GetOrigin(), (0, 0, 1.0)).tolist())
    assert turn_between(grid_of(turned), grid_of(image)) is None
    assert turn_between(grid_of(image), grid_of(image)) == Turn((0, 1, 2), (False, False, False))
