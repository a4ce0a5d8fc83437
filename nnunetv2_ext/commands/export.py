"""`nnUNetv2_ext export`: a trained network as an ONNX file, for machines without nnU-Net or without a GPU."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from nnunetv2_ext.errors import UserError

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Write a trained network as an ONNX file, compared with torch before it is left there."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("-d", metavar="DATASET", help="number or name of the dataset")
    parser.add_argument("-c", metavar="CONFIGURATION", help="configuration, as 3d_fullres")
    parser.add_argument("-tr", metavar="TRAINER", help="trainer, or a variant of one")
    parser.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans (default: %(default)s)")
    text = "folder of a trained model, or zip file of nnUNetv2_export_model_to_zip, instead of -d, -c, -tr and -p"
    parser.add_argument("-m", metavar="DIR_OR_ZIP", type=Path, help=text)
    parser.add_argument("-f", metavar="FOLD", nargs="+", help="folds to export (default: all that are trained)")
    parser.add_argument(
        "-chk", metavar="FILE", default="checkpoint_final.pth", help="checkpoint of each fold (default: %(default)s)"
    )
    text = "file to write, MODEL.onnx; of several folds a folder, with one file per fold"
    parser.add_argument("-o", metavar="FILE_OR_DIR", type=Path, required=True, help=text)
    parser.add_argument("--openvino", action="store_true", help="write OpenVINO's .xml and .bin files as well")
    text = "image for the comparison with torch, one file per channel (default: the first preprocessed case)"
    parser.add_argument("-i", metavar="IMAGE", type=Path, nargs="+", default=(), help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")


def run(arguments: argparse.Namespace) -> None:
    """Write the files, and print how they compare with torch."""
    if (arguments.m is None) == (None in (arguments.d, arguments.c, arguments.tr)):
        raise UserError("Which trained model is meant is open: name it by -d, -c and -tr, or with -m.")
    from nnunetv2_ext.inference.checkpoints import read_checkpoints
    from nnunetv2_ext.inference.export import export_graphs
    from nnunetv2_ext.inference.models import find_result
    from nnunetv2_ext.inference.sample import take_sample

    source = arguments.m or find_result(arguments.d, arguments.c, arguments.tr, arguments.p)
    model = read_checkpoints(source, folds=arguments.f, checkpoint=arguments.chk)
    sample = take_sample(model, arguments.i)
    compared = export_graphs(model, arguments.o, sample, openvino=arguments.openvino, overwrite=arguments.overwrite)
    print(f"Compared with torch on {sample.origin}, {' x '.join(map(str, model.window))} voxels.")
    for found in compared:
        print(
            f"Wrote {found.path}: {found.backend} differs by at most {found.difference:.1e} of the largest logit, and "
            f"in {found.labels:.4%} of the labels."
        )
    print(
        f"Predict with: {shlex.join(['nnUNetv2_ext', 'predict', '-i', 'IMAGES', '-o', 'OUT', '-m', str(arguments.o)])}"
    )
