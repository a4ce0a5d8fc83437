"""`nnUNetv2_ext import-weights`: a checkpoint of elsewhere as a file for nnU-Net's `-pretrained_weights`."""

from __future__ import annotations

import argparse
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_ext.commands._options import add_plan_options
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.files import prepare_file
from nnunetv2_ext.plans.dataset import read_planned_dataset
from nnunetv2_ext.trainers import find_own_trainer
from nnunetv2_ext.trainers.names import parse_name

__all__ = ["HELP", "add_arguments", "import_weights", "run"]

HELP = "Turn a checkpoint into a file for nnU-Net's -pretrained_weights."

# nnU-Net's loader skips the tensors with this in their name, so that a network can be tuned to other classes.
_SEGMENTATION_LAYERS = re.compile(r"\.seg_layers\.")


def import_weights(
    checkpoint: str | Path, output: str | Path, *, trainer_name: str, dataset: str, configuration: str, plans_name: str
) -> dict[str, Any]:
    """Turn a checkpoint into a file for `nnUNetv2_train ... -pretrained_weights FILE`.

    The checkpoint may come from the authors' code, from a training with a trainer of this package or, where the method
    extends the planned network, from nnU-Net's own network of the same plan; which one is seen from the names of its
    tensors. What nnU-Net's own network does not have stays as initialised. Segmentation layers that fit the dataset's
    classes are taken over into the file too, though nnU-Net starts them anew.

    Args:
        checkpoint: file to read.
        output: file to write.
        trainer_name: the trainer that will be used.
        dataset: number or name of the dataset that will be trained on.
        configuration: its configuration.
        plans_name: its plans.

    Returns:
        `source` ("authors", "nnunet" or "nnunetv2_ext"), `taken` and `fresh`: how many tensors come from
        the checkpoint, and the names of those that start anew.

    Raises:
        UserError: for a trainer, dataset, plans or configuration that does not exist, or an output that cannot be
            written or is the checkpoint itself.
        WeightsError: if the file cannot be read, or its tensors do not fit that plan; the message names them.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_ext.weights.authors import fit_tensors, system_module, without_ignored
    from nnunetv2_ext.weights.files import WeightsError, read_checkpoint, write_checkpoint

    output = Path(output)
    prepare_file(output, overwrite=True)
    if output.exists() and Path(checkpoint).exists() and output.samefile(checkpoint):
        raise UserError(f"{output} is the checkpoint itself, which would be lost: choose another file with -o.")
    trainer = find_own_trainer(trainer_name)
    planned = read_planned_dataset(dataset, plans_name)
    planned.require_configuration(configuration)
    tensors = read_checkpoint(checkpoint)

    plans = PlansManager(planned.plans)
    settings = plans.get_configuration(configuration)
    network = trainer.build_network_architecture(
        plans,
        settings,
        determine_num_input_channels(plans, settings, planned.dataset_json),
        plans.get_label_manager(planned.dataset_json).num_segmentation_heads,
    )
    expected = network.state_dict()

    ours = not expected.keys().isdisjoint(tensors)
    extension = trainer.network_class.beyond_plan
    planned_only = ours and bool(extension) and not any(name.startswith(extension) for name in tensors)
    source_name, source_heads = (lambda name: name), _SEGMENTATION_LAYERS
    if not ours:
        entry, _ = parse_name(trainer_name)
        if entry.authors_system is None:
            raise WeightsError(
                f"{checkpoint} holds no tensor of the network of {trainer_name}: give a checkpoint of that trainer"
                + (", or of nnU-Net's own trainer with the same plans." if extension else ".")
            )
        system = system_module(entry.authors_system)
        source_name, source_heads = system.authors_name, system.SEGMENTATION_LAYERS
        tensors = without_ignored(system, tensors)
    # A head that only one of the two networks has is no reason to refuse: nnU-Net does not load heads.
    known = {source_name(name) for name in expected}
    tensors = {name: tensor for name, tensor in tensors.items() if name in known or not source_heads.search(name)}
    fitting = fit_tensors(
        expected,
        tensors,
        source_name,
        f"{checkpoint}, for {trainer_name} on {planned.folder.name} {configuration},",
        may_differ=lambda name: (
            bool(_SEGMENTATION_LAYERS.search(name)) or (planned_only and name.startswith(extension))
        ),
    )
    write_checkpoint({"network_weights": {**expected, **fitting}}, output)
    return {
        "source": "nnunet" if planned_only else "nnunetv2_ext" if ours else "authors",
        "taken": len(fitting),
        "fresh": sorted(expected.keys() - fitting.keys()),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    origin = "the authors' file, one of ours, or nnU-Net's where the method extends the planned network"
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
    sources = {"authors": "the authors' code", "nnunet": "nnU-Net's own network", "nnunetv2_ext": "nnunetv2_ext"}
    print(f"Wrote {arguments.o}: {report['taken']} tensors from a checkpoint of {sources[report['source']]}.")
    if report["fresh"]:
        fresh = ", ".join(_shorten(report["fresh"]))
        print(f"Not in the checkpoint or of other classes, and so as initialised: {fresh}.")
    print("nnU-Net starts the segmentation layers anew with -pretrained_weights.")
    words = ["nnUNetv2_train", arguments.d, arguments.c, "FOLD", "-tr", arguments.tr, "-p", arguments.p]
    print(f"Train with: {shlex.join([*words, '-pretrained_weights', str(arguments.o)])}")


def _shorten(names: Sequence[str], most: int = 8) -> list[str]:
    """Name a part of a network as a whole where more than `most` of its tensors are listed."""
    parts = Counter(name.partition(".")[0] for name in names)
    whole = [f"{part}.* ({count} tensors)" for part, count in parts.items() if count > most]
    return whole + [name for name in names if parts[name.partition(".")[0]] <= most]
