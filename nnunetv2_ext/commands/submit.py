"""`nnUNetv2_ext submit`: what a challenge takes, made from a trained model or its predictions."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunetv2_ext.inference.trained import TrainedModel

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Write what a challenge or a model hub takes: a build context, an archive, or a folder with a card."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the challenges, each with its options."""
    challenges = parser.add_subparsers(required=True, metavar="CHALLENGE")

    text = "Write the build context of a container for FLARE."
    flare = challenges.add_parser("flare", help=text, description=text)
    flare.set_defaults(submit=_run_flare)
    origin = "folder of a trained model, or a zip file of nnUNetv2_export_model_to_zip"
    flare.add_argument("--model", metavar="DIR_OR_ZIP", type=Path, required=True, help=origin)
    flare.add_argument("--team", metavar="NAME", required=True, help="name of the image, in lower case")
    flare.add_argument("-o", metavar="DIR", type=Path, required=True, help="folder to write")
    flare.add_argument("-f", metavar="FOLD", nargs="+", help="folds to average (default: all that are trained)")
    flare.add_argument(
        "-chk", metavar="FILE", default="checkpoint_final.pth", help="checkpoint of each fold (default: %(default)s)"
    )
    flare.add_argument("--mirroring", action="store_true", help="average over mirrored images: 4 or 8 times the time")
    text = "of the windows, as a share of the patch (default: %(default)s)"
    flare.add_argument("-step_size", metavar="SHARE", type=float, default=0.5, help=text)
    text = "keep sums of windows in main memory: less GPU memory, more time"
    flare.add_argument("--not_on_device", action="store_true", help=text)
    text = "for the tasks without a GPU: OpenVINO on the CPU, in 8 GB of memory"
    flare.add_argument("--laptop", action="store_true", help=text)
    flare.add_argument("--overwrite", action="store_true", help="replace an earlier build context")

    text = "Write a folder for a model hub: weights without traces of their training, and a model card."
    hub = challenges.add_parser("hub", help=text, description=text)
    hub.set_defaults(submit=_run_hub)
    hub.add_argument("--model", metavar="DIR_OR_ZIP", type=Path, required=True, help=origin)
    hub.add_argument("-o", metavar="DIR", type=Path, required=True, help="folder to write")
    hub.add_argument("-f", metavar="FOLD", nargs="+", help="folds to share (default: all that are trained)")
    hub.add_argument(
        "-chk", metavar="FILE", default="checkpoint_final.pth", help="checkpoint of each fold (default: %(default)s)"
    )
    hub.add_argument("--licence", metavar="ID", help="of the weights, by the hub's identifiers, as cc-by-4.0")
    text = "comparison.json whose means the card shows"
    hub.add_argument("--comparison", metavar="FILE", type=Path, help=text)
    hub.add_argument("--overwrite", action="store_true", help="replace an earlier folder")

    text = "Check the predictions of BTCV's 20 test images, and write them into an archive."
    btcv = challenges.add_parser("btcv", help=text, description=text)
    btcv.set_defaults(submit=_run_btcv)
    btcv.add_argument("-pred", metavar="DIR", type=Path, required=True, help="predictions, img0061.nii.gz and so on")
    btcv.add_argument("-images", metavar="DIR", type=Path, required=True, help="the test images")
    btcv.add_argument("-o", metavar="FILE", type=Path, required=True, help="archive to write, FILE.zip")
    text = "path of each file in the archive, with {number} for its four digits (default: %(default)s)"
    btcv.add_argument("--pattern", default="label{number}.nii.gz", help=text)
    btcv.add_argument("--overwrite", action="store_true", help="replace an existing archive")


def run(arguments: argparse.Namespace) -> None:
    """Write the submission of the challenge."""
    arguments.submit(arguments)


def _run_flare(arguments: argparse.Namespace) -> None:
    from nnunetv2_ext.submission.flare import submit_flare

    model, remarks = submit_flare(
        arguments.model,
        arguments.team,
        arguments.o,
        folds=arguments.f,
        checkpoint=arguments.chk,
        mirroring=arguments.mirroring,
        step_size=arguments.step_size,
        not_on_device=arguments.not_on_device,
        laptop=arguments.laptop,
        overwrite=arguments.overwrite,
    )
    _print_model(arguments.o, model, remarks)
    print(f"Build with: docker build -t {arguments.team}:latest {shlex.quote(str(arguments.o))}")
    print(f"How to save and test it is in {arguments.o / 'README.md'}.")


def _run_hub(arguments: argparse.Namespace) -> None:
    from nnunetv2_ext.submission.hub import submit_hub

    model, remarks = submit_hub(
        arguments.model,
        arguments.o,
        folds=arguments.f,
        checkpoint=arguments.chk,
        licence=arguments.licence,
        comparison=arguments.comparison,
        overwrite=arguments.overwrite,
    )
    _print_model(arguments.o, model, remarks)
    print(f"Read {arguments.o / 'README.md'}, then upload with: hf upload USER/MODEL {shlex.quote(str(arguments.o))}")


def _print_model(folder: Path, model: TrainedModel, remarks: Sequence[str]) -> None:
    print(f"Wrote {folder}: {model.trainer}, {model.plans}, {model.configuration}, folds {', '.join(model.folds)}.")
    for remark in remarks:
        print(remark)


def _run_btcv(arguments: argparse.Namespace) -> None:
    from nnunetv2_ext.submission.btcv import submit_btcv

    remarks = submit_btcv(
        arguments.pred, arguments.images, arguments.o, pattern=arguments.pattern, overwrite=arguments.overwrite
    )
    for remark in remarks:
        print(remark)
    print(f"Wrote {arguments.o} with the 20 test cases; compare the names in it with the challenge's page.")
