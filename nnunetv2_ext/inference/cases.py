"""The images of a folder, put together to cases, and each case prepared for the network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.volumes import read_header, require_whole
from nnunetv2_ext.inference.trained import TrainedModel

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

__all__ = ["Case", "find_cases", "find_previous", "prepare_case"]


@dataclass(frozen=True)
class Case:
    """A case to segment.

    Attributes:
        name: name of its segmentation, without the ending.
        images: one file per channel, or one file with all channels.
        previous: segmentation of the previous stage, in a cascade.
        dimensions: that each image must have; None: whatever the reader takes.
    """

    name: str
    images: tuple[Path, ...]
    previous: Path | None = None
    dimensions: int | None = None


def find_cases(images: Path, model: TrainedModel) -> tuple[list[Case], list[Path]]:
    """Find the cases of a folder, whose files are called `CASE_0000` and so on, as nnU-Net wants them.

    Args:
        images: folder.
        model: trained model, which says the ending and the channels.

    Returns:
        The cases, and files with the right ending and another name.

    Raises:
        UserError: if there is none, or a case has other channels than the model was trained on.
    """
    if not images.is_dir():
        raise UserError(f"There is no folder {images}: name a folder of images after -i.")
    ending = model.dataset_json["file_ending"]
    files = sorted(path for path in images.iterdir() if path.name.endswith(ending) and not path.name.startswith("."))
    found: dict[str, dict[int, Path]] = {}
    others = []
    for path in files:
        match = re.fullmatch(r"(.+)_(\d{4})", path.name.removesuffix(ending))
        if match is None:
            others.append(path)
        else:
            found.setdefault(match[1], {})[int(match[2])] = path
    if not found:
        there = sorted({"".join(path.suffixes[-2:]) or path.name for path in images.iterdir() if path.is_file()})
        held = f"has files {', '.join(there[:5])}" if there else "is empty"
        raise UserError(f"{images} has no image CASE_0000{ending}, which this model reads: it {held}.")
    wanted = len(model.channels)
    for name, channels in found.items():
        # One file may hold all channels, as a picture does; then the reader says how many.
        if list(channels) != list(range(len(channels))) or len(channels) not in (1, wanted):
            raise UserError(
                f"{images} has the channels {', '.join(f'{channel:04d}' for channel in channels)} of {name}, and the "
                f"model was trained on {wanted} ({', '.join(model.channels)}): give one file per channel, from 0000 on."
            )
    return [Case(name, tuple(channels.values())) for name, channels in found.items()], others


def find_previous(cases: Sequence[Case], folder: Path, ending: str) -> list[Case]:
    """Add to each case its segmentation of the previous stage.

    Raises:
        UserError: if one is missing.
    """
    paths = [folder / f"{case.name}{ending}" for case in cases]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        others = f" (nor {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise UserError(f"There is no {missing[0]}{others}: predict all cases with the previous stage first.")
    return [Case(case.name, case.images, path, case.dimensions) for case, path in zip(cases, paths, strict=True)]


def prepare_case(case: Case, predictor: nnUNetPredictor) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a case and prepare it as nnU-Net does.

    Returns:
        What the network sees, (channels, *size), and what nnU-Net's preprocessing noted of the image.

    Raises:
        UserError: if an image is damaged, or has other channels than the model was trained on.
    """
    from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

    for image in case.images:
        require_whole(image)
        if case.dimensions is not None:
            read_header(image, case.dimensions)
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    reader = plans.image_reader_writer_class()
    data, properties = reader.read_images([str(image) for image in case.images])
    names = predictor.dataset_json.get("channel_names") or predictor.dataset_json["modality"]
    if len(data) != len(names):
        raise UserError(
            f"{case.images[0]} has {len(data)} channels, and the model was trained on {len(names)} "
            f"({', '.join(names.values())}): give these channels."
        )
    previous = None if case.previous is None else reader.read_seg(str(case.previous))[0]
    if previous is not None and previous.shape[1:] != data.shape[1:]:
        raise UserError(f"{case.previous} has other voxels than its image: predict it again.")
    data, previous, properties = configuration.preprocessor_class(verbose=False).run_case_npy(
        data, previous, properties, plans, configuration, predictor.dataset_json
    )
    if case.previous is not None:
        labels = predictor.label_manager.foreground_labels
        data = np.vstack((data, convert_labelmap_to_one_hot(previous[0], labels, data.dtype)))
    return data, properties
