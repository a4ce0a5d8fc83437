"""`nnUNetv2_ext run`: an experiment of many trainings, from one file."""

from __future__ import annotations

import argparse

__all__ = ["HELP", "add_arguments", "run"]

HELP = "Run an experiment: every training of a file that is not done yet, and the comparison."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("experiment", metavar="EXPERIMENT", help="experiment file (.yaml)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--init", action="store_true", help="write a commented experiment file, and do nothing else")
    what.add_argument("--dry-run", action="store_true", help="show what would run, what is done, what waits for what")
    what.add_argument("--status", action="store_true", help="show how far every training is, and what failed")
    what.add_argument("--print", action="store_true", help="print the commands of what is not done, in a valid order")
    parser.add_argument("--retry", action="store_true", help="try jobs again that were given up")
    parser.add_argument(
        "--engine", choices=("workstation",), default="workstation", help="what runs the jobs (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run an experiment, or show what there is to run."""
    from nnunetv2_ext.experiments import report
    from nnunetv2_ext.experiments.experiment import read_experiment, write_template
    from nnunetv2_ext.experiments.graph import build_graph
    from nnunetv2_ext.experiments.workstation import run_workstation

    if arguments.init:
        file = write_template(arguments.experiment)
        print(f"Wrote {file}: edit it, then look at what it means with --dry-run.")
        return
    experiment = read_experiment(arguments.experiment)
    graph = build_graph(experiment)
    if arguments.dry_run:
        print(report.format_dry_run(graph))
    elif arguments.status:
        print(report.format_status(graph))
    elif arguments.print:
        print(report.format_commands(graph))
    else:
        if arguments.retry:
            for job in graph.needed:
                job.attempts.unlink(missing_ok=True)
        code = run_workstation(graph)
        # Read anew: the jobs have changed what is done.
        print(report.format_outcome(build_graph(experiment)), flush=True)
        if code:
            raise SystemExit(code)
