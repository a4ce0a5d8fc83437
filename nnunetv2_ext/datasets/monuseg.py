"""MoNuSeg (MICCAI 2018): nuclei in histology, 30 training and 14 test pictures.

Source: monuseg.grand-challenge.org. Files are found by name:

    TCGA-A7-A13E-01Z-00-DX1.tif   1000 x 1000 pixels
    TCGA-A7-A13E-01Z-00-DX1.xml   ImageScope's annotation: one `Region` for each nucleus, its outline as `Vertex`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from nnunetv2_ext.datasets import pictures as picture_files
from nnunetv2_ext.datasets.random_split import DCA_PAPER
from nnunetv2_ext.datasets.source import RGB, Case, Source, Split, count_phrase, find_files
from nnunetv2_ext.errors import UserError

__all__ = ["LABELS", "TEST", "TRAIN", "VALIDATION", "collect", "outlines", "union_mask"]

NAME = "MoNuSeg"
LABELS = {"nucleus": 1}
SIZE = (1000, 1000)  # x, y; the outlines are in pixels of this picture
# Outlines may leave the picture a little; this share of its size is more than drawing by hand explains.
MOST_OUTSIDE = 0.05
# The organisers draw masks with Matlab's `poly2mask`, in which the middle of the first pixel is (1, 1): the masks that
# papers use lie one pixel left of and above the outlines as ImageScope counts them, from 0.
# Source: ruchikavermavaid/MoNuSeg: he_to_binary_mask_final.m.
FIRST_PIXEL = 1
# The set of 2018; newer downloads hold seven more training pictures.
SOURCE = "McGregorWwww/UCTransNet: its published data folder, MoNuSeg/Train_Folder and MoNuSeg/Val_Folder"
VALIDATION = (
    "TCGA-18-5592-01Z-00-DX1",
    "TCGA-AY-A8YK-01A-01-TS1",
    "TCGA-E2-A14V-01Z-00-DX1",
    "TCGA-E2-A1B5-01Z-00-DX1",
    "TCGA-G9-6363-01Z-00-DX1",
    "TCGA-HE-7129-01Z-00-DX1",
)
TRAIN = (
    "TCGA-21-5784-01Z-00-DX1",
    "TCGA-21-5786-01Z-00-DX1",
    "TCGA-38-6178-01Z-00-DX1",
    "TCGA-49-4488-01Z-00-DX1",
    "TCGA-50-5931-01Z-00-DX1",
    "TCGA-A7-A13E-01Z-00-DX1",
    "TCGA-A7-A13F-01Z-00-DX1",
    "TCGA-AR-A1AK-01Z-00-DX1",
    "TCGA-AR-A1AS-01Z-00-DX1",
    "TCGA-B0-5698-01Z-00-DX1",
    "TCGA-B0-5710-01Z-00-DX1",
    "TCGA-B0-5711-01Z-00-DX1",
    "TCGA-CH-5767-01Z-00-DX1",
    "TCGA-DK-A2I6-01A-01-TS1",
    "TCGA-G2-A2EK-01A-02-TSB",
    "TCGA-G9-6336-01Z-00-DX1",
    "TCGA-G9-6348-01Z-00-DX1",
    "TCGA-G9-6356-01Z-00-DX1",
    "TCGA-G9-6362-01Z-00-DX1",
    "TCGA-HE-7128-01Z-00-DX1",
    "TCGA-HE-7130-01Z-00-DX1",
    "TCGA-KB-A93J-01A-01-TS1",
    "TCGA-NH-A8F7-01A-01-TS1",
    "TCGA-RD-A8N9-01A-01-TS1",
)
# Seven files of that folder hold other pictures than their names say, all of them among those that newer downloads add.
UCTRANSNET = {
    "TCGA-21-5784-01Z-00-DX1": "TCGA-BC-A217",
    "TCGA-A7-A13E-01Z-00-DX1": "TCGA-FG-A87N",
    "TCGA-B0-5698-01Z-00-DX1": "TCGA-UZ-A9PJ",
    "TCGA-B0-5710-01Z-00-DX1": "TCGA-F9-A8NY",
    "TCGA-B0-5711-01Z-00-DX1": "TCGA-UZ-A9PN",
    "TCGA-CH-5767-01Z-00-DX1": "TCGA-MH-A561",
    "TCGA-AY-A8YK-01A-01-TS1": "TCGA-XS-A8TJ",
}
TEST = (
    "TCGA-2Z-A9J9-01A-01-TS1",
    "TCGA-44-2665-01B-06-BS6",
    "TCGA-69-7764-01A-01-TS1",
    "TCGA-A6-6782-01A-01-BS1",
    "TCGA-AC-A2FO-01A-01-TS1",
    "TCGA-AO-A0J2-01A-01-BSA",
    "TCGA-CU-A0YN-01A-02-BSB",
    "TCGA-EJ-A46H-01A-03-TSC",
    "TCGA-FG-A4MU-01B-01-TS1",
    "TCGA-GL-6846-01A-01-BS1",
    "TCGA-HC-7209-01A-01-TS1",
    "TCGA-HT-8564-01Z-00-DX1",
    "TCGA-IZ-8196-01A-01-BS1",
    "TCGA-ZF-A9R5-01A-01-TS1",
)


def outlines(path: Path) -> list[np.ndarray]:
    """Read the outlines of an annotation, each as (vertices, 2) with x and y in pixels.

    Raises:
        UserError: if the file is no annotation, or has none.
    """
    try:
        regions = list(ElementTree.parse(path).iter("Region"))
        found = [
            np.array([(float(vertex.attrib["X"]), float(vertex.attrib["Y"])) for vertex in region.iter("Vertex")])
            for region in regions
        ]
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not an annotation of ImageScope ({error}): download or unpack it again.") from error
    if not found:
        raise UserError(f"{path} has no `Region`: it is another file.")
    # A click without a drag leaves a region of one or two vertices, which encloses nothing.
    return [vertices for vertices in found if len(vertices) >= 3]


def union_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Draw the filled outlines of an annotation as the organisers do, (Y, X), True inside any.

    Raises:
        UserError: if the file is no annotation, or its outlines leave a picture of this shape.
    """
    from skimage.draw import polygon

    mask, (height, width) = np.zeros(shape, dtype=bool), shape
    for vertices in outlines(path):
        x, y = vertices.T
        outside = max(-x.min() / width, x.max() / width - 1, -y.min() / height, y.max() / height - 1)
        if outside > MOST_OUTSIDE:
            raise UserError(
                f"{path} has an outline that leaves its picture of {width} x {height} pixels by {outside:.0%}: the "
                "picture was resized, or belongs to another annotation."
            )
        mask[polygon(y - FIRST_PIXEL, x - FIRST_PIXEL, shape)] = True
    return mask


def write_case(case: Case, images: Sequence[Path], label: Path | None, *, link: bool) -> dict[int, float]:
    """Write a picture, and its mask drawn from the annotation; see `CaseWriter`. Nothing is linked.

    Raises:
        UserError: if the picture was resized, or the annotation is none or belongs to another picture.
    """
    width, height = size = picture_files.read_picture(case.images[0]).size
    if size != SIZE:
        raise UserError(
            f"{case.images[0]} has {width} x {height} pixels instead of {SIZE[0]} x {SIZE[1]}: it was resized and "
            "does not fit its annotation; take the original."
        )
    return picture_files.write_case(
        case, images, label, link=link, read_mask=lambda path: union_mask(path, (height, width))
    )


def collect(folder: Path, *, pictures: str = "2018") -> Source:
    """List what the dataset is made of.

    Args:
        folder: the unpacked download, training and test.
        pictures: `2018` for the papers' 30 training pictures; `uctransnet` for those and the seven that UCTransNet's
            folder holds under other names, with its list as fold 1.

    Raises:
        UserError: if a picture or its annotation is missing.
    """
    images = find_files(folder, r"(TCGA-.+)\.tif")
    annotations = find_files(folder, r"(TCGA-.+)\.xml")
    used_by = "UCTransNet by its files' names; DCA trains on all 30"
    splits = [Split(TRAIN, VALIDATION, used_by, f"{SOURCE}; DCA: {DCA_PAPER}")]
    held = {}
    if pictures == "uctransnet":
        for name in (*TRAIN, *VALIDATION):
            wanted = UCTRANSNET.get(name, name)
            held[name] = next((found for found in images if found.startswith(wanted)), f"{wanted}-01Z-00-DX1")
        train, validation = (tuple(held[name] for name in names) for names in (TRAIN, VALIDATION))
        splits.append(Split(train, validation, "UCTransNet by the pictures that its files hold", SOURCE))
    cases = []
    for name in dict.fromkeys((*TRAIN, *VALIDATION, *held.values(), *TEST)):
        for found, ending in ((images, "tif"), (annotations, "xml")):
            if name not in found:
                raise UserError(
                    f"{folder} has no file {name}.{ending}, which belongs to {NAME}: complete the download."
                )
        cases.append(Case(name, (images[name],), annotations[name], test=name in TEST))
    others = sorted(images.keys() - {case.name for case in cases})
    remarks = [
        "Masks lie one pixel left of and above the outlines, as the organisers draw them.",
        "The papers train on all 30 pictures: fold `all`."
        if pictures == "2018"
        else "DCA trains on the 30 pictures of 2018: fold `all` needs a dataset without --pictures uctransnet.",
    ]
    if pictures == "2018":
        renamed = ", ".join(name.removeprefix("TCGA-")[:7] for name in UCTRANSNET)
        remarks.append(
            f"In UCTransNet's published folder {len(UCTRANSNET)} files hold other pictures than their names say "
            f"({renamed}), so fold 0 is its list of names; its list of pictures is fold 1 with --pictures uctransnet."
        )
    if others:
        remarks.append(f"{count_phrase(len(others), 'picture')} left out, not of the set of 2018: {', '.join(others)}.")
    return Source(
        name=NAME,
        description="Nuclei in histology (MoNuSeg 2018): 30 training and 14 test pictures.",
        reference="https://monuseg.grand-challenge.org",
        licence="CC BY-NC-SA 4.0",
        channel_names=RGB,
        labels=LABELS,
        file_ending=".png",
        cases=tuple(cases),
        write_case=write_case,
        splits=tuple(splits),
        remarks=tuple(remarks),
    )
