"""`nnUNetv2_ext import-weights`: a checkpoint of elsewhere as a file for nnU-Net's `-pretrained_weights`."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.commands._options import add_plan_options
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.files import prepare_file
from nnunetv2_ext.plans.dataset import read_planned_dataset
from nnunetv2_ext.trainers import find_own_trainer
from nnunetv2_ext.trainers.names import find_entry

__all__ = ["HELP", "ImportReport", "add_arguments", "import_weights", "run"]

HELP = "Turn a checkpoint into a file for nnU-Net's -pretrained_weights."

_SOURCES = {
    "authors": "the authors' code",
    "encoder": "an encoder alone",
    "nnunet": "nnU-Net's own network",
    "nnunetv2_ext": "nnunetv2_ext",
}


@dataclass(frozen=True)
class ImportReport:
    """What an imported file holds.

    Attributes:
        source: where the checkpoint is from: `authors`, `encoder` (of SwinUNETR, self-supervised), `nnunet` or
            `nnunetv2_ext`.
        taken: number of tensors that come from the checkpoint.
        fresh: names of the network's tensors that start anew.
        left_out: names of the checkpoint's tensors that the network has no place for, segmentation layers aside.
        resized: names of the network's tensors that the checkpoint has in another shape.
    """

    source: str
    taken: int
    fresh: list[str]
    left_out: list[str]
    resized: list[str]


def import_weights(
    checkpoint: str | Path, output: str | Path, *, trainer_name: str, dataset: str, configuration: str, plans_name: str
) -> ImportReport:
    """Turn a checkpoint into a file for `nnUNetv2_train ... -pretrained_weights FILE`.

    The checkpoint may come from the authors' code, from a training with a trainer of this package or, where the method
    extends the planned network, from nnU-Net's own network of the same plan; for SwinUNETR it may hold the encoder
    alone, as self-supervised training leaves it. Which one is seen from the names of its tensors. What the checkpoint
    does not have stays as initialised. Segmentation layers that fit the dataset's classes are taken over into the file
    too, though nnU-Net starts them anew.

    Args:
        checkpoint: file to read.
        output: file to write.
        trainer_name: the trainer that will be used.
        dataset: number or name of the dataset that will be trained on.
        configuration: its configuration.
        plans_name: its plans.

    Raises:
        UserError: for a trainer, dataset, plans or configuration that does not exist, or an output that cannot be
            written or is the checkpoint itself.
        WeightsError: if the file cannot be read, or its tensors do not fit that plan; the message names them.
    """
    from nnunetv2_ext.architectures.swin_unetr import SwinUNETR
    from nnunetv2_ext.weights.authors import find_system, fit_tensors, is_segmentation_layer
    from nnunetv2_ext.weights.files import WeightsError, read_checkpoint, write_checkpoint
    from nnunetv2_ext.weights.swinvit import fit_encoder, holds_encoder_alone

    output = Path(output)
    prepare_file(output, overwrite=True)
    if output.exists() and Path(checkpoint).exists() and output.samefile(checkpoint):
        raise UserError(f"{output} is the checkpoint itself, which would be lost: choose another file with -o.")
    trainer = find_own_trainer(trainer_name)
    planned = read_planned_dataset(dataset, plans_name)
    settings = planned.configuration(configuration)
    tensors = read_checkpoint(checkpoint)
    network = trainer.build_network(settings.geometry, settings.input_channels, settings.num_classes)
    expected = network.state_dict()

    what = f"{checkpoint}, for {trainer_name} on {planned.folder.name} {configuration},"
    left_out: list[str] = []
    resized: list[str] = []
    extension = trainer.network_class.beyond_plan
    if isinstance(network, SwinUNETR) and holds_encoder_alone(tensors):
        source = "encoder"
        encoder = fit_encoder(network, tensors, what)
        fitting, left_out, resized = dict(encoder.tensors), list(encoder.left_out), list(encoder.resized)
    elif expected.keys().isdisjoint(tensors):
        source = "authors"
        system = find_entry(trainer_name).authors_system
        authors = None if system is None else find_system(system)
        if authors is None or not authors.holds_any(network, tensors):
            others = [
                *(["of nnU-Net's own trainer with the same plans"] if extension else []),
                *(["of the authors' code"] if authors else []),
            ]
            raise WeightsError(
                f"{checkpoint} holds no tensor of the network of {trainer_name}: give a checkpoint of "
                f"{', or '.join(['that trainer', *others])}."
            )
        fitting, left_out = authors.fit_planned(network, tensors, what)
    else:
        planned_only = bool(extension) and not any(name.startswith(extension) for name in tensors)
        source = "nnunet" if planned_only else "nnunetv2_ext"
        fitting = fit_tensors(
            expected,
            # A head that only one of the two networks has is no reason to refuse: nnU-Net does not load heads.
            {name: tensor for name, tensor in tensors.items() if name in expected or not is_segmentation_layer(name)},
            lambda name: name,
            what,
            may_differ=lambda name: is_segmentation_layer(name) or (planned_only and name.startswith(extension)),
        )
    write_checkpoint({"network_weights": {**expected, **fitting}}, output)
    return ImportReport(
        source, len(fitting), sorted(expected.keys() - fitting.keys()), sorted(left_out), sorted(resized)
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    origin = "the authors' file, one of ours, nnU-Net's where the method extends its network, or SwinUNETR's encoder"
    parser.add_argument("-i", metavar="CHECKPOINT", type=Path, required=True, help=origin)
    parser.add_argument("-o", metavar="FILE", type=Path, required=True, help="file to write")
    add_plan_options(parser, required=True)


def run(arguments: argparse.Namespace) -> None:
    """Write the file, and print what it holds and how to train from it."""
    report = import_weights(
        arguments.i,
        arguments.o,
        trainer_name=arguments.tr,
        dataset=arguments.d,
        configuration=arguments.c,
        plans_name=arguments.p,
    )
    print(f"Wrote {arguments.o}: {report.taken} tensors from a checkpoint of {_SOURCES[report.source]}.")
    if report.fresh:
        fresh = ", ".join(_shorten(report.fresh))
        print(f"Not in the checkpoint or of other classes, and so as initialised: {fresh}.")
    if report.resized:
        print(f"Brought to the network's shape: {', '.join(_shorten(report.resized))}.")
    if report.left_out:
        print(f"In the checkpoint, but without a place in the network: {', '.join(_shorten(report.left_out))}.")
    print("nnU-Net starts the segmentation layers anew with -pretrained_weights.")
    words = ["nnUNetv2_train", arguments.d, arguments.c, "FOLD", "-tr", arguments.tr, "-p", arguments.p]
    print(f"Train with: {shlex.join([*words, '-pretrained_weights', str(arguments.o)])}")


def _shorten(names: Sequence[str], most: int = 8) -> list[str]:
    """Name a part of a network as a whole where more than `most` of its tensors are listed."""
    parts = Counter(name.partition(".")[0] for name in names)
    whole = [f"{part}.* ({count} tensors)" for part, count in parts.items() if count > most]
    return whole + [name for name in names if parts[name.partition(".")[0]] <= most]
