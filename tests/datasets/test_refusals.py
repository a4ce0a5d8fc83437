"""A download that is not as described gets one sentence that names the file, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunetv2_ext import cli
from nnunetv2_ext.datasets import flare24_t3, pancancer_ct
from nnunetv2_ext.errors import UserError
from tests.datasets import trees

pytestmark = pytest.mark.usefixtures("_threads")


def refuse(folders: SimpleNamespace, source: Path, dataset: str, *words: str, options: tuple[str, ...] = ()) -> None:
    """Convert on the command line; it must end in one sentence with these words, and write nothing."""
    before = sorted(folders.raw.iterdir())
    with pytest.raises(SystemExit) as stopped:
        cli.main(["convert", dataset, "-i", str(source), "-np", "1", *options])
    message = stopped.value.code
    assert isinstance(message, str)
    assert message.startswith("error: ")
    assert "\n" not in message
    for word in words:
        assert word in message
    assert sorted(folders.raw.iterdir()) == before


def change(path: Path, function: Callable[[sitk.Image], sitk.Image | None]) -> None:
    image = sitk.ReadImage(str(path))
    sitk.WriteImage(function(image) or image, str(path))


def with_voxel(value: float, kind: type = np.int16) -> Callable[[sitk.Image], sitk.Image]:
    """Return a function that writes one voxel of a label."""

    def function(image: sitk.Image) -> sitk.Image:
        array = sitk.GetArrayFromImage(image).astype(kind)
        array[0, 0, 0] = value
        result = sitk.GetImageFromArray(array)
        result.CopyInformation(image)
        return result

    return function


class TestVolumes:
    @pytest.fixture
    def source(self, make_source: Callable[[str], Path]) -> Path:
        return make_source("FLARE22")

    @pytest.fixture
    def image(self, source: Path) -> Path:
        return source / "FLARE22Train" / "images" / "FLARE22_Tr_0002_0000.nii.gz"

    @pytest.fixture
    def label(self, source: Path) -> Path:
        return source / "FLARE22Train" / "labels" / "FLARE22_Tr_0002.nii.gz"

    @pytest.mark.parametrize("part", ["image", "label"])
    def test_missing_file(self, source, folders, part, request) -> None:
        path = request.getfixturevalue(part)
        path.unlink()
        refuse(folders, source, "FLARE22", f"has no file {path.name}", "complete the download")

    @pytest.mark.parametrize(
        ("value", "kind", "words"),
        [
            (14, np.int16, "has the label 14; known are 0 and 1 to 13"),
            (-1, np.int16, "has the label -1"),
            (2.5, np.float32, "has values between whole numbers"),
        ],
    )
    def test_unknown_label(self, source, folders, label, value, kind, words) -> None:
        change(label, with_voxel(value, kind))
        refuse(folders, source, "FLARE22", label.name, words)

    def test_other_size(self, source, folders, label) -> None:
        change(label, lambda image: image[:, :, 1:])
        refuse(folders, source, "FLARE22", f"{label} has 24 x 24 x 7 voxels", "has 24 x 24 x 8")

    @pytest.mark.parametrize(
        "move",
        [
            lambda image: image.SetSpacing((0.8, 0.75, 3.1)),
            lambda image: image.SetOrigin((-12.5, 7.0, 101.0)),
            lambda image: image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1)),
        ],
        ids=["spacing", "origin", "direction"],
    )
    def test_other_place(self, source, folders, label, move) -> None:
        change(label, move)
        refuse(folders, source, "FLARE22", f"{label} lies elsewhere than its image FLARE22_Tr_0002_0000.nii.gz")

    @pytest.mark.parametrize("part", ["image", "label"])
    def test_unreadable(self, source, folders, part, request) -> None:
        path = request.getfixturevalue(part)
        whole = path.read_bytes()
        # SimpleITK reads a file that is cut off as if zeros followed.
        for content in (whole[: len(whole) * 3 // 4], whole[:-20] + bytes(20), b"<html>Not found</html>"):
            path.write_bytes(content)
            refuse(folders, source, "FLARE22", f"{path} cannot be read as an image", "download or unpack it again")

    def test_other_order_of_labels(self, source, folders) -> None:
        """As in a list that names 1 the spleen and 3 the liver."""
        for path in source.rglob("FLARE22_Tr_000?.nii.gz"):
            change(path, lambda image: sitk.ChangeLabel(image, changeMap={1: 3, 3: 1}))
        refuse(folders, source, "FLARE22", "The label 3 (spleen) is the largest organ", "FLARE22_Tr_0001")

    def test_label_that_occurs_nowhere(self, source, folders) -> None:
        for path in source.rglob("FLARE22_Tr_000?.nii.gz"):
            change(path, lambda image: sitk.ChangeLabel(image, changeMap={13: 2}))
        refuse(folders, source, "FLARE22", "No case has the label 13 (left kidney)")

    def test_two_copies(self, source, folders, label) -> None:
        (source / "resampled").mkdir()
        (source / "resampled" / label.name).write_bytes(label.read_bytes())
        refuse(folders, source, "FLARE22", str(label), "resampled", "are the same case")


def test_flare23_without_complete_labels(make_source, folders) -> None:
    source = make_source("FLARE23")
    for number in (2, 3):
        (source / "labelsTr2200" / f"FLARE23_{number:04d}.nii.gz").write_bytes(
            (source / "labelsTr2200" / "FLARE23_0001.nii.gz").read_bytes()
        )
    refuse(folders, source, "FLARE23", "has all 13 organs", options=("--cases", "complete"))


def test_acdc(make_source, folders) -> None:
    source = make_source("ACDC")
    patient = source / "database" / "training" / "patient019"
    (patient / "patient019_frame01_gt.nii.gz").unlink()
    refuse(folders, source, "ACDC", "patient019 has no file patient019_frame01_gt.nii.gz")
    (patient / "Info.cfg").write_text("ED: 1\nGroup: DCM\n")
    refuse(folders, source, "ACDC", f"{patient / 'Info.cfg'} has no line `ES: number`")
    (patient / "Info.cfg").unlink()
    refuse(folders, source, "ACDC", "has no file training/patient019/Info.cfg")
    (source / "copy" / "patient002").mkdir(parents=True)
    (source / "copy" / "patient002" / "Info.cfg").write_text("ED: 1\nES: 11\n")
    refuse(folders, source, "ACDC", "copy/patient002/Info.cfg", "are the same case")


def test_brain_tumour(make_source, folders) -> None:
    source = make_source("BrainTumour")
    task = source / "Task01_BrainTumour"
    image = task / "imagesTr" / "BRATS_011.nii.gz"
    volume = sitk.ReadImage(str(image))
    sitk.WriteImage(volume[..., :3], str(image))
    refuse(folders, source, "BrainTumour", f"{image} has 3 channels instead of 4")
    sitk.WriteImage(volume[..., 0], str(image))
    refuse(folders, source, "BrainTumour", f"{image} has 3 dimensions instead of 4")
    (task / "dataset.json").write_text(json.dumps({"modality": {"0": "T1w", "1": "FLAIR", "2": "T1gd", "3": "T2w"}}))
    refuse(folders, source, "BrainTumour", "dataset.json lists the channels T1w, FLAIR, T1gd, T2w instead of FLAIR")
    (task / "dataset.json").write_text("{}")
    refuse(folders, source, "BrainTumour", "dataset.json does not list the channels")


class TestPictures:
    @pytest.fixture
    def cvc(self, make_source) -> Path:
        return make_source("CVC-ClinicDB")

    @pytest.fixture
    def mask(self, cvc: Path) -> Path:
        return cvc / "CVC-ClinicDB" / "Ground Truth" / "7.tif"

    def test_missing_mask(self, cvc, folders, mask) -> None:
        mask.unlink()
        refuse(folders, cvc, "CVC-ClinicDB", "has no file Ground Truth/7.tif")

    def test_missing_folder(self, cvc, folders) -> None:
        (cvc / "CVC-ClinicDB" / "Ground Truth").rename(cvc / "masks")
        refuse(folders, cvc, "CVC-ClinicDB", "has no folder Ground Truth")

    def test_two_formats_side_by_side(self, cvc, folders) -> None:
        trees.save(cvc / "PNG" / "Original" / "1.png", np.zeros(trees.PICTURE, dtype=np.uint8))
        refuse(folders, cvc, "CVC-ClinicDB", "have the same name")

    def test_map_of_instances(self, cvc, folders, mask) -> None:
        trees.save(mask, trees.blobs(np.random.default_rng(0), n=3))
        refuse(folders, cvc, "CVC-ClinicDB", f"{mask} has no white, but values up to 3", "--threshold 1")

    def test_mask_with_much_grey_needs_a_threshold(self, cvc, folders, mask, capsys) -> None:
        trees.save(mask, np.where(np.asarray(Image.open(mask)) > 0, 255, 100).astype(np.uint8))
        refuse(folders, cvc, "CVC-ClinicDB", f"{mask} is not black and white", "--threshold")
        cli.main(["convert", "CVC-ClinicDB", "-i", str(cvc), "-np", "1", "--threshold", "128"])
        assert "Wrote" in capsys.readouterr().out

    def test_other_size(self, cvc, folders, mask) -> None:
        trees.save(mask, np.zeros((16, 40), dtype=np.uint8))
        refuse(folders, cvc, "CVC-ClinicDB", f"{mask} has 40 x 16 pixels", "7.tif has 40 x 32")

    def test_unreadable(self, cvc, folders, mask) -> None:
        mask.write_bytes(mask.read_bytes()[:100])
        refuse(folders, cvc, "CVC-ClinicDB", f"{mask} cannot be read as a picture")

    def test_picture_with_more_than_8_bits(self, cvc, folders) -> None:
        path = trees.save(cvc / "CVC-ClinicDB" / "Original" / "7.tif", np.full(trees.PICTURE, 3000, dtype=np.uint16))
        refuse(folders, cvc, "CVC-ClinicDB", f"{path} is a picture of the kind I;16")

    def test_mask_of_kvasir_that_is_no_mask(self, make_source, folders) -> None:
        source = make_source("Kvasir-SEG")
        masks = sorted((source / "Kvasir-SEG" / "masks").iterdir())
        picture = source / "Kvasir-SEG" / "images" / masks[2].name
        masks[2].write_bytes(picture.read_bytes())
        refuse(folders, source, "Kvasir-SEG", f"{masks[2]} is not black and white")
        masks[2].unlink()
        refuse(folders, source, "Kvasir-SEG", f"has no file masks/{masks[2].name}")
        picture.unlink()
        refuse(folders, source, "Kvasir-SEG", "has 5 pictures, but Kvasir-SEG has 6")

    def test_map_of_glas_with_colours(self, make_source, folders) -> None:
        source = make_source("GlaS")
        (path,) = source.rglob("train_2_anno.bmp")
        trees.save(path, np.zeros((*trees.PICTURE, 3), dtype=np.uint8))
        refuse(folders, source, "GlaS", f"{path} holds colours (RGB)")
        path.unlink()
        refuse(folders, source, "GlaS", "has no file train_2_anno.bmp")

    def test_annotation_of_monuseg(self, make_source, folders) -> None:
        source = make_source("MoNuSeg")
        path = sorted(source.rglob("*.xml"))[0]
        for content, words in (
            (trees.annotation([[(5, 5), (400, 5), (400, 9)]]), "has an outline that leaves its picture of 40 x 32"),
            (trees.annotation([]), "has no `Region`"),
            (trees.annotation([[("left", 5)]]), "is not an annotation of ImageScope"),
            ("<Annotations>", "is not an annotation of ImageScope"),
        ):
            path.write_text(content)
            refuse(folders, source, "MoNuSeg", f"{path} {words}")
        path.unlink()
        refuse(folders, source, "MoNuSeg", f"has no file {path.name}")

    def test_resized_picture_of_monuseg(self, make_source, folders) -> None:
        """All outlines lie inside of an enlarged picture, at wrong places."""
        source = make_source("MoNuSeg")
        path = sorted(source.rglob("*.tif"))[0]
        Image.open(path).resize((42, 34)).save(path)
        refuse(folders, source, "MoNuSeg", f"{path} has 42 x 34 pixels instead of 40 x 32: it was resized")

    def test_isic(self, make_source, folders) -> None:
        source = make_source("ISIC2017")
        mask = source / "ISIC-2017_Training_Part1_GroundTruth" / "ISIC_0000001_segmentation.png"
        trees.save(mask, np.full(trees.PICTURE, 150, dtype=np.uint8))
        refuse(folders, source, "ISIC2017", f"{mask} is not black and white: 100% of its pixels are grey")
        mask.unlink()
        refuse(folders, source, "ISIC2017", f"has no file {mask.parent.name}/{mask.name}")
        (source / "ISIC-2017_Training_Data" / "ISIC_0000001.jpg").unlink()
        refuse(folders, source, "ISIC2017", "has 2 pictures in ISIC-2017_Training_Data, but ISIC2017 has 3 there")


class TestCommandLine:
    @pytest.mark.parametrize(
        ("dataset", "options", "words"),
        [
            ("Glass", (), "no converter for 'Glass'; there are FLARE21, "),
            ("GlaS", ("--organs", "8"), "GlaS has no option --organs; it belongs to Synapse"),
            ("Kvasir-SEG", ("--threshold", "0"), "--threshold is '0': give a whole number from 1 to 255"),
            ("GlaS", ("-d", "1000"), "choose 1 to 999"),
            ("GlaS", ("-np", "0"), "choose at least 1"),
        ],
    )
    def test_wrong_arguments(self, make_source, folders, dataset, options, words) -> None:
        refuse(folders, make_source("GlaS"), dataset, words, options=options)

    def test_no_such_folder(self, folders, tmp_path) -> None:
        for dataset in ("ACDC", "GlaS", "Kvasir-SEG"):
            refuse(folders, tmp_path / "missing", dataset, f"There is no folder {tmp_path / 'missing'}")

    def test_folders_of_nnunet(self, make_source, folders, monkeypatch) -> None:
        source = make_source("GlaS")
        monkeypatch.setenv("nnUNet_def_n_proc", "many")
        with pytest.raises(SystemExit, match="nnUNet_def_n_proc is 'many'"):
            cli.main(["convert", "GlaS", "-i", str(source)])
        monkeypatch.delenv("nnUNet_raw")
        refuse(folders, source, "GlaS", "nnUNet_raw is not set")


def test_flare24_t3_pairs_mri_by_their_names(make_source) -> None:
    folder = make_source("FLARE24-T3")
    source = flare24_t3.collect(folder)
    assert [(case.name, case.label is None) for case in source.test_cases] == [
        ("amos_0507", False),
        ("amos_0508", True),
    ]
    assert "Only 2 of the 110 MRI of the validation set are there." in source.remarks
    (folder / "validation" / "MRI_imagesVal" / "amos_0507_0000.nii.gz").unlink()
    with pytest.raises(UserError, match=r"amos_0507\.nii\.gz has no image in a folder MRI_imagesVal"):
        flare24_t3.collect(folder)


def test_pancancer_ct_pairs_by_names(tmp_path: Path) -> None:
    """Labels without their image, no labels at all, and no lesion in any."""
    folder = trees.pancancer_ct(tmp_path, range(2))
    source = pancancer_ct.collect(folder)
    assert [case.name for case in source.cases] == ["lesion_00000", "lesion_00001"]
    assert "1 image without a label: not used." in source.remarks
    assert pancancer_ct.examine({"a": {1: 2.0}, "b": {}}) == [
        "1 label without a lesion: protocol lesion counts false positives there."
    ]
    with pytest.raises(UserError, match="No label of PancancerCT has a lesion"):
        pancancer_ct.examine({"a": {}})
    (image,) = folder.rglob("lesion_00001_0000.nii.gz")
    image.unlink()
    with pytest.raises(UserError, match=r"lesion_00001\.nii\.gz has no image lesion_00001_0000\.nii\.gz in"):
        pancancer_ct.collect(folder)
    for label in folder.rglob("lesion_0000?.nii.gz"):
        label.unlink()
    with pytest.raises(UserError, match=r"has no label CASE\.nii\.gz beside images"):
        pancancer_ct.collect(folder)
