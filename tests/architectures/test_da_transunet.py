"""DA-TransUNet against the authors' numbers, and the properties that no number at one size shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.cost import bytes_kept_for_backward
from nnunetv2_ext.architectures.da_transunet import (
    PRESETS,
    ChannelAttention,
    DATransUNet,
    DualAttention,
    PositionAttention,
    ResNetStem,
    Transformer,
    TransformerLayer,
)
from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.weights import from_authors
from nnunetv2_ext.weights.authors import fit_tensors
from nnunetv2_ext.weights.da_transunet import authors_name, build
from nnunetv2_ext.weights.files import WeightsError
from tests import golden_files

MIB = 2**20
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


# The full-width files hold float32 numbers of a deep network that amplifies rounding: computed in float64, this network
# is 2.8e-5 and 2.5e-5 from them, and in float32 between 1e-5 and 4e-5, by the kernels that a CPU has.
ROUNDING_AT_FULL_WIDTH = 4e-5


@pytest.mark.parametrize("name", GOLDEN)
def test_gives_the_authors_numbers(name: str) -> None:
    golden = golden_files.load(name)
    network = from_authors("reca_datransunet", golden["config"], golden_files.make_state_dict(golden)).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == golden["trainable_parameters"]
    (x,) = golden_files.make_inputs(golden)
    with torch.no_grad():
        # The logits hardly depend on the attention with these weights; the tokens do.
        outputs = [network(x), network.encode(x)[0]]
    assert golden_files.largest_error(golden, outputs) <= (ROUNDING_AT_FULL_WIDTH if "paper" in name else 1e-5)


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
    assert golden_files.largest_error(golden, outputs) <= (ROUNDING_AT_FULL_WIDTH if "paper" in name else 1e-5)


@pytest.mark.parametrize("variant", ["plain", "reca"])
def test_encoder_gives_the_authors_numbers(variant: str) -> None:
    """At 32 x 32, where the position table counts."""
    golden = golden_files.load(f"reca_2d_encoder-{variant}")
    network = build(golden["config"])
    tensors = golden_files.make_state_dict(golden)
    encoder = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("decoder.")}

    def naming(name: str) -> str:
        return authors_name(name).removeprefix("transformer.")

    network.load_state_dict(fit_tensors(encoder, tensors, naming, golden["system"]), strict=False)
    assert (
        sum(network.get_parameter(name).numel() for name, _ in network.named_parameters() if name in encoder)
        == (golden["trainable_parameters"])
    )
    with torch.no_grad():
        tokens, _ = network.eval().encode(*golden_files.make_inputs(golden))
    assert golden_files.largest_error(golden, [tokens]) <= 1e-5


def test_tensors_that_the_authors_never_use_may_be_there() -> None:
    golden = golden_files.load("reca_datransunet-reca-small")
    tensors = golden_files.make_state_dict(golden)
    unused = (
        *("decoder.blocks.0.da3.conv6.1.weight", "transformer.embeddings.DAblock1.conv7.1.bias"),
        *("decoder.blocks.0.da1.sa.gamma", "decoder.blocks.3.da2.conv5a.0.weight", "decoder.blocks.1.da3.sc.gamma"),
    )
    from_authors("reca_datransunet", golden["config"], {**tensors, **{name: torch.zeros(1) for name in unused}})
    with pytest.raises(WeightsError, match=r"decoder\.blocks\.0\.da3\.conv9\.weight has no place"):
        from_authors(
            "reca_datransunet", golden["config"], {**tensors, "decoder.blocks.0.da3.conv9.weight": torch.zeros(1)}
        )
    with pytest.raises(ValueError, match="n_skip 2"):
        from_authors("reca_datransunet", {**golden["config"], "n_skip": 2}, tensors)


def small_network(**changes) -> DATransUNet:
    """Build a network with every part of the full one, in well under a second."""
    settings = {
        "patch_size": (80, 56),
        "stem_width": 32,
        "resnet_layers": (1, 1, 1),
        "hidden_size": 128,
        "mlp_dim": 128,
        "num_heads": 4,
        "num_layers": 3,
        "decoder_head_channels": 16,
        "decoder_channels": (16, 16, 8, 8),
    }
    torch.manual_seed(0)
    return DATransUNet(changes.pop("input_channels", 1), changes.pop("num_classes", 3), **{**settings, **changes})


def plain_and_recurrent(prepare, **changes) -> tuple[Tensor, Tensor]:
    """Return the tokens of the two networks with the same weights, which `prepare` changes first."""
    recurrent, plain = small_network(reca=True, **changes).eval(), small_network(reca=False, **changes).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in recurrent.transformer.layers:
            # Attention that is far from uniform shows a wrong query.
            nn.init.normal_(layer.attention.query.weight, std=0.3)
            nn.init.normal_(layer.attention.key.weight, std=0.3)
        prepare(recurrent)
        plain.load_state_dict(recurrent.state_dict())
        x = torch.randn(1, 1, *recurrent.padded_size)
        return plain.encode(x)[0], recurrent.encode(x)[0]


def zero(network: DATransUNet, part: str, layers: slice) -> None:
    """Set the queries or keys of layers to zero."""
    for layer in list(network.transformer.layers)[layers]:
        for tensor in layer.attention.get_submodule(part).parameters():
            tensor.zero_()


def test_plain_and_recurrent_networks_have_the_same_tensors() -> None:
    with torch.device("meta"):
        shapes = [
            {name: tensor.shape for name, tensor in DATransUNet(**PRESETS["synapse"], reca=reca).state_dict().items()}
            for reca in (False, True)
        ]
    assert shapes[0] == shapes[1]


def test_plain_and_recurrent_networks_differ() -> None:
    plain, recurrent = plain_and_recurrent(lambda network: None)
    assert (plain - recurrent).abs().max() > 1e-2 * plain.abs().max()


def test_run_of_one_layer_is_plain() -> None:
    plain, recurrent = plain_and_recurrent(lambda network: None, num_layers=1)
    assert torch.equal(plain, recurrent)


def test_without_keys_the_queries_do_not_count() -> None:
    plain, recurrent = plain_and_recurrent(lambda network: zero(network, "key", slice(None)))
    assert torch.allclose(plain, recurrent, atol=1e-5 * float(plain.abs().max()))


def test_later_layers_attend_with_the_first_query() -> None:
    plain, recurrent = plain_and_recurrent(lambda network: zero(network, "query", slice(1, None)))
    assert (plain - recurrent).abs().max() > 1e-2 * plain.abs().max()


def test_state_is_handed_through_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def forward(self: TransformerLayer, x, state=None, original=TransformerLayer.forward):
        given.append(state)
        output, state = original(self, x, state)
        given.append(state)
        return output, state

    monkeypatch.setattr(TransformerLayer, "forward", forward)
    network = small_network(reca=True).eval()
    for _ in range(2):
        given.clear()
        network(torch.randn(1, 1, *network.patch_size))
        assert given[0] is None
        assert given[1] is given[2]
        assert given[3] is given[4]


@pytest.mark.parametrize("reca", [False, True])
@pytest.mark.parametrize("classes", [2, 9])
def test_parameter_counts(classes: int, reca: bool) -> None:
    def count(**changes) -> int:
        with torch.device("meta"):
            network = DATransUNet(**{**PRESETS["synapse"], "num_classes": classes, "reca": reca, **changes})
        return sum(parameter.numel() for parameter in network.parameters())

    assert count() == 106_436_734 + 145 * classes
    if classes == 9:
        assert count(patch_size=(512, 512)) == 107_073_943


def attend_across_positions(layer: PositionAttention, x: Tensor) -> Tensor:
    """Compute PAM in float64 as its definition reads."""
    layer, x = layer.double(), x.double()
    tokens = x.flatten(2).transpose(1, 2)
    query, key, value = layer.query(tokens), layer.key(tokens), layer.value(tokens)
    output = x.clone().flatten(2)
    for sample in range(len(x)):
        for n in range(tokens.shape[1]):
            weights = torch.softmax(torch.stack([query[sample, n] @ k for k in key[sample]]), dim=0)
            output[sample, :, n] += layer.gamma * sum(w * v for w, v in zip(weights, value[sample], strict=True))
    return output.reshape(x.shape)


def attend_across_channels(layer: ChannelAttention, x: Tensor) -> Tensor:
    """Compute CAM in float64 as its definition reads, with the authors' subtraction of the largest product."""
    rows = x.double().flatten(2)
    output = rows.clone()
    for sample in range(len(x)):
        for i, row in enumerate(rows[sample]):
            products = torch.stack([row @ other for other in rows[sample]])
            weights = torch.softmax(products.max() - products, dim=0)
            output[sample, i] += layer.gamma.double() * sum(
                w * other for w, other in zip(weights, rows[sample], strict=True)
            )
    return output.reshape(x.shape)


@pytest.mark.parametrize("attention", ["positions", "channels"])
def test_attentions_are_their_definitions(attention: str) -> None:
    torch.manual_seed(0)
    layer = PositionAttention(16) if attention == "positions" else ChannelAttention()
    nn.init.constant_(layer.gamma, 0.7)
    x = torch.randn(2, 16, 3, 5)
    with torch.no_grad():
        got = layer(x)
        expected = (attend_across_positions if attention == "positions" else attend_across_channels)(layer, x)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_channel_attention_is_exact_under_autocast(dtype: torch.dtype) -> None:
    """Its products are sums over thousands of positions, of which the differences count; fp16 would overflow."""
    torch.manual_seed(0)
    layer = ChannelAttention()
    nn.init.ones_(layer.gamma)
    x = torch.randn(1, 16, 128, 128).relu() + 2 + 0.1 * torch.randn(1, 16, 1, 1)
    assert (x.flatten(2) @ x.flatten(2).transpose(1, 2)).max() > torch.finfo(torch.float16).max
    with torch.no_grad():
        expected = layer(x)
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(layer(x), expected)
            half = layer(x.to(dtype))
    assert torch.equal(half, layer(x.to(dtype).float()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dual_attention_under_autocast(dtype: torch.dtype) -> None:
    """Against float32, the block is as exact as its convolutions are."""
    torch.manual_seed(0)
    block = DualAttention(128).eval()
    for layer in (block.position_attention, block.channel_attention):
        nn.init.ones_(layer.gamma)
    x = torch.randn(1, 128, 24, 24)
    with torch.no_grad():
        expected = block(x)
        with torch.autocast("cpu", dtype=dtype):
            got = block(x).float()
    eps = torch.finfo(dtype).eps
    assert (got - expected).norm() <= 2 * eps * expected.norm()


def test_no_scores_are_kept_for_the_backward_pass() -> None:
    """At 64 x 64 the scores of all pairs of positions would be 64 MiB."""
    x = torch.randn(1, 8, 64, 64, requires_grad=True)
    assert bytes_kept_for_backward(PositionAttention(8), x) < 2 * MIB


def test_first_skip_is_filled_up_with_zeros() -> None:
    torch.manual_seed(0)
    _, (deepest, middle, finest) = ResNetStem(3, 32, (1, 1, 1))(torch.randn(1, 3, 64, 96))
    assert [tuple(skip.shape[1:]) for skip in (deepest, middle, finest)] == [(256, 8, 12), (128, 16, 24), (32, 32, 48)]
    assert middle[..., -1, :].eq(0).all()
    assert middle[..., -1].eq(0).all()
    assert middle[..., :-1, :-1].ne(0).any()


def test_dual_attention_is_on_the_two_deepest_skips() -> None:
    network = small_network()
    assert [isinstance(level.attention, DualAttention) for level in network.decoder.levels] == [
        True,
        True,
        False,
        False,
    ]
    batch_norms = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and (".position_" in name or ".channel_" in name)
    ]
    assert len(batch_norms) == 3 * 4
    assert {(norm.momentum, norm.eps) for norm in batch_norms} == {(0.95, 1e-3)}


def test_initial_values() -> None:
    network = small_network(hidden_size=256)
    assert network.embedding.position.eq(0).all()
    for name, parameter in network.named_parameters():
        assert not name.endswith("gamma") or parameter.eq(0).all()
    layer = network.transformer.layers[0]
    assert layer.fc1.weight.abs().max().item() == pytest.approx((6 / (256 + 128)) ** 0.5, rel=0.01)
    assert 0 < layer.fc1.bias.abs().max() < 1e-5
    assert layer.attention.query.weight.abs().max().item() == pytest.approx(256**-0.5, rel=0.01)
    assert network.parameters_without_weight_decay() >= {
        "embedding.position",
        "embedding.attention.position_attention.gamma",
        "stem.root_norm.weight",
        "transformer.layers.0.attention.query.bias",
        "decoder.head.1.weight",
    }


@pytest.mark.parametrize(
    ("patch", "padded"), [((224, 224), (224, 224)), ((512, 512), (512, 512)), ((56, 40), (64, 48)), ((8, 33), (32, 48))]
)
def test_settings_from_plan(patch: tuple[int, int], padded: tuple[int, int]) -> None:
    settings = DATransUNet.settings_from_plan(Geometry.from_strides(patch, [(2, 2)]))
    assert settings == {"patch_size": patch}
    with torch.device("meta"):
        network = DATransUNet(1, 2, **settings)
    assert network.padded_size == padded
    assert network.embedding.position.shape[1] == padded[0] * padded[1] // 256


def test_one_channel_is_three_equal_ones() -> None:
    grey, colour = small_network(input_channels=1).eval(), small_network(input_channels=3).eval()
    colour.load_state_dict(grey.state_dict())
    x = torch.randn(1, 1, 80, 56)
    with torch.no_grad():
        assert torch.equal(grey(x), colour(x.expand(-1, 3, -1, -1)))


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"built for 1 channels and patch size \(80, 56\), and got 2 channels"):
        small_network()(torch.randn(1, 2, 80, 56))
    with pytest.raises(ValueError, match="stem_width 48 must be a multiple of 32"):
        small_network(stem_width=48)
    with pytest.raises(ValueError, match=r"64 channels is too narrow .* at least 128"):
        small_network(hidden_size=64)
    with pytest.raises(ValueError, match="128 channels must be divisible by the number of heads, 3"):
        small_network(num_heads=3)
    with pytest.raises(ValueError, match="2D network with four decoder levels"):
        small_network(patch_size=(64, 64, 64))


@pytest.mark.parametrize("name", ["dropout", "channel_dropout"])
def test_rates_that_leave_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is 1.0"):
        small_network(**{name: 1.0})
