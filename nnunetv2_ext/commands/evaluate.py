"""`nnUNetv2_ext evaluate`: score predictions under a protocol."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_ext.io.workers import PROCESSES_HELP

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Score predictions as a paper, a challenge or nnU-Net does."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("-ref", metavar="DIR", type=Path, required=True, help="references, CASE.nii.gz or the like")
    parser.add_argument("-pred", metavar="DIR", type=Path, required=True, help="predictions, with the same names")
    protocols = (
        "nnunet, transunet, nnformer, danie, flare21, flare22, flare23, flare24-t1, flare24-t2, lesion, acdc, isic "
        "or polyp"
    )
    parser.add_argument("--protocol", metavar="NAME", required=True, help=protocols)
    maps = "what the labels mean: a dataset.json, or a map's name (default: the protocol's own)"
    parser.add_argument("--labels", metavar="MAP", help=maps)
    parser.add_argument("--tolerance", metavar="MM", type=float, help="tolerance of nnunet's NSD in mm (default: 1)")
    parser.add_argument("-o", metavar="DIR", type=Path, help="folder to write (default: PRED/evaluation_NAME)")
    parser.add_argument("-np", metavar="N", type=int, help=PROCESSES_HELP)
    parser.add_argument("--chill", action="store_true", help="leave out references without a prediction")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation")


def run(arguments: argparse.Namespace) -> None:
    """Score the predictions, and print the means and what they mean."""
    from nnunetv2_ext.evaluation.report import means_table
    from nnunetv2_ext.evaluation.runner import evaluate_folders

    evaluation, folder = evaluate_folders(
        arguments.ref,
        arguments.pred,
        arguments.protocol,
        labels=arguments.labels,
        tolerance=arguments.tolerance,
        output=arguments.o,
        only_predicted=arguments.chill,
        processes=arguments.np,
        overwrite=arguments.overwrite,
    )
    print(means_table(evaluation, definitions=False))
    for metric in evaluation.metrics:
        if metric.shown:
            unit = f" ({metric.unit})" if metric.unit else ""
            print(f"{metric.name}{unit}: {metric.definition}. Empty masks: {metric.empty}.")
    for note in (*evaluation.remarks, *evaluation.protocol.notes):
        print(note)
    print(f"Wrote summary.json, metrics.csv and report.md into {folder}.")
