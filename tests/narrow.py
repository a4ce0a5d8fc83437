"""Networks whose widths no plan sets, made narrow for tests that compute with them; published weights to match."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from nnunetv2_ext.architectures.da_transunet import DATransUNet
from nnunetv2_ext.architectures.danie import DANIE
from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.architectures.nnformer import NNFormer
from nnunetv2_ext.architectures.swin_unet import SwinUNet
from nnunetv2_ext.architectures.swin_unetr import SwinUNETR
from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.trainers import find_trainer
from nnunetv2_ext.trainers.base import nnUNetTrainerExt
from nnunetv2_ext.trainers.pretrained import ImageNetStartMixin

# Constructor arguments over those of trainer and plan; networks that take their widths from the plan are not here.
NARROW: dict[type[SegmentationNetwork], Mapping[str, Any]] = {
    DANIE: {
        "widths": [32, 32, 32, 32],
        "backbone_settings": {"embed_dim": [32, 32, 32, 32], "depths": [1, 1, 1, 1], "stem_width": [16, 32]},
    },
    NNFormer: {"embed_dim": 16, "num_heads": [2, 4, 8, 16], "depths": [2, 1, 1, 1]},
    SwinUNETR: {"feature_size": 8, "num_heads": [1, 2, 4, 8], "depths": [2, 1, 1, 1]},
    SwinUNet: {"embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 2, 4)},
    DATransUNet: {
        "stem_width": 32,
        "resnet_layers": (1, 1, 1),
        "hidden_size": 128,
        "mlp_dim": 128,
        "num_heads": 4,
        "num_layers": 2,
        "decoder_head_channels": 32,
        "decoder_channels": (16, 16, 8, 8),
    },
}
# The same, over those, where training starts from weights of a timm model that cannot be made narrow in this.
NARROW_PUBLISHED: dict[type[SegmentationNetwork], Mapping[str, Any]] = {
    DATransUNet: {"stem_width": 64, "resnet_layers": (3, 4, 9)},
}
# Arguments of timm's models that fit published weights to an input: the published file is of timm's own sizes.
_FITTED = ("img_size", "in_chans")


@contextmanager
def narrow_networks() -> Iterator[None]:
    """Let every trainer build its network narrow, for training and for prediction."""
    full = nnUNetTrainerExt.__dict__["resolve_settings"]

    def resolve_settings(cls: type[nnUNetTrainerExt], geometry: Geometry) -> dict[str, Any]:
        narrow = dict(NARROW.get(cls.network_class, {}))
        if issubclass(cls, ImageNetStartMixin):
            narrow |= NARROW_PUBLISHED.get(cls.network_class, {})
        return {**full.__func__(cls, geometry), **narrow}

    nnUNetTrainerExt.resolve_settings = classmethod(resolve_settings)
    try:
        yield
    finally:
        nnUNetTrainerExt.resolve_settings = full


def write_published_weights(folder: Path) -> None:
    """Write, under timm's names, random weights for the narrow networks that start from ImageNet weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with narrow_networks():
        for entry in TRAINERS:
            if not entry.imagenet:
                continue
            trainer = find_trainer(entry.name)
            weights = trainer.imagenet_weights(trainer.build_network(Geometry.from_strides((64, 64), [(2, 2)]), 3, 2))
            path = folder / f"{weights.model}.safetensors"
            if not path.exists():
                arguments = {key: value for key, value in weights.arguments.items() if key not in _FITTED}
                save_file(timm.create_model(weights.model, **arguments).state_dict(), path)
