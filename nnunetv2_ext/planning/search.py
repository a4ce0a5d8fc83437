"""Which patches of a configuration fit into a memory target, with as few whole predictions as that takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.planning.memory import GIBIBYTE, StepMemory
from nnunetv2_ext.planning.networks import TrainedNetwork, padding_waste

__all__ = ["MOST_WASTE", "Affordable", "Refused"]

# Share of padding above which a patch is passed over for a smaller one that the network fills.
MOST_WASTE = 0.25
# A patch whose memory, scaled by its voxels from one that was predicted, is above the target by this factor is not
# predicted itself: it does not fit.
CLEARLY_ABOVE = 1.3


class Refused(Exception):  # noqa: N818
    """A network refuses the sizes of a patch."""


@dataclass
class Affordable:
    """Predictions for all networks that a plan must serve, each made once.

    Attributes:
        networks: that the plan must serve.
        target: GB of the GPU, in units of 2**30 bytes.
        num_classes: channels of the logits.
        regions: whether the classes are regions that may overlap.
        known: the predictions.
        exact: predict whatever decides; without, what is known of other patches is scaled by the voxels.
    """

    networks: Sequence[TrainedNetwork]
    target: float
    num_classes: int
    regions: bool
    exact: bool = True
    known: dict[tuple, StepMemory] = field(default_factory=dict)
    _waste: dict[tuple, float] = field(default_factory=dict)

    @property
    def target_bytes(self) -> float:
        """The target."""
        return self.target * GIBIBYTE

    def predict(self, network: TrainedNetwork, geometry: Geometry, channels: int, batch_size: int) -> StepMemory:
        """Predict the memory of one network.

        Raises:
            Refused: if it refuses the sizes.
        """
        key = (network.name, geometry, channels, batch_size)
        if key not in self.known:
            try:
                self.known[key] = network.predict(
                    geometry, channels, self.num_classes, batch_size, regions=self.regions
                )
            except ValueError as error:
                raise Refused(f"{network.name} refuses patch size {geometry.patch_size}: {error}") from error
        return self.known[key]

    def total(self, geometry: Geometry, channels: int, batch_size: int) -> int:
        """Return the bytes that the most demanding network takes.

        Raises:
            Refused: if one refuses the sizes.
        """
        return max(self.predict(network, geometry, channels, batch_size).total for network in self.networks)

    def fits(self, geometry: Geometry, channels: int, batch_size: int) -> bool:
        """Return whether all networks fit into the target; one that refuses the sizes does not."""
        try:
            for network in self.networks:
                expected = self._scale(network, geometry, channels, batch_size)
                if expected is None or (self.exact and expected <= CLEARLY_ABOVE * self.target_bytes):
                    expected = self.predict(network, geometry, channels, batch_size).total
                if expected > self.target_bytes:
                    return False
        except Refused:
            return False
        return True

    def _scale(self, network: TrainedNetwork, geometry: Geometry, channels: int, batch_size: int) -> float | None:
        """Expect the bytes of a patch from the nearest one that was predicted; None if there is none."""
        voxels = math.prod(geometry.patch_size) * batch_size
        known = [
            (math.prod(patch.patch_size) * batch, memory)
            for (name, patch, of_channels, batch), memory in self.known.items()
            if (name, patch.spatial_dims, of_channels) == (network.name, geometry.spatial_dims, channels)
        ]
        if not known:
            return None
        of_voxels, memory = min(known, key=lambda each: abs(math.log(each[0] / voxels)))
        if self.exact and memory.least > self.target_bytes:
            return math.inf
        return memory.least + (memory.total - memory.least) * voxels / of_voxels

    def largest_batch(self, geometry: Geometry, channels: int, least: int, most: int) -> int:
        """Return the largest batch that fits, between a least one that does and a most one."""
        if not self.exact or most <= least or any(network.batch_size is not None for network in self.networks):
            return least
        few = self.total(geometry, channels, least)
        slope = max(1.0, self.total(geometry, channels, least + 1) - few)
        fits, over, batch, memory = least, most + 1, least, few
        while over - fits > 1:
            # Memory grows nearly linearly, so the next try is close; it never leaves what is still open.
            batch = min(max(batch + math.floor((self.target_bytes - memory) / slope), fits + 1), over - 1)
            memory = self.total(geometry, channels, batch)
            slope = max(1.0, (memory - few) / (batch - least))
            fits, over = (batch, over) if memory <= self.target_bytes else (fits, batch)
        return fits

    def waste(self, geometry: Geometry, channels: int) -> float:
        """Return the largest share of padding among the networks."""
        key = (geometry, channels)
        if key not in self._waste:
            try:
                self._waste[key] = max(
                    padding_waste(network.build(geometry, channels, self.num_classes)) for network in self.networks
                )
            except ValueError:
                self._waste[key] = math.inf
        return self._waste[key]
