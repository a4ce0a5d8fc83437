"""One window of a real image, on which an exported file is compared with torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.inference.cases import Case, prepare_case
from nnunetv2_ext.inference.trained import TrainedModel

__all__ = ["Sample", "take_sample"]


@dataclass(frozen=True)
class Sample:
    """One window.

    Attributes:
        window: (1, input channels, *window), float32.
        origin: what it is, for people to read.
    """

    window: Tensor
    origin: str


def take_sample(model: TrainedModel, images: Sequence[Path] = ()) -> Sample:
    """Take the window in the middle of an image, prepared as for prediction.

    Args:
        model: trained model, which says how images are prepared.
        images: one file per channel; by default the first case that nnU-Net has preprocessed for the configuration,
            and where there is none, smooth noise.

    Raises:
        UserError: if the images cannot be read.
    """
    if images:
        missing = [path for path in images if not path.is_file()]
        if missing:
            raise UserError(f"There is no file {missing[0]}: name an image, one file per channel.")
        planned = model.planned
        predictor = SimpleNamespace(
            plans_manager=planned.plans_manager,
            configuration_manager=planned.configuration_manager,
            dataset_json=model.dataset_json,
        )
        try:
            data, _ = prepare_case(Case("sample", tuple(images)), predictor)
        except UserError:
            raise
        except Exception as error:
            # Readers and nnU-Net have their own types of errors.
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{images[0]} cannot be read ({reason}): name another image with -i.") from error
        origin = f"the middle of {images[0]}"
    else:
        case = _preprocessed_case(model)
        if case is None:
            return Sample(_fit(_smooth_noise(model), model), "smooth noise, because no image was named with -i")
        data, origin = _read_case(case), f"the middle of {case}"
    return Sample(_fit(data, model), origin)


def _preprocessed_case(model: TrainedModel) -> Path | None:
    root = os.environ.get("nnUNet_preprocessed")
    if not root:
        return None
    folder = Path(root) / model.dataset / model.planned.configuration_manager.data_identifier
    cases = (path for ending in ("b2nd", "npy", "npz") for path in sorted(folder.glob(f"*.{ending}")))
    return next((path for path in cases if not path.stem.endswith("_seg")), None)


def _read_case(path: Path) -> np.ndarray:
    """Read a preprocessed image (channels, *size), without the file of Python objects beside it."""
    try:
        if path.suffix == ".b2nd":
            import blosc2

            return blosc2.open(urlpath=str(path), mode="r")[:]
        data = np.load(path, allow_pickle=False)
        return data["data"] if path.suffix == ".npz" else data
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): preprocess the dataset again, or name an image.") from error


def _smooth_noise(model: TrainedModel) -> np.ndarray:
    """Make an image of blobs with mean 0 and deviation 1, as normalised images have."""
    from scipy.ndimage import gaussian_filter

    window = model.window if len(model.window) == 3 else (1, *model.window)
    noise = np.random.default_rng(0).standard_normal((len(model.channels), *window))
    blobs = gaussian_filter(noise, sigma=(0, *(min(4, size / 8) for size in window)))
    return (blobs - blobs.mean()) / blobs.std()


def _fit(data: np.ndarray, model: TrainedModel) -> Tensor:
    """Cut the middle out of (channels, *size), pad it to the window, and add a cascade's channels."""
    if len(model.window) == 2:
        data = data[:, data.shape[1] // 2]
    starts = [max(0, (size - wanted) // 2) for size, wanted in zip(data.shape[1:], model.window, strict=True)]
    cuts = tuple(slice(start, start + wanted) for start, wanted in zip(starts, model.window, strict=True))
    window = torch.zeros(1, model.planned.input_channels, *model.window)
    cut = torch.from_numpy(np.ascontiguousarray(data[(slice(None), *cuts)], dtype=np.float32))
    inside: Any = (0, slice(len(cut)), *(slice(size) for size in cut.shape[1:]))
    window[inside] = cut
    # Of the previous stage: each of its classes where one channel of the image is bright, in layers.
    for index in range(len(cut), window.shape[1]):
        levels = window.shape[1] - len(cut) + 1
        layer = ((window[0, 0] - window[0, 0].min()) / (np.ptp(window[0, 0].numpy()) + 1e-6) * levels).long()
        window[0, index] = (layer == index - len(cut) + 1).float()
    return window
