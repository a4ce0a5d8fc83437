"""`nnUNetv2_ext info`: a network as it would be built, with its sizes, cost, outputs and recipe."""

from __future__ import annotations

import argparse
import copy
import textwrap
from collections.abc import Sequence
from dataclasses import replace
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


def describe_planned_network(
    trainer_name: str,
    dataset: str,
    configuration: str,
    plans_name: str,
    *,
    patch_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    in_float32: bool = False,
    compiled: bool = False,
) -> str:
    """Describe the network that a trainer would build for a dataset's configuration.

    Args:
        trainer_name: a trainer of this package or a variant of one.
        dataset: number or name.
        configuration: configuration of the plans.
        plans_name: the plans' identifier.
        patch_size: instead of the plan's.
        batch_size: instead of the plan's.
        in_float32: give what is kept for the backward pass in float32 too.
        compiled: predict a step of the compiled network too.

    Raises:
        UserError: for a trainer, dataset, plans or configuration that does not exist.
        ValueError: if the network cannot be built for it.
    """
    find_own_trainer(trainer_name)
    planned = read_planned_dataset(dataset, plans_name)
    settings = planned.configuration(configuration)
    geometry = settings.geometry
    if patch_size is not None:
        if len(patch_size) != geometry.spatial_dims:
            raise UserError(
                f"--patch has {len(patch_size)} numbers, and {configuration} has {geometry.spatial_dims} axes: give "
                "one number per axis."
            )
        geometry = replace(geometry, patch_size=tuple(patch_size))
    return describe_network(
        trainer_name,
        geometry,
        input_channels=settings.input_channels,
        num_classes=settings.num_classes,
        batch_size=batch_size or settings.batch_size,
        title=f"{planned.folder.name}, {configuration}, {plans_name}",
        in_float32=in_float32,
        compiled=compiled,
        regions=settings.plans_manager.get_label_manager(planned.dataset_json).has_regions,
    )


def describe_network(
    trainer_name: str,
    geometry: Geometry,
    *,
    input_channels: int,
    num_classes: int,
    batch_size: int | None = None,
    title: str | None = None,
    in_float32: bool = False,
    regions: bool = False,
    compiled: bool = False,
) -> str:
    """Describe the network that a trainer would build for a geometry.

    Args:
        trainer_name: a trainer of this package or a variant of one.
        geometry: the sizes.
        input_channels: channels of the input.
        num_classes: channels of the logits.
        batch_size: batch size of the plan, if there is one; memory is given for one sample and for this many.
        title: what the geometry belongs to.
        in_float32: give what is kept for the backward pass in float32 too.
        regions: whether the classes are regions that may overlap.
        compiled: predict a step of the compiled network too.

    Raises:
        UserError: for an unknown trainer.
        ValueError: if the network cannot be built for the geometry.
    """
    trainer = find_own_trainer(trainer_name)
    variant = getattr(trainer, "variant", None)
    if variant is not None and variant.batch_size is not None:
        batch_size = variant.batch_size
    networks: list[SegmentationNetwork] = []

    def build() -> SegmentationNetwork:
        networks.append(trainer.build_network(geometry, input_channels, num_classes))
        # Finding the cost changes where the tensors are.
        networks.extend(copy.deepcopy(networks[0]) for _ in range(2))
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
        ("kept for backward", _kept(cost, 1, in_float32)),
        *([("", _kept(cost, batch_size, in_float32, batch_size))] if batch_size is not None else []),
        ("training step", _predict(trainer_name, networks[0], geometry, num_classes, batch_size or 1, regions)),
        *(
            [("compiled", _predict(trainer_name, networks[1], geometry, num_classes, batch_size or 1, regions, True))]
            if compiled
            else []
        ),
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


def _kept(cost: Cost, samples: int, in_float32: bool, batch: int | None = None) -> str:
    """Write what a forward pass keeps for the backward pass of a batch."""
    exact, autocast = samples * cost.kept_bytes / 2**20, cost.autocast_bytes(samples) / 2**20
    of_batch = "" if batch is None else f" for the batch of {batch}"
    plain = f"{exact:,.0f} MiB{of_batch} (float32), " if in_float32 else ""
    return f"{plain}{autocast:,.0f} MiB{'' if plain else of_batch} (under autocast)"


def _predict(
    trainer_name: str,
    network: SegmentationNetwork,
    geometry: Geometry,
    num_classes: int,
    batch_size: int,
    regions: bool,
    compiled: bool = False,
) -> str:
    """Write the memory of a training step, and whether the GPU that is there has it."""
    from nnunetv2_ext.planning.memory import COMPILED_ERROR, ERROR, GIBIBYTE
    from nnunetv2_ext.planning.networks import find_trained_network
    from nnunetv2_ext.planning.plan import memory_of_card

    trained = replace(find_trained_network(trainer_name), make=lambda *_: network)
    memory = trained.predict(
        geometry, network.input_channels, num_classes, batch_size, regions=regions, compiled=compiled
    )
    # Only few compiled steps could be held against a measured one; docs/planning.md has them.
    certainty = f"error {COMPILED_ERROR if compiled else ERROR:.0%} or less"
    if compiled:
        certainty += " in the few that were measured"
    text = (
        f"about {memory.total / GIBIBYTE:.1f} GB of a GPU with a batch of {batch_size}, of which tensors "
        f"{memory.peak / GIBIBYTE:.1f} GB (predicted, {certainty})"
    )
    card = memory_of_card()
    if card is None:
        return text
    return f"{text}; {'fits' if memory.total <= card * GIBIBYTE else 'does not fit'} the {card:.1f} GB of this GPU"


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


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of samples; write one of at least 1")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_plan_options(parser, required=False)
    parser.add_argument(
        "--patch", metavar="N", type=int, nargs="+", help="voxels per axis, instead of the plan's or of a dataset"
    )
    parser.add_argument("--strides", metavar="A,B,C", type=_stride, nargs="+", help="strides, one entry per pooling")
    parser.add_argument("--batch", metavar="N", type=_count, help="samples per step, instead of the plan's")
    parser.add_argument("--float32", action="store_true", help="what is kept for the backward pass in float32 too")
    parser.add_argument("--compiled", action="store_true", help="the step of the compiled network too; takes longer")
    parser.add_argument("--channels", type=int, default=1, help="input channels (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=2, help="classes with background (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Describe the network of a planned dataset, or of explicit sizes."""
    from nnunetv2_ext.architectures.geometry import Geometry

    trainer = find_own_trainer(arguments.tr)
    variant = getattr(trainer, "variant", None)
    in_float32 = arguments.float32 or (variant is not None and variant.no_amp)
    if arguments.patch is not None and arguments.strides is not None:
        geometry = Geometry.from_strides(arguments.patch, arguments.strides)
        text = describe_network(
            arguments.tr,
            geometry,
            input_channels=arguments.channels,
            num_classes=arguments.classes,
            batch_size=arguments.batch,
            in_float32=in_float32,
            compiled=arguments.compiled,
        )
    elif arguments.d is not None and arguments.c is not None:
        text = describe_planned_network(
            arguments.tr,
            arguments.d,
            arguments.c,
            arguments.p,
            patch_size=arguments.patch,
            batch_size=arguments.batch,
            in_float32=in_float32,
            compiled=arguments.compiled,
        )
    else:
        raise UserError(
            "info describes a network of some size: name a planned dataset (-d and -c), or --patch and --strides."
        )
    print(text)
