"""A phantom data set: abdominal CTs with contrast medium, in nnU-Net's raw format."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from nnunetv2_ext.demo.anatomy import paint_abdomen
from nnunetv2_ext.demo.canvas import Canvas
from nnunetv2_ext.demo.tissues import LABELS, Contrast
from nnunetv2_ext.io.files import whole_folder

__all__ = ["LABELS", "make_case", "write_dataset"]

# Slices more than twice as thick as a pixel, as nnU-Net then halves the pixels alone first and thin organs keep slices.
DEFAULT_SHAPE = (14, 64, 80)  # voxels along z, y, x
COVERAGE_MM = 130.0  # from the dome of the liver to the lower poles of the kidneys
FIELD_OF_VIEW_MM = 352.0  # across an average patient


def make_case(
    rng: np.random.Generator, shape: tuple[int, int, int] = DEFAULT_SHAPE
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Make one patient; anatomy, contrast phase, position on the table and noise differ from call to call.

    Args:
        rng: Source of everything that varies; the same state gives the same case.
        shape: Voxels along z, y, x. The field of view stays the same, so that a smaller shape is a coarser scan.

    Returns:
        CT in HU as int16 with the given shape, labels as uint8 (values of `LABELS`), voxel size along z, y, x in mm.
    """
    width = rng.uniform(0.9, 1.1)
    size = (rng.uniform(0.93, 1.07), width * rng.uniform(0.94, 1.06), width)
    pixel = round(FIELD_OF_VIEW_MM * width / shape[2], 3)  # a field of view is fitted to the patient
    spacing = (round(COVERAGE_MM / shape[0], 3), pixel, pixel)
    shift = (rng.uniform(-9, 9), rng.uniform(-12, -4), rng.uniform(-6, 6))
    canvas = Canvas(rng, shape, spacing, size, shift, bend_mm=4.0)
    paint_abdomen(canvas, rng, Contrast.draw(rng))
    ct, labels = canvas.scan(rng, noise_hu=rng.uniform(9, 17))
    return ct, labels, spacing


def write_dataset(
    raw_folder: Path,
    dataset_name: str,
    n_train: int,
    n_test: int,
    seed: int = 0,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    on_case: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a data set in nnU-Net's raw format. It appears complete or not at all.

    Args:
        raw_folder: nnU-Net's folder of raw data; made if it is missing.
        dataset_name: `DatasetXXX_Name`.
        n_train: Cases in `imagesTr` and `labelsTr`.
        n_test: Cases in `imagesTs` and `labelsTs`.
        seed: The same seed gives the same files, and case i is the same whatever the number of cases.
        shape: Voxels of a case along z, y, x.
        on_case: Called after each case with the number of cases written so far and their total.

    Returns:
        The folder of the data set.

    Raises:
        FileExistsError: There is a data set of that name.
        OSError: It could not be written, for example because the disk is full.
    """
    target = Path(raw_folder) / dataset_name
    if target.exists():
        raise FileExistsError(f"{target} exists already: remove it or choose another name for the phantom data set.")
    # nnU-Net looks only at names that begin with 'Dataset', and so not at an unfinished one.
    with whole_folder(target) as partial:
        for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (partial / part).mkdir()
        for i in range(n_train + n_test):
            ct, labels, spacing = make_case(np.random.default_rng((seed, i)), shape)
            part, name = ("Tr" if i < n_train else "Ts"), f"phantom_{i:03d}"
            _write_nifti(partial / f"images{part}" / f"{name}_0000.nii.gz", ct, spacing)
            _write_nifti(partial / f"labels{part}" / f"{name}.nii.gz", labels, spacing)
            if on_case is not None:
                on_case(i + 1, n_train + n_test)
        description = {
            "name": dataset_name.partition("_")[2],
            "description": "Abdominal CT phantom: simulated, no patient's data",
            "channel_names": {"0": "CT"},
            "labels": LABELS,
            "numTraining": n_train,
            "file_ending": ".nii.gz",
        }
        (partial / "dataset.json").write_text(json.dumps(description, indent=4) + "\n", encoding="utf-8")
    return target


def _write_nifti(path: Path, volume: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """Write a volume (Z, Y, X) with its voxel size along z, y, x in mm, patient lying on the back, head at the end.

    The bytes are made in memory and written by Python: unlike an image library, it reports a full disk as an OSError.
    """
    z, y, x = spacing
    affine = np.diag([-x, -y, z, 1.0])  # arrays grow to the left and to the back, NIfTI's axes to the right and front
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, code=1)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))
