"""Which published ImageNet weights DANIE's self-attention stream starts from."""

from __future__ import annotations

import re
from typing import Any

from nnunetv2_ext.architectures.danie import DANIE
from nnunetv2_ext.weights.files import WeightsError
from nnunetv2_ext.weights.imagenet import ImageNetWeights, Source

__all__ = ["imagenet_weights"]

_PREFIX = "sap."
# timm's own norm after the last stage and its classifier; DANIE takes the maps as they leave the stages.
_AFTER_THE_STAGES = re.compile(r"^(norm|head)\.")


def _source(name: str) -> Source | None:
    if not name.startswith(_PREFIX):
        return None
    # timm calls stage 0 of a model that gives its maps `stages_0`, and of one that classifies `stages.0`.
    return Source(re.sub(r"^stages_(\d+)\.", r"stages.\1.", name.removeprefix(_PREFIX)))


def imagenet_weights(network: DANIE) -> ImageNetWeights:
    """Name the weights of a network's backbone, which cover its self-attention stream (SAP) wholly, and only it.

    timm fits them to the number of input channels (for one channel the sum of the three planes; otherwise the planes
    in turn, scaled by 3 / channels) and, in backbones other than the `rmlp` ones, resizes tables of positions.

    Raises:
        WeightsError: if the network has no such stream.
    """
    if not hasattr(network, "sap"):
        raise WeightsError(
            "DANIE without self_attention has no backbone that ImageNet weights could go into: train it from "
            "random weights."
        )
    published: Any = network.sap.pretrained_cfg
    return ImageNetWeights(
        model=f"{published['architecture']}.{published['tag']}",
        source=_source,
        unused=_AFTER_THE_STAGES,
        arguments={
            "img_size": network.padded_size,
            "in_chans": network.input_channels,
            **network.backbone_settings,
        },
    )
