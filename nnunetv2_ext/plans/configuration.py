"""The one reader of what nnU-Net's planner decided for a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_ext.architectures.geometry import Geometry, PlannedNetwork

__all__ = ["PlannedConfiguration", "read_configuration", "read_geometry"]


@dataclass(frozen=True)
class PlannedConfiguration:
    """One configuration of a dataset's plans.

    Attributes:
        plans_manager: nnU-Net's own view of the plans, for calls of nnU-Net that take it.
        configuration_manager: nnU-Net's own view of the configuration.
        input_channels: channels of the network's input, those of a cascade's previous stage included.
        num_classes: channels of the logits.
    """

    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    input_channels: int
    num_classes: int

    @property
    def geometry(self) -> Geometry:
        """Sizes of the network.

        Raises:
            ValueError: if the plan names another network than a U-Net of nnU-Net's planners.
        """
        return read_geometry(self.configuration_manager)

    @property
    def batch_size(self) -> int:
        """Samples per training step."""
        return self.configuration_manager.batch_size

    @property
    def previous_stage(self) -> str | None:
        """Configuration whose predictions this one needs, in a cascade."""
        return self.configuration_manager.previous_stage_name


def read_configuration(plans: dict[str, Any], dataset_json: dict[str, Any], name: str) -> PlannedConfiguration:
    """Read a configuration, with what it inherits from others.

    Args:
        plans: content of a plans file.
        dataset_json: content of the dataset's dataset.json.
        name: name of a configuration that the plans hold.
    """
    plans_manager = PlansManager(plans)
    configuration_manager = plans_manager.get_configuration(name)
    return PlannedConfiguration(
        plans_manager,
        configuration_manager,
        input_channels=determine_num_input_channels(plans_manager, configuration_manager, dataset_json),
        num_classes=plans_manager.get_label_manager(dataset_json).num_segmentation_heads,
    )


def read_geometry(configuration: ConfigurationManager) -> Geometry:
    """Read the sizes of a configuration that one of nnU-Net's planners made for a U-Net.

    Raises:
        ValueError: if the plan names another kind of network, or its sizes contradict each other.
    """
    planned = configuration.network_arch_init_kwargs
    n_conv = planned.get("n_conv_per_stage", planned.get("n_blocks_per_stage"))
    lacking = [key for key in ("strides", "kernel_sizes", "features_per_stage") if key not in planned]
    if lacking or n_conv is None:
        raise ValueError(
            f"The plans name the network {configuration.network_arch_class_name}, whose settings do not hold a U-Net's "
            f"{', '.join(lacking) or 'convolutions per stage'}: use plans that nnU-Net's planner made for a U-Net "
            "(-p nnUNetPlans), or train these plans with nnU-Net's own trainer (-tr nnUNetTrainer)."
        )
    n_stages = len(planned["strides"])
    return Geometry(
        patch_size=configuration.patch_size,
        strides=planned["strides"],
        kernel_sizes=planned["kernel_sizes"],
        features=planned["features_per_stage"],
        n_conv_per_stage=(n_conv,) * n_stages if isinstance(n_conv, int) else tuple(n_conv),
        network=PlannedNetwork(
            class_name=configuration.network_arch_class_name,
            arguments=planned,
            imports=tuple(configuration.network_arch_init_kwargs_req_import),
        ),
    )
