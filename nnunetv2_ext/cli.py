"""The command `nnUNetv2_ext`. Each subcommand calls a function that can be imported as well."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_ext.datasets.registry import DATASETS, OPTIONS
from nnunetv2_ext.errors import UserError

__all__ = ["build_parser", "main"]


def _stride(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a stride; write one number per axis, as 1,2,2") from None


def _list(arguments: argparse.Namespace) -> None:
    from nnunetv2_ext.listing import trainers_table
    from nnunetv2_ext.trainers.names import GRAMMAR

    print(trainers_table(markdown=arguments.markdown))
    if not arguments.markdown:
        print(f"\nVariants: TRAINER{GRAMMAR}, for example nnUNetTrainerPECANet_250epochs_lr3en4")


def _info(arguments: argparse.Namespace) -> None:
    from nnunetv2_ext.architectures.geometry import Geometry
    from nnunetv2_ext.info import describe_network, describe_planned_network
    from nnunetv2_ext.planned import find_own_trainer

    find_own_trainer(arguments.tr)
    if arguments.patch is not None and arguments.strides is not None:
        geometry = Geometry.from_strides(arguments.patch, arguments.strides)
        print(
            describe_network(arguments.tr, geometry, input_channels=arguments.channels, num_classes=arguments.classes)
        )
    elif arguments.d is not None and arguments.c is not None:
        print(describe_planned_network(arguments.tr, arguments.d, arguments.c, arguments.p))
    else:
        raise UserError("info needs a planned dataset (-d and -c), or sizes (--patch and --strides).")


def _doctor(arguments: argparse.Namespace) -> None:
    from nnunetv2_ext.doctor import examine, format_report

    checks = examine()
    print(format_report(checks))
    if any(check.failed for check in checks):
        raise SystemExit(1)


def _path(arguments: argparse.Namespace) -> None:
    from nnunetv2_ext._register import DISCOVERY_FOLDER

    print(DISCOVERY_FOLDER)


def _plans(arguments: argparse.Namespace) -> None:
    from nnunetv2_ext.plans import write_network_plans

    path, left_out = write_network_plans(arguments.d, arguments.network, arguments.p, overwrite=arguments.overwrite)
    print(f"Wrote {path}.")
    if left_out:
        print(f"Left out, because {arguments.network} does not serve their dimension: {', '.join(left_out)}.")
    print(f"Train with: nnUNetv2_train {arguments.d} CONFIGURATION FOLD -p {path.stem} -tr nnUNetTrainer")


def _shorten(names: Sequence[str], most: int = 8) -> list[str]:
    """Name a part of a network as a whole where more than `most` of its tensors are listed."""
    parts = Counter(name.partition(".")[0] for name in names)
    whole = [f"{part}.* ({count} tensors)" for part, count in parts.items() if count > most]
    return whole + [name for name in names if parts[name.partition(".")[0]] <= most]


def _import_weights(arguments: argparse.Namespace) -> None:
    from nnunetv2_ext.weights.importing import import_weights

    report = import_weights(
        arguments.i,
        arguments.o,
        trainer_name=arguments.tr,
        dataset=arguments.d,
        configuration=arguments.c,
        plans_name=arguments.p,
    )
    sources = {"authors": "the authors' code", "nnunet": "nnU-Net's own network", "nnunetv2_ext": "nnunetv2_ext"}
    print(f"Wrote {arguments.o}: {report['taken']} tensors from a checkpoint of {sources[report['source']]}.")
    if report["fresh"]:
        fresh = ", ".join(_shorten(report["fresh"]))
        print(f"Not in the checkpoint or of other classes, and so as initialised: {fresh}.")
    print("nnU-Net starts the segmentation layers anew with -pretrained_weights.")
    print(
        f"Train with: nnUNetv2_train {arguments.d} {arguments.c} FOLD -tr {arguments.tr} -p {arguments.p} "
        f"-pretrained_weights {arguments.o}"
    )


def _evaluate(arguments: argparse.Namespace) -> None:
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
    for note in evaluation.protocol.notes:
        print(note)
    print(f"Wrote summary.json, metrics.csv and report.md into {folder}.")


def _convert(arguments: argparse.Namespace) -> None:
    from nnunetv2_ext.datasets.convert import convert, format_report

    report = convert(
        arguments.dataset,
        arguments.i,
        dataset_id=arguments.d,
        processes=arguments.np,
        link=arguments.link,
        overwrite=arguments.overwrite,
        **{option.name: getattr(arguments, option.name) for option in OPTIONS},
    )
    print(format_report(report))


def _submit_flare(arguments: argparse.Namespace) -> None:
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
        overwrite=arguments.overwrite,
    )
    print(
        f"Wrote {arguments.o}: {model.trainer}, {model.plans}, {model.configuration}, folds {', '.join(model.folds)}."
    )
    for remark in remarks:
        print(remark)
    print(f"Build with: docker build -t {arguments.team}:latest {arguments.o}")
    print(f"How to save and test it is in {arguments.o / 'README.md'}.")


def _submit_btcv(arguments: argparse.Namespace) -> None:
    from nnunetv2_ext.submission.btcv import submit_btcv

    remarks = submit_btcv(
        arguments.pred, arguments.images, arguments.o, pattern=arguments.pattern, overwrite=arguments.overwrite
    )
    for remark in remarks:
        print(remark)
    print(f"Wrote {arguments.o} with the 20 test cases; compare the names in it with the challenge's page.")


def _add_submit(command: argparse.ArgumentParser) -> None:
    challenges = command.add_subparsers(required=True, metavar="CHALLENGE")

    text = "Write the build context of a container for FLARE."
    flare = challenges.add_parser("flare", help=text, description=text)
    flare.set_defaults(run=_submit_flare)
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
    flare.add_argument("--overwrite", action="store_true", help="replace an earlier build context")

    text = "Check the predictions of BTCV's 20 test images, and write them into an archive."
    btcv = challenges.add_parser("btcv", help=text, description=text)
    btcv.set_defaults(run=_submit_btcv)
    btcv.add_argument("-pred", metavar="DIR", type=Path, required=True, help="predictions, img0061.nii.gz and so on")
    btcv.add_argument("-images", metavar="DIR", type=Path, required=True, help="the test images")
    btcv.add_argument("-o", metavar="FILE", type=Path, required=True, help="archive to write, FILE.zip")
    text = "path of each file in the archive, with {number} for its four digits (default: %(default)s)"
    btcv.add_argument("--pattern", default="label{number}.nii.gz", help=text)
    btcv.add_argument("--overwrite", action="store_true", help="replace an existing archive")


def _demo(arguments: argparse.Namespace) -> None:
    from nnunetv2_ext.demo.run import run_demo

    run_demo(arguments.o, device=arguments.device)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_ext",
        description="Published attention networks for nnU-Net v2: tools beside nnU-Net's own commands.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    def add_plan_options(command: argparse.ArgumentParser, *, required: bool) -> None:
        command.add_argument("-d", metavar="DATASET", required=required, help="number or name of a planned dataset")
        command.add_argument("-c", metavar="CONFIGURATION", required=required, help="configuration, as 3d_fullres")
        command.add_argument("-tr", metavar="TRAINER", required=True, help="trainer, or a variant of one")
        command.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans (default: %(default)s)")

    command = add("list", _list, "Show the trainers.")
    command.add_argument("--markdown", action="store_true", help="as a markdown table")

    command = add("info", _info, "Show a network as it would be built, and what it costs.")
    add_plan_options(command, required=False)
    command.add_argument("--patch", metavar="N", type=int, nargs="+", help="voxels per axis, instead of a dataset")
    command.add_argument("--strides", metavar="A,B,C", type=_stride, nargs="+", help="strides, one entry per pooling")
    command.add_argument("--channels", type=int, default=1, help="input channels (default: %(default)s)")
    command.add_argument("--classes", type=int, default=2, help="classes with background (default: %(default)s)")

    add("doctor", _doctor, "Check versions, discovery, nnU-Net's folders, devices and workers.")
    add("path", _path, "Print the folder for the variable nnUNet_extTrainer.")

    command = add("plans", _plans, "Write a plans file that names a network, for use with nnU-Net's own trainers.")
    command.add_argument("-d", metavar="DATASET", required=True, help="number or name of a planned dataset")
    command.add_argument("network", metavar="NETWORK", help="a trainer's name without nnUNetTrainer, as PECANet")
    command.add_argument(
        "-p", metavar="PLANS", default="nnUNetPlans", help="plans to start from (default: %(default)s)"
    )
    command.add_argument("--overwrite", action="store_true", help="replace an existing file")

    command = add("import-weights", _import_weights, "Turn a checkpoint into a file for nnU-Net's -pretrained_weights.")
    origin = "the authors' file, one of ours, or nnU-Net's where the method extends the planned network"
    command.add_argument("-i", metavar="CHECKPOINT", type=Path, required=True, help=origin)
    command.add_argument("-o", metavar="FILE", type=Path, required=True, help="file to write")
    add_plan_options(command, required=True)

    command = add("evaluate", _evaluate, "Score predictions as a paper, a challenge or nnU-Net does.")
    command.add_argument("-ref", metavar="DIR", type=Path, required=True, help="references, CASE.nii.gz or the like")
    command.add_argument("-pred", metavar="DIR", type=Path, required=True, help="predictions, with the same names")
    protocols = "nnunet, transunet, nnformer, danie, flare21, flare22, acdc, isic or polyp"
    command.add_argument("--protocol", metavar="NAME", required=True, help=protocols)
    maps = "what the labels mean: a dataset.json, or a map's name (default: the protocol's own)"
    command.add_argument("--labels", metavar="MAP", help=maps)
    command.add_argument("--tolerance", metavar="MM", type=float, help="of nnunet's NSD (default: 1)")
    command.add_argument("-o", metavar="DIR", type=Path, help="folder to write (default: PRED/evaluation_NAME)")
    command.add_argument("-np", metavar="N", type=int, help="cases at a time (default: one a core, at most 8)")
    command.add_argument("--chill", action="store_true", help="leave out references without a prediction")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation")

    command = add("convert", _convert, "Write a public dataset in nnU-Net's raw format, with the papers' splits.")
    command.add_argument("dataset", metavar="DATASET", help=", ".join(dataset.name for dataset in DATASETS))
    command.add_argument("-i", metavar="SOURCE", type=Path, required=True, help="folder of the unpacked download")
    command.add_argument("-d", metavar="ID", type=int, help="number in nnU-Net (default: the dataset's own)")
    command.add_argument("-np", metavar="N", type=int, help="processes (default: as nnU-Net's own)")
    command.add_argument("--link", action="store_true", help="link to files that need no change, instead of copying")
    command.add_argument("--overwrite", action="store_true", help="replace a dataset of that number")
    for option in OPTIONS:
        command.add_argument(
            f"--{option.name}",
            choices=option.choices or None,
            metavar="N" if not option.choices else None,
            help=option.help,
        )

    _add_submit(
        commands.add_parser("submit", help="Make what a challenge wants.", description="Make what a challenge wants.")
    )

    command = add("demo", _demo, "Make a phantom dataset and take it through nnU-Net's commands.")
    command.add_argument(
        "-o", metavar="FOLDER", default="nnunetv2_ext_demo", help="working folder (default: %(default)s)"
    )
    command.add_argument("-device", choices=("cpu", "cuda", "mps"), help="default: a GPU if there is one")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends in one sentence on stderr and exit code 1."""
    parsed = build_parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except ValueError as error:
        # Networks and geometries refuse sizes with a plain ValueError, tools with its subclass UserError.
        raise SystemExit(f"error: {error}") from error
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise SystemExit(f"error: {error.strerror or error}{where}") from error


if __name__ == "__main__":
    main()
