"""Networks whose widths no plan sets, made narrow for tests that compute with them; published weights to match."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.layers.window_attention import position_rows
from nnunetv2_ext.architectures.swin_unetr import SwinUNETR
from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.trainers import find_trainer
from nnunetv2_ext.trainers.base import nnUNetTrainerExt
from nnunetv2_ext.trainers.pretrained import ImageNetStartMixin
from nnunetv2_ext.weights import swinvit
from nnunetv2_ext.weights.swin_unetr import authors_name

# Arguments of timm's models that fit published weights to an input: the published file is of timm's own sizes.
_FITTED = ("img_size", "in_chans")


@contextmanager
def narrow_networks() -> Iterator[None]:
    """Let every trainer build its network narrow, for training and for prediction."""
    full = nnUNetTrainerExt.__dict__["resolve_settings"]

    def resolve_settings(cls: type[nnUNetTrainerExt], geometry: Geometry) -> dict[str, Any]:
        published = cls.narrow_settings if issubclass(cls, ImageNetStartMixin) else {}
        return {**full.__func__(cls, geometry), **cls.network_class.narrow_settings, **published}

    nnUNetTrainerExt.resolve_settings = classmethod(resolve_settings)
    try:
        yield
    finally:
        nnUNetTrainerExt.resolve_settings = full


def write_published_weights(folder: Path) -> None:
    """Write, under published names, random weights for the narrow networks that start from published weights."""
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
        network = find_trainer("nnUNetTrainerSwinUNETR").build_network(
            Geometry.from_strides((32, 32, 32), [(2, 2, 2)] * 4), 1, 2
        )
    torch.save(swinvit_file(network), folder / swinvit.FILE)


def swinvit_file(network: SwinUNETR) -> dict[str, Any]:
    """Make random weights in the layout of MONAI's `model_swinvit.pt` for the encoder of a 3D network."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in network.state_dict().items():
        theirs = authors_name(name)
        if theirs.startswith("swinViT."):
            tensors["module." + theirs.removeprefix("swinViT.").replace("mlp.linear", "mlp.fc")] = (
                torch.randn_like(tensor) * 0.2
            )
    for stage, layer in enumerate(network.encoder.stages, start=1):
        for number in range(len(layer.blocks)):
            rows = position_rows((7, 7, 7), (7, 7, 7), "exact")
            tensors[f"module.layers{stage}.0.blocks.{number}.attn.relative_position_index"] = rows
    heads = {"rotation_head.weight": (4, 8), "contrastive_head.weight": (12, 8), "conv.weight": (1, 8, 1, 1, 1)}
    tensors |= {f"module.{name}": torch.randn(shape) for name, shape in heads.items()}
    return {"state_dict": tensors, "epoch": 1}
