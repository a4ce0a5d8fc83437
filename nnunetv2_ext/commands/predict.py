"""`nnUNetv2_ext predict`: segment images with a trained model, or with files that `nnUNetv2_ext export` wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_ext.errors import UserError

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Segment images with a trained model or an exported one, in little memory; a killed run is continued."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("-i", metavar="DIR", type=Path, required=True, help="images, CASE_0000.nii.gz and so on")
    parser.add_argument("-o", metavar="DIR", type=Path, required=True, help="folder for segmentations, CASE.nii.gz")
    text = "folder or zip file of a trained model, .onnx or .xml file, or folder of such files"
    parser.add_argument("-m", metavar="MODEL", type=Path, required=True, help=text)
    parser.add_argument("-f", metavar="FOLD", nargs="+", help="folds to average (default: all that are there)")
    parser.add_argument(
        "-chk", metavar="FILE", default="checkpoint_final.pth", help="checkpoint of each fold (default: %(default)s)"
    )
    text = "what computes (default: torch for checkpoints, onnxruntime for .onnx, openvino for .xml)"
    parser.add_argument("--backend", choices=("torch", "onnxruntime", "openvino"), help=text)
    text = "where (default: a CUDA GPU that the backend can use, otherwise the CPU)"
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help=text)
    text = "do not average over mirrored images: 8 times as fast in 3D, 4 times in 2D"
    parser.add_argument("--disable_tta", action="store_true", help=text)
    text = "of the windows, as a share of the window (default: %(default)s)"
    parser.add_argument("-step_size", metavar="SHARE", type=float, default=0.5, help=text)
    text = "keep sums of windows in main memory: less GPU memory, more time"
    parser.add_argument("--not_on_device", action="store_true", help=text)
    text = "of a cascade: the previous stage's predictions, or its model, which is run first"
    parser.add_argument("--previous_stage", metavar="DIR_OR_MODEL", type=Path, help=text)
    text = "cases that are read while the network works; 0: none, with the least memory (default: %(default)s)"
    parser.add_argument("-np", metavar="N", type=int, default=1, help=text)
    parser.add_argument("--overwrite", action="store_true", help="predict finished cases anew")


def run(arguments: argparse.Namespace) -> None:
    """Segment the images; ends with exit code 1 if anything could not be segmented."""
    if arguments.np < 0:
        raise UserError(f"-np is {arguments.np}: name a number of cases from 0 on.")
    from nnunetv2_ext.inference.folders import predict_folder

    failures = predict_folder(
        arguments.m,
        arguments.i,
        arguments.o,
        folds=arguments.f,
        checkpoint=arguments.chk,
        backend=arguments.backend,
        device=arguments.device,
        mirroring=not arguments.disable_tta,
        step_size=arguments.step_size,
        on_device=not arguments.not_on_device,
        previous_stage=arguments.previous_stage,
        ahead=arguments.np,
        overwrite=arguments.overwrite,
    )
    if failures:
        raise SystemExit("\n".join(f"error: {failure}" for failure in failures))
    print(f"The segmentations are in {arguments.o}.")
