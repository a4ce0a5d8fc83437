"""Dual cross-attention (DCA) on the skip connections of the very network that nnU-Net has planned.

The planned network, plain or residual, stays what it is: same class, same arguments, same parameters under the same
names. Between its encoder and its decoder, DCA replaces the skips of its first stages; deeper skips, which are smaller
than the token grid, and the bottleneck pass by.

Difference from the authors, who put DCA on the last convolution of a stage: here it reads the stage's output, after
norm and activation, because the planned encoders hand out nothing else.
"""

from __future__ import annotations

import itertools
import operator
import pydoc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from nnunetv2_ext.architectures.dca import DCA, choose_token_stage
from nnunetv2_ext.architectures.geometry import Geometry, default_network, stage_grids
from nnunetv2_ext.architectures.network import SegmentationNetwork

__all__ = ["WRAPPED_NETWORKS", "DCAPlannedNetwork"]

# Networks whose forward pass is decoder(encoder(x)), with one skip for each stage.
WRAPPED_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")
_WHERE_TO_FIND_THE_ENCODER = ("key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe")


def _build(class_name: str, arguments: Mapping[str, Any], imports: Sequence[str], **further: Any) -> nn.Module:
    """Build and initialise a planned network as nnU-Net does."""
    # Like nnU-Net, look at the last part of the name only: over the years the classes have moved.
    name = class_name.rpartition(".")[2]
    if name not in WRAPPED_NETWORKS:
        raise ValueError(
            f"The plans name the network {class_name}, and DCA can be put into {' and '.join(WRAPPED_NETWORKS)} only: "
            "use plans of nnU-Net's planners (-p nnUNetPlans, -p nnUNetResEncUNetMPlans)."
        )
    from dynamic_network_architectures.architectures import unet

    located = {key: pydoc.locate(arguments[key]) for key in imports if arguments.get(key) is not None}
    network = getattr(unet, name)(**{**arguments, **located}, **further)
    network.apply(network.initialize)
    return network


class DCAPlannedNetwork(SegmentationNetwork):
    """A planned network with DCA: `decoder(DCA(encoder(x)))`.

    Its state dict is the planned network's and, under `dca.`, the module's. Other input sizes than the patch size work
    where the planned network takes them.

    Args:
        input_channels: channels of the input.
        num_classes: channels of the logits.
        patch_size: voxels per axis; each must be divisible by the product of its strides.
        planned_class: full name of the planned network's class.
        planned_arguments: its constructor's arguments, as a plans file writes them.
        planned_imports: the arguments among them that are names of something to import.
        dca_stages: n, stages whose skips go through DCA.
        token_grid: G; None: the size of the deepest of these skips, whatever the input's size.
        dca_settings: further arguments of `DCA`, over its defaults and the planned network's norm and activation.
        checkpointing: recompute DCA's attention blocks in the backward pass: same numbers, less memory.
        deep_supervision: initial state of `decoder.deep_supervision`. Heads that it leaves unused are frozen.

    Raises:
        ValueError: for a network that cannot be wrapped, or sizes that do not fit together.
    """

    # Of classes that nnU-Net's plan names.
    encoder: Any
    decoder: Any
    served_dims: ClassVar[tuple[int, ...]] = (2, 3)
    beyond_plan: ClassVar[tuple[str, ...]] = ("dca.",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        patch_size: Sequence[int],
        planned_class: str,
        planned_arguments: Mapping[str, Any],
        planned_imports: Sequence[str],
        dca_stages: int,
        token_grid: Sequence[int] | None = None,
        dca_settings: Mapping[str, Any] | None = None,
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        planned = _build(
            planned_class,
            planned_arguments,
            planned_imports,
            input_channels=input_channels,
            num_classes=num_classes,
            deep_supervision=deep_supervision,
        )
        self.input_channels = input_channels
        self.patch_size = tuple(patch_size)
        self.encoder, self.decoder = planned.encoder, planned.decoder
        for name in _WHERE_TO_FIND_THE_ENCODER:
            setattr(self, name, getattr(planned, name, None))

        strides = [tuple(stride) for stride in self.encoder.strides]
        self.grids = stage_grids(self.patch_size, strides)
        n_skips = len(strides) - 1
        if not 1 <= dca_stages <= n_skips:
            raise ValueError(f"dca_stages is {dca_stages}, and this network has {n_skips} skips: give 1 to {n_skips}.")
        self.dca = DCA(
            **{
                "channels": self.encoder.output_channels[:dca_stages],
                "spatial_dims": len(self.patch_size),
                "token_grid": token_grid,
                "map_sizes": self.grids[:dca_stages],
                "norm": self.encoder.norm_op or nn.Identity,
                "norm_kwargs": self.encoder.norm_op_kwargs,
                "activation": self.encoder.nonlin or nn.Identity,
                "activation_kwargs": self.encoder.nonlin_kwargs,
                "checkpointing": checkpointing,
                **(dca_settings or {}),
            }
        )
        cumulative = itertools.accumulate(strides, lambda total, stride: tuple(map(operator.mul, total, stride)))
        self.output_strides = tuple(itertools.islice(cumulative, n_skips))
        if not deep_supervision:
            # Distributed training stops on a trainable parameter that takes no part in a step. The last head is the
            # one at full resolution.
            self.decoder.seg_layers[:-1].requires_grad_(False)

    @classmethod
    def settings_from_plan(cls, geometry: Geometry) -> dict[str, Any]:
        """Turn a plan into constructor arguments.

        The network is the one that the plan names. Its skips go through DCA down to the stage that has nearest to 784
        positions, in ratio; that stage's size is the token grid.
        """
        planned = geometry.network or default_network(geometry)
        return {
            "patch_size": geometry.patch_size,
            "planned_class": planned.class_name,
            "planned_arguments": dict(planned.arguments),
            "planned_imports": planned.imports,
            "dca_stages": 1 + choose_token_stage([geometry.grid(stage) for stage in range(geometry.n_stages - 1)]),
        }

    def describe_stages(self) -> list[dict[str, Any]]:
        """Return one row for each stage of the encoder."""
        n_dca, n_stages = len(self.dca.channels), len(self.grids)
        return [
            {
                "stage": stage,
                "stride": tuple(self.encoder.strides[stage]),
                "grid": self.grids[stage],
                "channels": self.encoder.output_channels[stage],
                "skip": "DCA" if stage < n_dca else "plain" if stage < n_stages - 1 else "none (bottleneck)",
                "token grid": (self.dca.token_grid or self.grids[n_dca - 1]) if stage < n_dca else "-",
            }
            for stage in range(n_stages)
        ]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map an image (B, input_channels, *patch_size) to logits (B, num_classes, *patch_size), or a list of them."""
        skips = self.encoder(x)
        n_dca = len(self.dca.channels)
        outputs = self.decoder([*self.dca(skips[:n_dca]), *skips[n_dca:]])
        # With a single skip the planned decoder has no auxiliary head, and gives a list of one.
        return outputs[0] if isinstance(outputs, list) and len(outputs) == 1 else outputs
