"""`nnUNetv2_ext compare`: compare finished trainings, or folders of predictions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.workers import PROCESSES_HELP

if TYPE_CHECKING:
    from nnunetv2_ext.comparison.model import Comparison

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Compare finished trainings: paired statistics, costs, and what makes them unfair."


def _prediction(text: str) -> tuple[str, Path]:
    name, given, folder = text.partition("=")
    if not (name and given and folder):
        raise argparse.ArgumentTypeError(f"{text!r} names no folder: write it as NAME=DIR")
    return name, Path(folder)


def _fold(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not the number of a fold (fold 'all' validates on its own training cases)"
        )
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("-d", metavar="DATASET", nargs="+", help="numbers or names of datasets")
    parser.add_argument("-c", metavar="CONFIGURATION", help="configuration, as 3d_fullres")
    parser.add_argument("-tr", metavar="TRAINER", nargs="+", help="trainers, of this package or any other")
    plans = "plans: one for all, or one per trainer (default: nnUNetPlans)"
    parser.add_argument("-p", metavar="PLANS", nargs="+", default=["nnUNetPlans"], help=plans)
    folds = "folds (default: 0 1 2 3 4)"
    parser.add_argument("-f", metavar="FOLD", nargs="+", type=_fold, default=[0, 1, 2, 3, 4], help=folds)
    predictions = "folders of predictions to compare, instead of trainings"
    parser.add_argument("--predictions", metavar="NAME=DIR", nargs="+", type=_prediction, help=predictions)
    parser.add_argument("-ref", metavar="DIR", type=Path, help="their references")
    metric = "metrics, the main one first (default: Dice, or the protocol's first)"
    parser.add_argument("--metric", metavar="METRIC", nargs="+", default=[], help=metric)
    protocol = "score the label maps anew, as `evaluate --protocol` does (default: nnU-Net's summary.json)"
    parser.add_argument("--protocol", metavar="NAME", help=protocol)
    parser.add_argument("--labels", metavar="MAP", help="what the labels mean, as for `evaluate`")
    parser.add_argument("--tolerance", metavar="MM", type=float, help="of nnunet's NSD (default: 1)")
    parser.add_argument("--reference", metavar="NAME", help="what the others are held against (default: the first)")
    parser.add_argument("-o", metavar="REPORT", type=Path, required=True, help="folder to write")
    parser.add_argument("-np", metavar="N", type=int, help=PROCESSES_HELP)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier comparison")


def run(arguments: argparse.Namespace) -> None:
    """Compare, write the report and its tables, and print what was found."""
    from nnunetv2_ext.comparison.report import write_report
    from nnunetv2_ext.comparison.writing import write_tables
    from nnunetv2_ext.io.files import prepare_output, whole_folder

    holds = ("comparison.json",)
    prepare_output(arguments.o, kind="an earlier comparison", holds=holds, overwrite=arguments.overwrite)
    comparison = _compare(arguments)
    with whole_folder(arguments.o) as folder:
        write_tables(comparison, folder)
        write_report(comparison, folder)
    print(_overview(comparison))
    print(f"Wrote the report, index.html, and comparison.json with tables of all scores into {arguments.o}.")


def _compare(arguments: argparse.Namespace) -> Comparison:
    """Compare what the options name.

    Raises:
        UserError: if they name neither trainings nor predictions, or both, or things that do not fit.
    """
    from nnunetv2_ext.comparison.compare import compare_predictions, compare_trainings
    from nnunetv2_ext.comparison.scoring import Scoring

    scoring = Scoring(arguments.protocol, arguments.labels, arguments.tolerance, arguments.np)
    how = {"metrics": arguments.metric, "reference": arguments.reference, "scoring": scoring}
    trainings = (arguments.d, arguments.c, arguments.tr)
    if arguments.predictions is not None and arguments.ref is not None and not any(trainings):
        folders = dict(arguments.predictions)
        if len(folders) < len(arguments.predictions):
            raise UserError("Two folders of --predictions have the same name: give each its own.")
        return compare_predictions(folders, arguments.ref, **how)
    if arguments.predictions is None and arguments.ref is None and all(trainings):
        return compare_trainings(arguments.tr, arguments.d, arguments.c, plans=arguments.p, folds=arguments.f, **how)
    raise UserError(
        "compare takes one of two things: give trainings (-d, -c and -tr), or folders of predictions "
        "(--predictions and -ref), not both."
    )


def _overview(comparison: Comparison) -> str:
    """Write the main table, what to know, and what is missing."""
    from nnunetv2_ext.io.tables import format_table

    main = comparison.main
    pairs = {pair.a: pair for pair in main.pairs if pair.b == comparison.reference}
    rows = []
    for summary in main.summaries:
        pair = pairs.get(summary.trainer)
        rows.append(
            [
                summary.trainer,
                str(summary.n),
                _number(summary.mean),
                _interval(summary.ci95),
                _number(pair.difference) if pair else "reference",
                _interval(pair.ci95) if pair else "",
                _p_value(pair.p_holm) if pair else "",
            ]
        )
    unit = "cases" if main.dataset else "datasets"
    header = ["trainer", unit, main.metric, "95 % interval", "difference", "95 % interval", "p (Holm)"]
    lines = [format_table(header, rows), ""]
    lines += [finding.sentence for finding in comparison.findings]
    lines += [f"{missing.what} {missing.command}" for missing in comparison.missing]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _p_value(value: float | None) -> str:
    return "<0.0001" if value is not None and value < 1e-4 else _number(value)


def _interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
