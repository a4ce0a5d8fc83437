"""Prediction in a challenge's container: one process, one case after the other, and little memory.

nnU-Net's own command starts processes that read and write beside the network, each of which imports torch anew, and
it enlarges the logits of all classes to the size of the image at once: 14 classes of a CT of 512 x 512 x 600 voxels are
4.4 GB in half precision, and several times that on the way. Here one class at a time is enlarged and compared with the
best so far. The segmentation is the same, voxel by voxel.

    python -m nnunetv2_ext.submission.predict --model model --inputs inputs --outputs outputs
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.volumes import read_header, require_whole
from nnunetv2_ext.io.files import whole_file
from nnunetv2_ext.submission.model import load_predictor

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

__all__ = ["ENDING", "IMAGE_ENDING", "find_images", "main", "predict_folder", "segment_by_class"]

# The challenge hands over CASE_0000.nii.gz and expects CASE.nii.gz.
IMAGE_ENDING = "_0000.nii.gz"
ENDING = ".nii.gz"


def segment_by_class(logits: Tensor, properties: dict[str, Any], predictor: nnUNetPredictor) -> np.ndarray:
    """Turn logits into a segmentation of the image that they were predicted for, with one class at a time in memory.

    Args:
        logits: (C, *size after preprocessing), on the CPU.
        properties: what nnU-Net's preprocessing noted of the image.
        predictor: that made the logits.

    Returns:
        Labels (*size of the image), in the axes of the file, as
        `nnunetv2.inference.export_prediction.convert_predicted_logits_to_segmentation_with_correct_shape` gives them.
    """
    from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image

    plans, configuration, labels = predictor.plans_manager, predictor.configuration_manager, predictor.label_manager
    shape = properties["shape_after_cropping_and_before_resampling"]
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    # A 2D plan has no spacing for the first axis: it is left as it is.
    planned = (
        configuration.spacing if len(configuration.spacing) == len(shape) else [spacing[0], *configuration.spacing]
    )
    segmentation, best = torch.zeros(tuple(shape), dtype=torch.int16), None
    for index in range(len(logits)):
        enlarged = configuration.resampling_fn_probabilities(logits[index : index + 1], shape, planned, spacing)
        enlarged = torch.as_tensor(enlarged)[0]
        if labels.has_regions:
            # Later regions are drawn over earlier ones.
            inside = labels.inference_nonlin(enlarged.float()) > 0.5
            segmentation.masked_fill_(inside, labels.regions_class_order[index])
        elif best is None:
            best = enlarged.clone()
        else:
            # Of equal classes the first one stays, as with argmax.
            segmentation.masked_fill_(enlarged > best, index)
            torch.maximum(best, enlarged, out=best)
    kind = np.uint8 if len(labels.foreground_labels) < 255 else np.uint16
    whole = np.zeros(properties["shape_before_cropping"], dtype=kind)
    whole = insert_crop_into_image(whole, segmentation.numpy(), properties["bbox_used_for_cropping"])
    return whole.transpose(plans.transpose_backward)


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


def _predict_case(predictor: nnUNetPredictor, image: Path, output: Path) -> None:
    require_whole(image)
    read_header(image)  # a 2D image would be enlarged to hundreds of slices
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case(
        [str(image)], None, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
    del data
    segmentation = segment_by_class(logits, properties, predictor)
    with whole_file(output) as partial:
        predictor.plans_manager.image_reader_writer_class().write_seg(segmentation, str(partial), properties)


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
    outputs.mkdir(parents=True, exist_ok=True)
    failures = [f"{path} is left out: its name does not end in {IMAGE_ENDING}." for path in others]
    for number, (case, image) in enumerate(images.items(), start=1):
        start = time.perf_counter()
        try:
            _predict_case(predictor, image, outputs / f"{case}{ENDING}")
        except Exception as error:
            # Readers, torch and nnU-Net have their own types of errors; the next case may be all right.
            reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
            failures.append(f"{image} could not be segmented ({reason}).")
            print(f"[{number}/{len(images)}] {case} failed", flush=True)
        else:
            print(f"[{number}/{len(images)}] {case}: {time.perf_counter() - start:.1f} s", flush=True)
    return failures


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nnunetv2_ext.submission.predict", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder that `nnUNetv2_ext submit flare` wrote")
    parser.add_argument("--inputs", type=Path, help=f"folder of images, CASE{IMAGE_ENDING}")
    parser.add_argument("--outputs", type=Path, help=f"folder for segmentations, CASE{ENDING}")
    parser.add_argument("--step-size", type=float, default=0.5, help="of the windows, as a share of the patch")
    parser.add_argument("--mirroring", action="store_true", help="average over mirrored images: 4 or 8 times the time")
    text = "keep sums of windows in main memory: less GPU memory, more time"
    parser.add_argument("--not-on-device", action="store_true", help=text)
    parser.add_argument("--load-only", action="store_true", help="load the model and end: for the build of an image")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Segment a folder; ends with exit code 1 if anything could not be segmented."""
    parser = _build_parser()
    parsed = parser.parse_args(arguments)
    if not parsed.load_only and (parsed.inputs is None or parsed.outputs is None):
        parser.error("--inputs and --outputs are needed")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    try:
        predictor = load_predictor(
            parsed.model,
            tile_step_size=parsed.step_size,
            use_mirroring=parsed.mirroring,
            perform_everything_on_device=device.type == "cuda" and not parsed.not_on_device,
            device=device,
            allow_tqdm=sys.stderr.isatty(),
        )
        print(f"Loaded the model in {time.perf_counter() - start:.1f} s; device: {device}", flush=True)
        failures = [] if parsed.load_only else predict_folder(predictor, parsed.inputs, parsed.outputs)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    if failures:
        raise SystemExit("\n".join(f"error: {failure}" for failure in failures))


if __name__ == "__main__":
    main()
