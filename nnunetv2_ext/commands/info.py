"""`nnUNetv2_ext info`: a network as it would be built, with its sizes, cost, outputs and recipe."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnunetv2_ext.commands._options import add_plan_options
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.tables import format_table
from nnunetv2_ext.plans.dataset import read_planned_dataset
from nnunetv2_ext.trainers import find_own_trainer

if TYPE_CHECKING:
    from nnunetv2_ext.architectures.cost import Cost
    from nnunetv2_ext.architectures.geometry import Geometry
    from nnunetv2_ext.architectures.network import SegmentationNetwork
    from nnunetv2_ext.trainers.base import nnUNetTrainerExt

__all__ = ["HELP", "add_arguments", "describe_network", "describe_planned_network", "run"]

HELP = "Show a network as it would be built, and what it costs."


def _size(values: Sequence[int]) -> str:
    return " x ".join(str(value) for value in values)


def describe_planned_network(trainer_name: str, dataset: str, configuration: str, plans_name: str) -> str:
    """Describe the network that a trainer would build for a dataset's configuration.

    Raises:
        UserError: for a trainer, dataset, plans or configuration that does not exist.
        ValueError: if the network cannot be built for it.
    """
    find_own_trainer(trainer_name)
    planned = read_planned_dataset(dataset, plans_name)
    settings = planned.configuration(configuration)
    return describe_network(
        trainer_name,
        settings.geometry,
        input_channels=settings.input_channels,
        num_classes=settings.num_classes,
        batch_size=settings.batch_size,
        title=f"{planned.folder.name}, {configuration}, {plans_name}",
    )


def describe_network(
    trainer_name: str,
    geometry: Geometry,
    *,
    input_channels: int,
    num_classes: int,
    batch_size: int | None = None,
    title: str | None = None,
) -> str:
    """Describe the network that a trainer would build for a geometry.

    Args:
        trainer_name: a trainer of this package or a variant of one.
        geometry: the sizes.
        input_channels: channels of the input.
        num_classes: channels of the logits.
        batch_size: of the plan, if there is one; memory is given for one sample and for this many.
        title: what the geometry belongs to.

    Raises:
        UserError: for an unknown trainer.
        ValueError: if the network cannot be built for the geometry.
    """
    trainer = find_own_trainer(trainer_name)
    variant = getattr(trainer, "variant", None)
    if variant is not None and variant.batch_size is not None:
        batch_size = variant.batch_size
    networks = []

    def build() -> SegmentationNetwork:
        networks.append(trainer.build_network(geometry, input_channels, num_classes))
        return networks[-1]

    from nnunetv2_ext.architectures.cost import estimate_cost

    cost = estimate_cost(build)
    network = networks[-1]
    stages = network.describe_stages()
    header = list(stages[0])
    table = format_table(
        header,
        [[_size(row[key]) if isinstance(row[key], tuple) else row[key] for key in header] for row in stages],
    )
    padding = "none" if network.padded_size == network.patch_size else f"to {_size(network.padded_size)}"
    outputs = [
        " ".join(f"1/{stride}" if stride > 1 else "1" for stride in strides) for strides in network.output_strides
    ]
    facts = [
        ("network", f"{type(network).__name__}, {geometry.spatial_dims}D" + (f", for {title}" if title else "")),
        ("input", f"{input_channels} x {_size(geometry.patch_size)} (padding: {padding})"),
        ("logits", f"{num_classes} x {_size(geometry.patch_size)}"),
        ("deep supervision", "; ".join(outputs[1:]) + " of the input" if outputs[1:] else "none"),
        ("parameters", f"{cost.parameters:,}"),
        ("multiply-adds", f"{cost.multiply_adds / 1e9:,.1f} G (forward pass, one sample)"),
        ("kept for backward", _kept(cost, 1)),
        *([("", _kept(cost, batch_size, f" for the batch of {batch_size}"))] if batch_size is not None else []),
        *zip(("recipe", "", ""), _describe_recipe(trainer, network), strict=True),
    ]
    if variant is not None:
        changes = {key: value for key, value in vars(variant).items() if value}
        facts.append(("variant", ", ".join(f"{key} {value}" for key, value in changes.items())))
    width = max(len(name) for name, _ in facts)
    lines = [
        line
        for name, value in facts
        for line in textwrap.wrap(
            f"  {name.ljust(width)}  {value}", 100, subsequent_indent=" " * (width + 4), break_on_hyphens=False
        )
    ]
    return "\n".join([trainer_name, *lines, "", table])


def _kept(cost: Cost, batch_size: int, batch: str = "") -> str:
    """Write what a forward pass keeps for the backward pass of a batch."""
    exact, autocast = batch_size * cost.kept_bytes / 2**20, cost.autocast_bytes(batch_size) / 2**20
    return f"{exact:,.0f} MiB{batch} (float32), {autocast:,.0f} MiB (under autocast)"


def _describe_recipe(trainer: type[nnUNetTrainerExt], network: SegmentationNetwork) -> list[str]:
    """Write the recipe: optimiser and schedule, weight decay, and loss."""
    recipe, variant = trainer.recipe, getattr(trainer, "variant", None)
    initial_lr = variant.initial_lr if variant is not None and variant.initial_lr is not None else recipe.initial_lr
    momentum = f", Nesterov momentum {recipe.momentum}" if recipe.optimizer == "SGD" else ""
    warm_up = f"a warm-up over {recipe.warm_up:.0%} of the epochs and " if recipe.warm_up else ""
    exempt, tensors = len(network.parameters_without_weight_decay()), len(list(network.parameters()))
    loss = f"nnU-Net's loss ({recipe.dice_weight:g} Dice + {recipe.cross_entropy_weight:g} cross-entropy)"
    if len(network.output_strides) > 1:
        weights = recipe.output_weights(len(network.output_strides))
        loss += f", output weights {', '.join(f'{weight:.3f}' for weight in weights)}"
    return [
        f"{recipe.optimizer}{momentum}, learning rate {initial_lr:g} with {warm_up}poly decay",
        f"weight decay {recipe.weight_decay:g} (none on {exempt} of {tensors} tensors)",
        loss,
    ]


def _stride(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a stride; write one number per axis, as 1,2,2") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_plan_options(parser, required=False)
    parser.add_argument("--patch", metavar="N", type=int, nargs="+", help="voxels per axis, instead of a dataset")
    parser.add_argument("--strides", metavar="A,B,C", type=_stride, nargs="+", help="strides, one entry per pooling")
    parser.add_argument("--channels", type=int, default=1, help="input channels (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=2, help="classes with background (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Describe the network of a planned dataset, or of explicit sizes."""
    from nnunetv2_ext.architectures.geometry import Geometry

    find_own_trainer(arguments.tr)
    if arguments.patch is not None and arguments.strides is not None:
        geometry = Geometry.from_strides(arguments.patch, arguments.strides)
        print(
            describe_network(arguments.tr, geometry, input_channels=arguments.channels, num_classes=arguments.classes)
        )
    elif arguments.d is not None and arguments.c is not None:
        print(describe_planned_network(arguments.tr, arguments.d, arguments.c, arguments.p))
    else:
        raise UserError(
            "info describes a network of some size: name a planned dataset (-d and -c), or --patch and --strides."
        )
