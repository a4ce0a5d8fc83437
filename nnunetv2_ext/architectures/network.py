"""The contract that every network of this package keeps towards the trainers, the plans route and the tools."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from nnunetv2_ext.architectures.geometry import Geometry

__all__ = ["SegmentationNetwork"]


def _list_single_output(network: SegmentationNetwork, _inputs: tuple, logits: Tensor) -> Tensor | list[Tensor]:
    """Put the logits of a network without auxiliary heads into a list where nnU-Net's own trainer expects one."""
    return [logits] if network.decoder.deep_supervision else logits


class SegmentationNetwork(nn.Module, ABC):
    """Base of all networks: what they promise, and nothing of what they compute.

    A network is built as `Network(input_channels, num_classes, *, ..., auxiliary_heads=False, checkpointing=False,
    deep_supervision=False)` with plain, JSON-able arguments and maps (B, input_channels, *patch_size) to logits
    (B, num_classes, *patch_size).

    `decoder.deep_supervision` is a switch that is read at each forward pass: on, a list of logits comes out, highest
    resolution first, one for each entry of `output_strides`; off, one tensor. A network without auxiliary heads ignores
    it. Whether heads exist is the argument `auxiliary_heads`, never the switch: training and prediction build the same
    parameters. Head parameters have `.seg_layers.` in their name, nothing else has.

    Attributes:
        served_dims: the dimensions that the method allows.
        beyond_plan: prefixes of the tensors that a method which extends the planned network has beyond nnU-Net's own
            network of the same plan.
        narrow_settings: constructor arguments that make the network small enough for tests that compute with it; empty
            where the plan sets the widths.
        input_channels: channels of the input.
        patch_size: voxels per axis of the input.
        output_strides: per output, highest resolution first, its stride against the input, per axis.
    """

    served_dims: ClassVar[tuple[int, ...]] = (2, 3)
    beyond_plan: ClassVar[tuple[str, ...]] = ()
    narrow_settings: ClassVar[Mapping[str, Any]] = {}
    input_channels: int
    patch_size: tuple[int, ...]
    output_strides: tuple[tuple[int, ...], ...]
    decoder: Any  # each network's own, with the switch `deep_supervision`

    @property
    def padded_size(self) -> tuple[int, ...]:
        """Voxels per axis that the network computes on; a network that pads its input says here to what."""
        return self.patch_size

    @classmethod
    @abstractmethod
    def settings_from_plan(cls, geometry: Geometry) -> dict[str, Any]:
        """Turn a plan into constructor arguments, as plain data."""

    def check_size(self, x: Tensor) -> None:
        """Raise unless an input has the channels and the size that the network was built for.

        Raises:
            ValueError: naming both sizes.
        """
        if tuple(x.shape[1:]) != (self.input_channels, *self.patch_size):
            raise ValueError(
                f"This {type(self).__name__} was built for {self.input_channels} channels and patch size "
                f"{self.patch_size}, and got {x.shape[1]} channels and size {tuple(x.shape[2:])}: build it for that "
                "size, or tile the image."
            )

    def parameters_without_weight_decay(self) -> set[str]:
        """Name the parameters that an optimiser must not decay."""
        return set()

    def parts_to_compile(self) -> Sequence[Callable[..., Any]]:
        """Return methods of modules that a trainer compiles one by one, equal ones once; none: the network at once."""
        return ()

    @abstractmethod
    def describe_stages(self) -> list[dict[str, Any]]:
        """Return one row for each stage, for people to read: at least `stage`, `grid` and `channels`."""

    @classmethod
    def from_plans_file(
        cls,
        input_channels: int,
        num_classes: int,
        *,
        strides: list[list[int]],
        deep_supervision: bool = False,
        **settings: Any,
    ) -> SegmentationNetwork:
        """Build the network as nnU-Net does when a plans file names it (`nnUNetv2_ext plans` writes such files).

        Args:
            input_channels: channels of the input.
            num_classes: channels of the logits.
            strides: read by nnU-Net alone, which derives the scales of deep supervision from it.
            deep_supervision: initial state of the switch.
            settings: the constructor's other arguments.
        """
        network = cls(input_channels, num_classes, deep_supervision=deep_supervision, **settings)
        if len(network.output_strides) == 1:
            network.register_forward_hook(_list_single_output)
        return network
