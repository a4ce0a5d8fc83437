"""`nnUNetv2_ext run`: an experiment of many trainings, from one file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunetv2_ext.experiments.jobs import Graph

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
    text = "write the files of the engine into the experiment's folder, and start nothing"
    what.add_argument("--write", action="store_true", help=text)
    what.add_argument("--cancel", action="store_true", help="cancel the experiment's jobs in Slurm's queue")
    parser.add_argument("--retry", action="store_true", help="try jobs again that were given up")
    parser.add_argument(
        "--engine",
        choices=("workstation", "slurm"),
        default="workstation",
        help="what runs the jobs: this machine, or a cluster (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run an experiment, or show what there is to run."""
    from nnunetv2_ext.experiments import report
    from nnunetv2_ext.experiments.experiment import read_experiment, write_template
    from nnunetv2_ext.experiments.graph import build_graph
    from nnunetv2_ext.experiments.slurm import read_submitted
    from nnunetv2_ext.experiments.slurm_report import format_queue
    from nnunetv2_ext.experiments.workstation import run_workstation, write_workflow

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
        if arguments.engine == "slurm" or read_submitted(experiment.folder):
            print(f"\n{format_queue(graph)}")
    elif arguments.print:
        print(report.format_commands(graph))
    elif arguments.cancel or arguments.engine == "slurm":
        _run_on_cluster(graph, arguments)
    elif arguments.write:
        write_workflow(graph)
        print(f"Wrote {experiment.folder / 'Snakefile'} and its profile.")
    else:
        if arguments.retry:
            for job in graph.needed:
                job.attempts.unlink(missing_ok=True)
        code = run_workstation(graph)
        # Read anew: the jobs have changed what is done.
        print(report.format_outcome(build_graph(experiment)), flush=True)
        if code:
            raise SystemExit(code)


def _run_on_cluster(graph: Graph, arguments: argparse.Namespace) -> None:
    """Write the scripts, submit them, or cancel what was submitted."""
    from nnunetv2_ext.experiments import slurm, slurm_report
    from nnunetv2_ext.experiments.slurm_scripts import SCRIPTS, write_scripts

    if arguments.cancel:
        print(slurm_report.format_cancelled(graph, slurm.cancel_jobs(graph)))
    elif arguments.write:
        write_scripts(graph)
        print(f"Wrote the scripts into {graph.experiment.folder / SCRIPTS}; submit.sh submits them all.")
    else:
        print(slurm_report.format_submission(graph, slurm.submit(graph, retry=arguments.retry)))
