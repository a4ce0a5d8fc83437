"""Networks whose widths do not follow the plan, made small enough to compute with on two cores."""

from __future__ import annotations

from typing import Any

import pytest

from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.trainers import find_trainer

# Constructor arguments, by the name of the network's class; over what its trainers fix.
NARROW: dict[str, dict[str, Any]] = {
    "SwinUNet": {"embed_dim": 8, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 2, 4)},
    "DATransUNet": {
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


def narrow_settings(trainer: type) -> dict[str, Any]:
    """Give what a trainer fixes, and over it the narrow settings of its network."""
    return {**trainer.network_settings, **NARROW.get(trainer.network_class.__name__, {})}


def narrowed(trainer: type) -> type:
    """Give a trainer that trains a narrow network, under another name."""
    return type(f"{trainer.__name__}Narrow", (trainer,), {"network_settings": narrow_settings(trainer)})


def narrow_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every trainer of the catalog, and so its variants, train a narrow network under its own name."""
    for entry in TRAINERS:
        trainer = find_trainer(entry.name)
        monkeypatch.setattr(trainer, "network_settings", narrow_settings(trainer))
