"""Networks whose widths no plan sets, made narrow for tests that compute with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.architectures.nnformer import NNFormer
from nnunetv2_ext.architectures.swin_unetr import SwinUNETR
from nnunetv2_ext.trainers.base import nnUNetTrainerExt

# Constructor arguments over those of trainer and plan; networks that take their widths from the plan are not here.
NARROW: dict[type[SegmentationNetwork], Mapping[str, Any]] = {
    NNFormer: {"embed_dim": 16, "num_heads": [2, 4, 8, 16], "depths": [2, 1, 1, 1]},
    SwinUNETR: {"feature_size": 8, "num_heads": [1, 2, 4, 8], "depths": [2, 1, 1, 1]},
}


@contextmanager
def narrow_networks() -> Iterator[None]:
    """Let every trainer build its network narrow, for training and for prediction."""
    full = nnUNetTrainerExt.__dict__["resolve_settings"]

    def resolve_settings(cls: type[nnUNetTrainerExt], geometry: Geometry) -> dict[str, Any]:
        return {**full.__func__(cls, geometry), **NARROW.get(cls.network_class, {})}

    nnUNetTrainerExt.resolve_settings = classmethod(resolve_settings)
    try:
        yield
    finally:
        nnUNetTrainerExt.resolve_settings = full
