"""Prediction in a challenge's container: one process, one case after the other, and little memory.

python -m nnunetv2_ext.submission.predict --model model --inputs inputs --outputs outputs
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.inference.backends import choose_backend, choose_device, load_predictor
from nnunetv2_ext.inference.cases import Case
from nnunetv2_ext.inference.models import read_model
from nnunetv2_ext.inference.predict import predict_cases

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

__all__ = ["ENDING", "IMAGE_ENDING", "find_images", "main", "predict_folder"]

# The challenge hands over CASE_0000.nii.gz and expects CASE.nii.gz.
IMAGE_ENDING = "_0000.nii.gz"
ENDING = ".nii.gz"


def find_images(inputs: Path) -> tuple[dict[str, Path], list[Path]]:
    """Find the images of a folder.

    Returns:
        The images by their case, and files that look like images of another name.

    Raises:
        UserError: if the folder is missing or has no image.
    """
    if not inputs.is_dir():
        raise UserError(f"There is no folder {inputs}: mount the images there.")
    files = sorted(path for path in inputs.iterdir() if path.name.endswith(ENDING) and not path.name.startswith("."))
    images = {path.name.removesuffix(IMAGE_ENDING): path for path in files if path.name.endswith(IMAGE_ENDING)}
    if not images:
        raise UserError(f"{inputs} has no file CASE{IMAGE_ENDING}: mount the images there.")
    return images, [path for path in files if path not in images.values()]


def predict_folder(predictor: nnUNetPredictor, inputs: Path, outputs: Path) -> list[str]:
    """Segment all images of a folder; one that fails does not keep the others from being segmented.

    Args:
        predictor: see `load_predictor`.
        inputs: folder of `CASE_0000.nii.gz`; nothing is written there.
        outputs: folder for `CASE.nii.gz`.

    Returns:
        What went wrong, one sentence for each file.

    Raises:
        UserError: if there is no image.
    """
    images, others = find_images(inputs)
    failures = [f"{path} is left out: its name does not end in {IMAGE_ENDING}." for path in others]
    # A 2D image would be enlarged to hundreds of slices.
    cases = [Case(case, (image,), dimensions=3) for case, image in images.items()]
    return failures + predict_cases(predictor, cases, outputs)


def _limit_memory(gibibytes: float) -> None:
    """Let this process take no more addresses; Windows has no such limit."""
    try:
        import resource
    except ImportError:
        return
    limit = int(gibibytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nnunetv2_ext.submission.predict", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder that `nnUNetv2_ext submit flare` wrote")
    parser.add_argument("--inputs", type=Path, help=f"folder of images, CASE{IMAGE_ENDING}")
    parser.add_argument("--outputs", type=Path, help=f"folder for segmentations, CASE{ENDING}")
    parser.add_argument("--step-size", type=float, default=0.5, help="of the windows, as a share of the patch")
    parser.add_argument("--mirroring", action="store_true", help="average over mirrored images: 4 or 8 times the time")
    text = "keep sums of windows in main memory: less GPU memory, more time"
    parser.add_argument("--not-on-device", action="store_true", help=text)
    text = "load the model, compute a window and end: for the build of an image"
    parser.add_argument("--load-only", action="store_true", help=text)
    parser.add_argument("--memory", metavar="GIB", type=float, help="take no more addresses than this, where possible")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Segment a folder; ends with exit code 1 if anything could not be segmented."""
    parser = _build_parser()
    parsed = parser.parse_args(arguments)
    if not parsed.load_only and (parsed.inputs is None or parsed.outputs is None):
        parser.error("--inputs and --outputs are needed")
    if parsed.memory is not None:
        _limit_memory(parsed.memory)
    start = time.perf_counter()
    try:
        model = read_model(parsed.model)
        backend = choose_backend(model, None)
        device = choose_device(backend, None)
        predictor = load_predictor(
            model,
            backend=backend,
            tile_step_size=parsed.step_size,
            use_mirroring=parsed.mirroring,
            perform_everything_on_device=device.type == "cuda" and not parsed.not_on_device,
            device=device,
            allow_tqdm=sys.stderr.isatty(),
        )
        print(f"Loaded the model in {time.perf_counter() - start:.1f} s; device: {device}", flush=True)
        if parsed.load_only:
            with torch.inference_mode():
                predictor.network.to(device)(torch.zeros(1, model.planned.input_channels, *model.window, device=device))
        failures = [] if parsed.load_only else predict_folder(predictor, parsed.inputs, parsed.outputs)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    if failures:
        raise SystemExit("\n".join(f"error: {failure}" for failure in failures))


if __name__ == "__main__":
    main()
