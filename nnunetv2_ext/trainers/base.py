"""The one base of all trainers: from nnU-Net's plan to a network, and from a recipe to its training.

Nothing of nnU-Net is copied or patched: each method below hands on to nnU-Net's and changes what is said in its
docstring.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.plans.configuration import PlannedConfiguration, read_configuration, read_geometry
from nnunetv2_ext.trainers.compilation import compile_parts
from nnunetv2_ext.trainers.logs import CurvesMixin
from nnunetv2_ext.trainers.recipes import NNUNET, Recipe
from nnunetv2_ext.trainers.schedule import WarmUpPolyLRScheduler
from nnunetv2_ext.trainers.seeding import SeedMixin

__all__ = ["CHECKPOINTING_VARIABLE", "nnUNetTrainerExt"]

CHECKPOINTING_VARIABLE = "nnUNet_ext_checkpointing"


class nnUNetTrainerExt(CurvesMixin, SeedMixin, nnUNetTrainer):
    """Base of the trainers of this package; not a trainer itself.

    Attributes:
        network_class: the network.
        network_settings: constructor arguments that this trainer fixes, over what the plan says.
        recipe: how it is trained.
        only_dims: dimensions that it serves, if they are fewer than the network's.
    """

    network: Any  # as nnU-Net wraps it
    network_class: ClassVar[type[SegmentationNetwork]]
    network_settings: ClassVar[Mapping[str, Any]] = {}
    recipe: ClassVar[Recipe] = NNUNET
    only_dims: ClassVar[tuple[int, ...]] = ()

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ) -> None:
        """Check that the network can be built for this configuration, before nnU-Net writes a file or uses a GPU.

        Raises:
            ValueError: one sentence that says what does not fit, and what to do.
        """
        skeleton = self.build_skeleton(read_configuration(plans, dataset_json, configuration))
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = self.recipe.initial_lr
        self.weight_decay = self.recipe.weight_decay
        self.output_strides = skeleton.output_strides
        self.enable_deep_supervision = len(self.output_strides) > 1
        if self.device.type == "cpu":
            # Denormal numbers, which appear as training converges, make CPU arithmetic several times slower.
            torch.set_flush_denormal(True)

    @classmethod
    def build_skeleton(cls, planned: PlannedConfiguration) -> SegmentationNetwork:
        """Build the network of a plan without memory for its weights (on torch's meta device)."""
        with torch.device("meta"):
            return cls.build_network(planned.geometry, planned.input_channels, planned.num_classes)

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> SegmentationNetwork:
        """Build the network; nnU-Net calls this on the trainer for training, and on the class for prediction."""
        return cls.build_network(
            read_geometry(configuration_manager), num_input_channels, num_output_channels, enable_deep_supervision
        )

    @classmethod
    def build_network(
        cls, geometry: Geometry, input_channels: int, num_classes: int, deep_supervision: bool = True
    ) -> SegmentationNetwork:
        """Build the network for a geometry.

        Raises:
            ValueError: if the method does not serve the dimension, or the network refuses the sizes.
        """
        if geometry.spatial_dims not in cls.served_dims():
            served = " and ".join(f"{dims}D" for dims in cls.served_dims())
            wanted = f"{geometry.spatial_dims}D"
            others = ", ".join(entry.name for entry in TRAINERS if geometry.spatial_dims in entry.dims)
            raise ValueError(
                f"{cls.__name__} serves {served} configurations only, and this one is {wanted} (patch size "
                f"{geometry.patch_size}): choose another configuration, or a trainer that serves {wanted}: {others}."
            )
        return cls.network_class(
            input_channels,
            num_classes,
            **cls.resolve_settings(geometry),
            checkpointing=os.environ.get(CHECKPOINTING_VARIABLE, "").lower() in ("1", "t", "true"),
            deep_supervision=deep_supervision,
        )

    @classmethod
    def served_dims(cls) -> tuple[int, ...]:
        """Return the dimensions of the configurations that this trainer takes."""
        return cls.only_dims or cls.network_class.served_dims

    @classmethod
    def resolve_settings(cls, geometry: Geometry) -> dict[str, Any]:
        """Return the network's constructor arguments: the plan's, and over them what the trainer fixes."""
        return {**cls.network_class.settings_from_plan(geometry), **cls.network_settings}

    def initialize(self) -> None:
        """Initialise as nnU-Net does, compile in parts a network that has them, and log it as it was built."""
        super().initialize()
        self._compile_in_parts()
        settings = self.resolve_settings(read_geometry(self.configuration_manager))
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        self.print_to_log_file(f"{self.network_class.__name__}: {parameters:,} parameters, settings {settings}")

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmUpPolyLRScheduler]:
        """Make the recipe's optimiser, without weight decay where the network asks for none, and its schedule."""
        exempt = self._plain_network().parameters_without_weight_decay()
        trainable = [
            (name, weight) for name, weight in self._plain_network().named_parameters() if weight.requires_grad
        ]
        groups = [
            {"params": [weight for name, weight in trainable if name not in exempt], "weight_decay": self.weight_decay},
            {"params": [weight for name, weight in trainable if name in exempt], "weight_decay": 0.0},
        ]
        optimizer = self.recipe.make_optimizer([group for group in groups if group["params"]], self.initial_lr)
        warm_up_epochs = self.recipe.warm_up_epochs(self.num_epochs)
        return optimizer, WarmUpPolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, warm_up_epochs)

    def _compile_in_parts(self) -> None:
        """Compile the parts that a network names, in the place of the whole, where nnU-Net has compiled that."""
        network = self._plain_network()
        wrapped = self.network.module if self.is_ddp else self.network
        if wrapped is network or not (parts := network.parts_to_compile()):
            return
        compile_parts(parts)
        # What nnU-Net has wrapped is compiled at the first call, which does not come.
        if self.is_ddp:
            self.network.module = network
        else:
            self.network = network
        self.print_to_log_file(f"Compiled in {len(parts)} parts, equal ones once.")

    def _plain_network(self) -> SegmentationNetwork:
        """Return the network without the wrappers of distributed training and of torch.compile."""
        network: Any = getattr(self.network, "module", self.network) if self.is_ddp else self.network
        return getattr(network, "_orig_mod", network)

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """Scale targets to the network's outputs, which need not be the plan's resolution levels."""
        if not self.enable_deep_supervision:
            return None
        return [[1 / stride for stride in strides] for strides in self.output_strides]

    def _build_loss(self) -> nn.Module:
        """Build nnU-Net's loss, with the recipe's weights of its terms and of the outputs."""
        loss = super()._build_loss()
        one_output = loss.loss if self.enable_deep_supervision else loss
        one_output.weight_dice = self.recipe.dice_weight
        one_output.weight_ce = self.recipe.cross_entropy_weight
        if self.enable_deep_supervision and self.recipe.weigh_last_output:
            loss.weight_factors = self.recipe.output_weights(len(self.output_strides))
        return loss
