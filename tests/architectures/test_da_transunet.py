"""DA-TransUNet against the authors' numbers, and the properties that no number at one size shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.da_transunet import (
    ChannelAttention,
    DATransUNet,
    DualAttention,
    PositionAttention,
    ResNetStem,
    Transformer,
)
from nnunetv2_ext.weights import from_authors
from nnunetv2_ext.weights.authors import fit_tensors
from nnunetv2_ext.weights.da_transunet import authors_name, build
from tests import golden_files

GOLDEN = [
    pytest.param(name, marks=pytest.mark.slow if name.endswith("paper") else ())
    for name in golden_files.names("reca_datransunet-")
]


def load_part(module: nn.Module, golden: dict, ours: str, theirs: str) -> nn.Module:
    """Load the authors' tensors into a part of the network: `ours` is its place there, `theirs` the authors' place."""
    tensors = fit_tensors(
        module.state_dict(),
        golden_files.make_state_dict(golden),
        lambda name: authors_name(f"{ours}{name}").removeprefix(theirs),
        golden["system"],
    )
    module.load_state_dict(tensors)
    return module.eval()


@pytest.mark.parametrize("name", GOLDEN)
def test_gives_the_authors_numbers(name: str) -> None:
    golden = golden_files.load(name)
    network = from_authors("reca_datransunet", golden["config"], golden_files.make_state_dict(golden)).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == golden["trainable_parameters"]
    (x,) = golden_files.make_inputs(golden)
    with torch.no_grad():
        # The logits hardly depend on the attention with these weights; the tokens do.
        outputs = [network(x), network.encode(x)[0]]
    assert golden_files.largest_error(golden, outputs) <= 1e-5


def vit(config: dict) -> Transformer:
    return Transformer(
        config["hidden_size"],
        num_layers=config["num_layers"],
        num_heads=config["num_heads"],
        mlp_dim=config["mlp_dim"],
        dropout=0.1,
        reca=config["reca"],
        checkpointing=False,
    )


DUAL_ATTENTION = ("embedding.attention.", "transformer.embeddings.DAblock1.")
PARTS = {
    "reca_2d_pam": (
        lambda config: PositionAttention(config["channels"]),
        f"{DUAL_ATTENTION[0]}position_attention.",
        f"{DUAL_ATTENTION[1]}sa.",
    ),
    "reca_2d_cam": (
        lambda config: ChannelAttention(),
        f"{DUAL_ATTENTION[0]}channel_attention.",
        f"{DUAL_ATTENTION[1]}sc.",
    ),
    "reca_2d_dablock": (lambda config: DualAttention(config["in_channels"]), *DUAL_ATTENTION),
    "reca_2d_r50stem": (
        lambda config: ResNetStem(3, config["stem_width"], config["resnet_layers"]),
        "stem.",
        "transformer.embeddings.hybrid_model.",
    ),
    "reca_2d_vit-plain": (vit, "transformer.", "transformer.encoder."),
    "reca_2d_vit-reca": (vit, "transformer.", "transformer.encoder."),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_give_the_authors_numbers(name: str) -> None:
    golden = golden_files.load(name)
    make, *places = PARTS[name]
    module = load_part(make(golden["config"]), golden, *places)
    assert sum(parameter.numel() for parameter in module.parameters()) == golden["trainable_parameters"]
    with torch.no_grad():
        outputs = module(*golden_files.make_inputs(golden))
    outputs = [outputs] if isinstance(outputs, Tensor) else [outputs[0], *outputs[1]]
    assert golden_files.largest_error(golden, outputs) <= 1e-5


@pytest.mark.parametrize("variant", ["plain", "reca"])
def test_encoder_gives_the_authors_numbers(variant: str) -> None:
    """At 32 x 32, where the position table counts."""
    golden = golden_files.load(f"reca_2d_encoder-{variant}")
    network = build(golden["config"])
    tensors = golden_files.make_state_dict(golden)
    encoder = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("decoder.")}
    naming = lambda name: authors_name(name).removeprefix("transformer.")  # noqa: E731
    network.load_state_dict(fit_tensors(encoder, tensors, naming, golden["system"]), strict=False)
    assert (
        sum(network.get_parameter(name).numel() for name, _ in network.named_parameters() if name in encoder)
        == (golden["trainable_parameters"])
    )
    with torch.no_grad():
        tokens, _ = network.eval().encode(*golden_files.make_inputs(golden))
    assert golden_files.largest_error(golden, [tokens]) <= 1e-5
