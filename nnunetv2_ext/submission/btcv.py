"""The archive of predictions for BTCV's abdomen challenge (the test half of Synapse multi-organ segmentation).

Source: the challenge's page on synapse.org: predictions of the 20 test images `img0061.nii.gz` to `img0080.nii.gz`,
with all 13 labels, in the geometry of the image. How the files of a submission are called is not known for sure; the
training labels' pattern, `label0061.nii.gz`, is likely, and the default.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from nnunetv2_ext.datasets.source import find_files, require_numbers
from nnunetv2_ext.datasets.synapse import BTCV, CHALLENGE_TEST
from nnunetv2_ext.datasets.volumes import cases_with_label, largest_label, write_label
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.labels import read_dataset_json, same_classes
from nnunetv2_ext.images.volumes import read_header
from nnunetv2_ext.io.files import prepare_file, whole_file

__all__ = ["PATTERN", "submit_btcv"]

NAME = "BTCV's test set"
PATTERN = "label{number}.nii.gz"


def submit_btcv(
    predictions: Path, images: Path, output: Path, *, pattern: str = PATTERN, overwrite: bool = False
) -> list[str]:
    """Check the predictions of the 20 test images, and write them into a zip archive.

    Args:
        predictions: folder of `img0061.nii.gz` and so on, as nnU-Net writes them; `label0061.nii.gz` is taken as well.
        images: folder of the test images, of the download or nnU-Net's `imagesTs`.
        output: archive to write.
        pattern: path of each file in the archive, with `{number}` for its four digits.
        overwrite: replace an existing archive.

    Returns:
        Remarks for the user, one sentence each.

    Raises:
        UserError: naming a file that is missing, superfluous, of another geometry, or has an unknown label. Nothing is
            written then.
    """
    _check_pattern(pattern)
    if output.suffix != ".zip":
        raise UserError(f"{output} does not end in .zip: an archive of that format is written.")
    prepare_file(output, overwrite=overwrite)
    pairs = _pair(predictions, images)
    _check_meaning(predictions / "dataset.json")
    sizes = {}
    with (
        tempfile.TemporaryDirectory() as work,
        whole_file(output) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,  # the files in it are compressed
    ):
        for number, (prediction, image) in tqdm(pairs.items(), desc="check", unit="case"):
            checked = Path(work) / "label.nii.gz"
            sizes[prediction.name] = write_label(
                prediction, checked, read_header(image), image, labels=BTCV, label_map=None, link=False
            )
            archive.write(checked, pattern.format(number=f"{number:04d}"))
        _check_order(sizes)
    remarks = [f"Nothing is segmented in {name}." for name, found in sizes.items() if not found]
    absent = [name for name, label in BTCV.items() if not cases_with_label(sizes, label)]
    if absent:
        remarks.append(f"No prediction has {', '.join(absent)}, which the challenge scores as well.")
    return remarks


def _check_pattern(pattern: str) -> None:
    path = PurePosixPath(pattern)
    if (
        not re.fullmatch(r"[^{}]*\{number\}[^{}]*\.nii\.gz", pattern)
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in pattern
    ):
        raise UserError(
            f"The pattern {pattern!r} does not name files of an archive: write a relative path that has {{number}} "
            f"once and ends in .nii.gz, as {PATTERN}."
        )


def _pair(predictions: Path, images: Path) -> dict[int, tuple[Path, Path]]:
    """Return the prediction and the image of each test case, by its number."""
    numbers = list(CHALLENGE_TEST)
    if not predictions.is_dir():
        raise UserError(f"There is no folder {predictions} of predictions: check its name.")
    if not images.is_dir():
        raise UserError(f"There is no folder {images} of test images: check its name.")
    images_found = find_files(images, r"img(\d{4})(?:_0000)?\.nii\.gz")
    test_images = require_numbers(images_found, numbers, lambda number: f"img{number:04d}.nii.gz", images, NAME)
    found: dict[int, Path] = {}
    for path in sorted(predictions.glob("[!.]*.nii.gz")):
        match = re.fullmatch(r"(?:img|label)(\d{4})\.nii\.gz", path.name)
        if match is None or int(match[1]) not in numbers:
            raise UserError(
                f"{path} is none of the test cases img{numbers[0]:04d}.nii.gz to img{numbers[-1]:04d}.nii.gz: move it "
                "elsewhere."
            )
        if int(match[1]) in found:
            raise UserError(f"{found[int(match[1])]} and {path} are the same case: remove one.")
        found[int(match[1])] = path
    missing = [number for number in numbers if number not in found]
    if missing:
        others = f" (nor have {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise UserError(f"{test_images[missing[0]]} has no prediction in {predictions}{others}: predict it as well.")
    return {number: (found[number], test_images[number]) for number in numbers}


def _check_meaning(dataset_json: Path) -> None:
    """Raise if the model was trained on other labels; nnU-Net leaves its dataset.json by the predictions."""
    if dataset_json.is_file():
        labels = read_dataset_json(dataset_json)
        if not same_classes(labels.classes, BTCV):
            raise UserError(
                f"{dataset_json} says {labels.describe()}, and the challenge wants the 13 labels of BTCV: submit "
                "predictions of a model that was trained on these."
            )


def _check_order(sizes: Mapping[str, Mapping[int, float]]) -> None:
    """Raise if another organ than the liver is the largest: the labels have the numbers of another map then."""
    largest = largest_label(sizes, list(BTCV.values()))
    if largest not in (None, BTCV["liver"]):
        name = next(name for name, label in BTCV.items() if label == largest)
        raise UserError(
            f"The label {largest}, in BTCV the {name}, has the largest mean volume of these predictions, where the "
            f"liver, {BTCV['liver']}, should have it: submit predictions of a model that was trained on BTCV's labels."
        )
