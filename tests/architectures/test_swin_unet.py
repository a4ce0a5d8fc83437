"""Swin-Unet against the authors' numbers, and the properties that no number at one size shows."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_ext.architectures.swin_unet import Stage
from nnunetv2_ext.weights import from_authors
from nnunetv2_ext.weights.authors import fit_tensors
from nnunetv2_ext.weights.swin_unet import IGNORED, authors_name
from tests import golden_files

GOLDEN = [
    pytest.param(name, marks=pytest.mark.slow if name.endswith("paper") else ())
    for name in golden_files.names("reca_swinunet-")
]


@pytest.mark.parametrize("name", GOLDEN)
def test_gives_the_authors_numbers(name: str) -> None:
    golden = golden_files.load(name)
    network = from_authors("reca_swinunet", golden["config"], golden_files.make_state_dict(golden)).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == golden["trainable_parameters"]
    with torch.no_grad():
        logits = network(*golden_files.make_inputs(golden))
    assert golden_files.largest_error(golden, [logits]) <= 1e-5


@pytest.mark.parametrize("variant", ["plain", "reca"])
def test_stage_gives_the_authors_numbers(variant: str) -> None:
    golden = golden_files.load(f"reca_2d_swinstage-{variant}")
    config = golden["config"]
    stage = Stage(
        config["dim"],
        config["resolution"],
        num_heads=config["num_heads"],
        window_size=config["window_size"],
        mlp_ratio=config["mlp_ratio"],
        drop_path=(0.0,) * config["depth"],
        reca=config["reca"],
        checkpointing=False,
    ).eval()
    tensors = {name: t for name, t in golden_files.make_state_dict(golden).items() if not IGNORED.search(name)}
    naming = lambda name: authors_name(f"stages.0.{name}").removeprefix("swin_unet.layers.0.")  # noqa: E731
    stage.load_state_dict(fit_tensors(stage.state_dict(), tensors, naming, golden["system"]))
    (tokens,) = golden_files.make_inputs(golden)
    with torch.no_grad():
        output = stage(tokens.unflatten(1, config["resolution"])).flatten(1, 2)
    assert golden_files.largest_error(golden, [output]) <= 1e-5
