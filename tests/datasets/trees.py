"""Miniature downloads: the names, folders and encodings of the real ones, with few and small images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from tests.strangers import clinicdb_mask, clinicdb_picture

VOLUME = (8, 24, 24)  # z, y, x
PICTURE = (32, 40)  # y, x
SPACING = (0.8, 0.75, 3.0)  # x, y, z in mm


def write_volume(
    path: Path,
    array: np.ndarray,
    spacing: Sequence[float] = SPACING,
    origin: Sequence[float] = (-12.5, 7.0, 100.0),
) -> Path:
    """Write (Z, Y, X), or (C, Z, Y, X) as 4D, lying on the back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=False)
    dimension = image.GetDimension()
    image.SetSpacing((*spacing, 1.0)[:dimension])
    image.SetOrigin((*origin, 0.0)[:dimension])
    sitk.WriteImage(image, str(path))
    return path


def organs(rng: np.random.Generator, numbers: Sequence[int], largest: int, shape: Sequence[int] = VOLUME) -> np.ndarray:
    """Make labels of which one is much larger than the others; all touch none of the first rows."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[:, shape[1] // 2 :] = largest
    others = [number for number in numbers if number != largest]
    for place, number in enumerate(others):
        x = place * (shape[2] // max(len(others), 1))
        labels[:, 1 + int(rng.integers(3)) : shape[1] // 2 - 2, x : x + 1] = number
    return labels


def ct(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """Make an image in which each label has its own grey value."""
    return (labels * 30.0 - 100 + rng.normal(0, 15, labels.shape)).astype(np.int16)


def write_ct(image: Path, label: Path, seed: int, numbers: Sequence[int], largest: int, shape=VOLUME) -> None:
    rng = np.random.default_rng(seed)
    labels = organs(rng, numbers, largest, shape)
    write_volume(image, ct(rng, labels))
    write_volume(label, labels)


def flare21(folder: Path, numbers: Iterable[int]) -> Path:
    for number in numbers:
        write_ct(
            folder / "TrainingImg" / f"train_{number:03d}_0000.nii.gz",
            folder / "TrainingMask" / f"train_{number:03d}.nii.gz",
            *(number, (1, 2, 3, 4), 1),
        )
    write_volume(folder / "ValidationImg" / "validation_001_0000.nii.gz", np.zeros(VOLUME, dtype=np.int16))
    return folder


def flare22(folder: Path, numbers: Iterable[int]) -> Path:
    for number in numbers:
        write_ct(
            folder / "FLARE22Train" / "images" / f"FLARE22_Tr_{number:04d}_0000.nii.gz",
            folder / "FLARE22Train" / "labels" / f"FLARE22_Tr_{number:04d}.nii.gz",
            *(number, range(1, 14), 1),
        )
    write_volume(folder / "Tuning" / "images" / "FLARETs_0001_0000.nii.gz", np.zeros(VOLUME, dtype=np.int16))
    return folder


def flare24_t3(folder: Path, numbers: Iterable[int]) -> Path:
    """Labelled CT, and two MRI, of which one has no label and no number of its channel."""
    for number in numbers:
        write_ct(
            folder / "train_CT_gt_label" / "imagesTr" / f"FLARE22_Tr_{number:04d}_0000.nii.gz",
            folder / "train_CT_gt_label" / "labelsTr" / f"FLARE22_Tr_{number:04d}.nii.gz",
            *(number, range(1, 14), 1),
        )
    validation = folder / "validation"
    write_ct(
        validation / "MRI_imagesVal" / "amos_0507_0000.nii.gz",
        validation / "MRI_labelsVal" / "amos_0507.nii.gz",
        *(507, range(1, 14), 1),
    )
    write_volume(validation / "MRI_imagesVal" / "amos_0508.nii.gz", np.zeros(VOLUME, dtype=np.int16))
    write_volume(folder / "train_MRI_unlabeled" / "amos_0600_0000.nii.gz", np.zeros(VOLUME, dtype=np.int16))
    return folder


def pancancer_ct(folder: Path, numbers: Iterable[int]) -> Path:
    """The last of the cases has no lesion, and one image has no label; how the folders are called does not matter."""
    *_, last = numbers
    for number in numbers:
        write_ct(
            folder / "PancancerCTSeg" / "images" / f"lesion_{number:05d}_0000.nii.gz",
            folder / "PancancerCTSeg" / "labels" / f"lesion_{number:05d}.nii.gz",
            *(number, (), 0 if number == last else 1),
        )
    write_volume(folder / "unlabelled" / "other_00001_0000.nii.gz", np.zeros(VOLUME, dtype=np.int16))
    return folder


def flare23(folder: Path, numbers: Iterable[int], complete: Iterable[int]) -> Path:
    """Labels have all organs in the complete cases, otherwise the liver and a tumour."""
    for number in numbers:
        write_ct(
            folder / "imagesTr2200" / f"FLARE23_{number:04d}_0000.nii.gz",
            folder / "labelsTr2200" / f"FLARE23_{number:04d}.nii.gz",
            *(number, range(1, 14) if number in complete else (1, 14), 1),
        )
    write_volume(folder / "unlabeledTr1800" / "FLARE23_2201.nii.gz", np.zeros(VOLUME, dtype=np.int16))
    write_volume(folder / "validation" / "FLARE23Ts_0001_0000.nii.gz", np.zeros(VOLUME, dtype=np.int16))
    return folder


def synapse(folder: Path, shape: Sequence[int] = VOLUME) -> Path:
    training = folder / "RawData" / "Training"
    for number in (*range(1, 11), *range(21, 41)):
        write_ct(
            training / "img" / f"img{number:04d}.nii.gz",
            training / "label" / f"label{number:04d}.nii.gz",
            *(number, range(1, 14), 6, shape),
        )
    write_volume(folder / "RawData" / "Testing" / "img" / "img0061.nii.gz", np.zeros(shape, dtype=np.int16))
    return folder


def acdc(folder: Path, patients: Iterable[int]) -> Path:
    for number in patients:
        name = f"patient{number:03d}"
        patient = folder / "database" / "training" / name
        patient.mkdir(parents=True)
        end_systole = 9 + number % 5
        (patient / "Info.cfg").write_text(
            f"ED: 1\nES: {end_systole}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
        )
        write_volume(patient / f"{name}_4d.nii.gz", np.zeros((2, *VOLUME), dtype=np.int16))
        for frame in (1, end_systole):
            rng = np.random.default_rng((number, frame))
            labels = organs(rng, (1, 2, 3), 2)
            image = labels * 60.0 + rng.uniform(0, 50, VOLUME)
            stem = f"{name}_frame{frame:02d}"
            write_volume(patient / f"{stem}.nii.gz", image.astype(np.float32), (1.5, 1.5, 10.0))
            write_volume(patient / f"{stem}_gt.nii.gz", labels, (1.5, 1.5, 10.0))
    testing = folder / "database" / "testing" / "patient101"
    testing.mkdir(parents=True)
    (testing / "Info.cfg").write_text("ED: 1\nES: 14\n")
    return folder


def brain_tumour(folder: Path, cases: Iterable[int], shape: Sequence[int] = VOLUME) -> Path:
    task = folder / "Task01_BrainTumour"
    for number in cases:
        rng = np.random.default_rng(number)
        labels = organs(rng, (1, 2, 3), 1, shape)
        channels = [labels * factor + rng.uniform(50, 90, shape) for factor in (10.0, 20.0, 30.0, 40.0)]
        write_volume(task / "imagesTr" / f"BRATS_{number:03d}.nii.gz", np.stack(channels).astype(np.float32), (1, 1, 1))
        write_volume(task / "labelsTr" / f"BRATS_{number:03d}.nii.gz", labels, (1, 1, 1))
        # What macOS leaves beside each file in the archive.
        (task / "imagesTr" / f"._BRATS_{number:03d}.nii.gz").write_bytes(b"\0\5\26\7")
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    (task / "dataset.json").write_text(json.dumps({"name": "BRATS", "modality": modality}))
    return folder


def picture(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """Make an RGB image that is darker inside a mask (Y, X)."""
    colour = np.array([200, 150, 180]) - 90 * mask[..., None].astype(bool)
    return np.clip(colour + rng.normal(0, 8, (*mask.shape, 3)), 0, 255).astype(np.uint8)


def blobs(rng: np.random.Generator, shape: Sequence[int] = PICTURE, n: int = 1) -> np.ndarray:
    """Make a map with one number for each of a few discs, (Y, X)."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    found = np.zeros(shape, dtype=np.uint8)
    for number in range(1, n + 1):
        centre = rng.uniform(0.25, 0.75, 2) * shape
        found[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (min(shape) / 5) ** 2] = number
    return found


def save(path: Path, array: np.ndarray, **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def glas(folder: Path, parts: Mapping[str, int], shape: Sequence[int] = PICTURE) -> Path:
    for part, count in parts.items():
        for number in range(1, count + 1):
            rng = np.random.default_rng((len(part), ord(part[-1]), number))
            glands = blobs(rng, shape, n=3)
            save(folder / "Warwick QU Dataset" / f"{part}_{number}.bmp", picture(rng, glands))
            save(folder / "Warwick QU Dataset" / f"{part}_{number}_anno.bmp", glands)
    (folder / "Warwick QU Dataset" / "Grade.csv").write_text("name, patient ID\n")
    return folder


def annotation(polygons: Iterable[Sequence[tuple[float, float]]]) -> str:
    """Write outlines the way ImageScope does."""
    regions = []
    for number, vertices in enumerate(polygons, start=1):
        points = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in vertices)
        regions.append(f'<Region Id="{number}" Type="0"><Attributes/><Vertices>{points}</Vertices></Region>')
    return (
        '<?xml version="1.0" encoding="UTF-8"?><Annotations MicronsPerPixel="0.252"><Annotation Id="1">'
        f"<Regions>{''.join(regions)}</Regions></Annotation></Annotations>"
    )


def monuseg(folder: Path, names: Iterable[str], test: Iterable[str]) -> Path:
    """Training and test pictures lie apart; nuclei are squares whose outlines may leave the picture a little."""
    for name in names:
        if name in test:
            image = annotations = folder / "MoNuSegTestData"
        else:
            training = folder / "MoNuSeg 2018 Training Data"
            image, annotations = training / "Tissue Images", training / "Annotations"
        rng = np.random.default_rng(sum(name.encode()))
        x, y = rng.integers(4, 20, 2)
        mask = np.zeros(PICTURE, dtype=bool)
        mask[y : y + 8, x : x + 8] = mask[:3, :3] = True
        alpha = np.full((*PICTURE, 1), 255, dtype=np.uint8)
        save(image / f"{name}.tif", np.concatenate([picture(rng, mask), alpha], axis=-1))
        annotations.mkdir(parents=True, exist_ok=True)
        squares = [
            [(x, y), (x + 7, y), (x + 7, y + 7), (x, y + 7)],
            [(-0.5, -0.5), (2, -0.5), (2, 2), (-0.5, 2)],
            [(30.0, 5.0)],
        ]
        (annotations / f"{name}.xml").write_text(annotation(squares))
    return folder


def cvc(folder: Path, frames: Iterable[int]) -> Path:
    for number in frames:
        rng = np.random.default_rng(number)
        mask = blobs(rng) * 255
        clinicdb_picture(folder / "CVC-ClinicDB" / "Original" / f"{number}.tif", picture(rng, mask))
        clinicdb_mask(folder / "CVC-ClinicDB" / "Ground Truth" / f"{number}.tif", mask, noise=number % 4 == 0)
    return folder


def kvasir(folder: Path, count: int) -> Path:
    """Sizes differ from picture to picture; masks are JPEG with three channels."""
    for number in range(count):
        rng = np.random.default_rng(number)
        mask = blobs(rng, (PICTURE[0] + number % 3, PICTURE[1])) * 255
        name = f"cju{number:04d}k{'abcdef'[number % 6]}.jpg"
        save(folder / "Kvasir-SEG" / "images" / name, picture(rng, mask), quality=95)
        save(folder / "Kvasir-SEG" / "masks" / name, np.stack([mask] * 3, axis=-1), quality=75)
    (folder / "Kvasir-SEG" / "kavsir_bboxes.json").write_text("{}")
    return folder


def isic(images: Path, masks: Path, numbers: Iterable[int], suffix: str = "_segmentation") -> None:
    for number in numbers:
        rng = np.random.default_rng(number)
        mask = blobs(rng) * 255
        save(images / f"ISIC_{number:07d}.jpg", picture(rng, mask), quality=95)
        save(images / f"ISIC_{number:07d}_superpixels.png", picture(rng, mask))
        save(masks / f"ISIC_{number:07d}{suffix}.png", mask)


def isic2017(folder: Path, counts: Mapping[str, int]) -> Path:
    first = 0
    for part, count in counts.items():
        isic(
            folder / f"ISIC-2017_{part}_Data",
            folder / f"ISIC-2017_{part}_Part1_GroundTruth",
            range(first, first + count),
            "_Segmentation" if part == "Validation" else "_segmentation",
        )
        first += count
    return folder


def isic2018(folder: Path, count: int) -> Path:
    isic(
        folder / "ISIC2018_Task1-2_Training_Input", folder / "ISIC2018_Task1_Training_GroundTruth", range(1, 1 + count)
    )
    return folder
