"""SwinUNETR against the numbers of the authors and of MONAI, and the properties that no number at one size shows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunetv2_ext.architectures.cost import bytes_kept_for_backward, estimate_cost
from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.swin_unetr import MERGING_ORDERS, SwinUNETR
from nnunetv2_ext.weights import from_authors, swin_unetr
from nnunetv2_ext.weights.authors import fit_tensors
from nnunetv2_ext.weights.files import WeightsError
from tests import golden_files

GOLDEN = [
    pytest.param(name, marks=pytest.mark.slow if name.endswith("-paper") else ())
    for name in golden_files.names("reca_swinunetr-")
]


def small_network(**changes) -> SwinUNETR:
    """Build a 3D network with every part of the full one: windows that are shifted, padded and clipped."""
    torch.manual_seed(0)
    settings = {"patch_size": (32, 32, 16), "feature_size": 4, "num_heads": (1, 1, 2, 2), "window_size": 3}
    settings["strides"] = ((2, 2, 2), (2, 2, 2), (2, 2, 1), (1, 2, 1), (1, 1, 1))
    return SwinUNETR(changes.pop("input_channels", 1), changes.pop("num_classes", 3), **{**settings, **changes})


@pytest.mark.parametrize("name", GOLDEN)
def test_gives_the_authors_numbers(name: str) -> None:
    golden = golden_files.load(name)
    network = from_authors("reca_swinunetr", golden["config"], golden_files.make_state_dict(golden)).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == golden["trainable_parameters"]
    with torch.no_grad():
        outputs = [network(*golden_files.make_inputs(golden))]
    # float32 rounding alone is below 1e-6.
    assert golden_files.largest_error(golden, outputs) <= 1e-5


@pytest.mark.parametrize("name", golden_files.names("reca_3d_swinencoder"))
def test_encoder_gives_the_authors_numbers(name: str) -> None:
    """The maps of all resolutions, where logits hide much."""
    golden = golden_files.load(name)
    encoder = swin_unetr.build(golden["config"]).encoder.eval()
    given = {f"swinViT.{key}": tensor for key, tensor in golden_files.make_state_dict(golden).items()}
    fitting = fit_tensors(
        encoder.state_dict(),
        swin_unetr.SYSTEM.without_ignored(given),
        lambda key: swin_unetr.authors_name(f"encoder.{key}"),
        name,
    )
    encoder.load_state_dict(fitting)
    with torch.no_grad():
        outputs = encoder(*golden_files.make_inputs(golden))
    assert golden_files.largest_error(golden, outputs) <= 1e-5


@pytest.mark.parametrize(("classes", "parameters"), [(5, 62_186_855), (8, 62_187_002), (14, 62_187_296)])
def test_parameter_counts(classes: int, parameters: int) -> None:
    for reca in (False, True):
        with torch.device("meta"):
            network = SwinUNETR(1, classes, reca=reca)
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_parameter_count_in_2d() -> None:
    with torch.device("meta"):
        network = SwinUNETR(1, 5, patch_size=(96, 96))
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_138_127


def test_names_are_those_of_monai() -> None:
    """All 159 names and shapes of a state dict of MONAI's SwinUNETR; the indices among them may be missing."""
    golden = golden_files.load("reca_swinunetr-plain-small")
    network = swin_unetr.build(golden["config"])
    names = [swin_unetr.authors_name(name) for name in network.state_dict()]
    assert len(golden["state_dict"]) == 159
    indices = {f"swinViT.layers{i}.0.blocks.{j}.attn.relative_position_index" for i in range(1, 5) for j in range(2)}
    assert {*names, *indices} == {entry["name"] for entry in golden["state_dict"]}
    monai = {swin_unetr.authors_name(name): torch.rand_like(tensor) for name, tensor in network.state_dict().items()}
    for config in (golden["config"], {**golden["config"], "reca": True}):
        loaded = from_authors("reca_swinunetr", config, monai)
        assert all(torch.equal(tensor, monai[swin_unetr.authors_name(n)]) for n, tensor in loaded.state_dict().items())
    with pytest.raises(WeightsError, match=r"swinViT\.mask has no place in the network"):
        from_authors("reca_swinunetr", golden["config"], {**monai, "swinViT.mask": torch.zeros(1)})


def test_plain_and_recurrent_networks_exchange_weights() -> None:
    plain, reca = small_network().eval(), small_network(reca=True).eval()
    assert {n: t.shape for n, t in plain.state_dict().items()} == {n: t.shape for n, t in reca.state_dict().items()}
    reca.load_state_dict(plain.state_dict())
    x = torch.randn(1, 1, 32, 32, 16)
    with torch.no_grad():
        assert not torch.allclose(plain(x), reca(x), atol=1e-6)
        single = [small_network(depths=(1, 1, 1, 1), reca=choice).eval()(x) for choice in (False, True)]
    assert torch.equal(*single), "stages of one block leave nothing to hand on"


def test_state_starts_anew_in_every_stage() -> None:
    """And blocks of one stage hand it on: who calls whom with what."""
    network = small_network(reca=True, depths=(2, 1, 3, 1))
    received = []
    for stage in network.encoder.stages:
        for block in stage.blocks:
            block.register_forward_pre_hook(lambda _module, inputs: received.append(inputs[1] is not None))
    network(torch.randn(1, 1, 32, 32, 16))
    assert received == [False, True, False, False, True, True, False]


def test_merging_orders() -> None:
    """The authors' order misses two of the eight sub-grids, at merging by 2 x 2 x 2 alone."""
    assert len(set(MERGING_ORDERS["legacy"])) == 6
    assert len(set(MERGING_ORDERS["corrected"])) == 8
    for merging in ("legacy", "corrected"):
        network = small_network(merging=merging)
        offsets = [stage.merging.offsets for stage in network.encoder.stages]
        assert offsets[0] == MERGING_ORDERS[merging]
        assert [len(set(order)) for order in offsets[1:]] == [4, 2, 1]


def test_initial_values() -> None:
    """Torch's own, and position tables of a truncated normal distribution."""
    network = small_network(feature_size=12, num_heads=(3, 3, 3, 3), window_size=7)
    block = network.encoder.stages[0].blocks[0]
    assert block.attention.position.table.shape == (13**3, 3)
    assert block.attention.position.table.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attention.qkv.weight.abs().max().item() == pytest.approx(12**-0.5, rel=0.02)
    assert {module.eps for module in network.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}


@pytest.mark.parametrize(
    ("patch_size", "poolings", "strides", "bottom"),
    [
        ((96, 96, 96), [(2, 2, 2)] * 4, [(2, 2, 2)] * 5, (3, 3, 3)),
        ((128, 128, 128), [(2, 2, 2)] * 5, [(2, 2, 2)] * 5, (4, 4, 4)),
        (
            (40, 224, 192),
            [(1, 2, 2), *[(2, 2, 2)] * 3, (1, 2, 2)],
            [(1, 2, 2), *[(2, 2, 2)] * 3, (1, 2, 2)],
            (5, 7, 6),
        ),
        (
            (20, 320, 256),
            [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)],
            [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)],
            (5, 10, 8),
        ),
        ((160, 128, 112), [*[(2, 2, 2)] * 4, (2, 2, 1)], [*[(2, 2, 2)] * 4, (2, 2, 1)], (5, 4, 7)),
        ((40, 56, 40), [(2, 2, 2)] * 3, [*[(2, 2, 2)] * 3, (1, 1, 1), (1, 1, 1)], (5, 7, 5)),
        (
            (28, 32, 40),
            [(2, 2, 2), (2, 2, 2), (1, 2, 2)],
            [(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 1), (1, 1, 1)],
            (7, 2, 5),
        ),
        ((512, 512), [(2, 2)] * 7, [(2, 2)] * 5, (16, 16)),
        ((56, 40), [(2, 2)] * 3, [*[(2, 2)] * 3, (1, 1), (1, 1)], (7, 5)),
    ],
)
def test_worked_examples_of_plans(patch_size, poolings, strides, bottom) -> None:
    settings = SwinUNETR.settings_from_plan(Geometry.from_strides(patch_size, poolings))
    assert settings == {"patch_size": patch_size, "strides": tuple(strides)}
    with torch.device("meta"):
        network = SwinUNETR(1, 3, **settings)
    assert network.describe_stages()[-1]["grid"] == bottom


def test_a_plan_of_the_authors_size_gives_the_authors_network() -> None:
    with torch.device("meta"):
        planned = SwinUNETR(1, 5, **SwinUNETR.settings_from_plan(Geometry.from_strides((96,) * 3, [(2, 2, 2)] * 4)))
        default = SwinUNETR(1, 5)
    assert planned.describe_stages() == default.describe_stages()
    assert [row["window"] for row in default.describe_stages()] == [(7, 7, 7)] * 3 + [(6, 6, 6), ""]
    assert [row["windows"] for row in default.describe_stages()] == [343, 64, 8, 1, ""]


def test_no_weight_decay_on_norms_biases_and_position_tables() -> None:
    network = small_network()
    exempt = network.parameters_without_weight_decay()
    block = "encoder.stages.0.blocks.1."
    for name in ("norm.weight", "norm.bias", "mlp.norm.weight", "attention.qkv.bias", "attention.position.table"):
        assert block + name in exempt
    kept = {name for name, _ in network.named_parameters()} - exempt
    assert {block + "attention.qkv.weight", "encoder.stages.0.merging.reduction.weight"} <= kept
    assert all(name.endswith(".weight") and "norm" not in name for name in kept)


def test_estimated_cost_is_the_real_one() -> None:
    cost = estimate_cost(small_network)
    assert cost.kept_bytes == bytes_kept_for_backward(small_network().train(), torch.randn(1, 1, 32, 32, 16))


def test_recomputation_changes_no_number() -> None:
    results = []
    for checkpointing in (False, True):
        network = small_network(reca=True, checkpointing=checkpointing, drop_path_rate=0.5).train()
        logits = network(torch.randn(2, 1, 32, 32, 16, generator=torch.Generator().manual_seed(0)))
        logits.square().mean().backward()
        results.append([logits, *(parameter.grad for parameter in network.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": (32, 30, 16)}, "axis 1 has 30 voxels, which its strides, 16 in all, do not divide; use 32"),
        ({"strides": ((2, 2, 2),) * 4}, "strides .* need five entries"),
        ({"depths": (2, 2)}, r"depths \(2, 2\) and .* four each"),
        ({"num_heads": (3, 1, 1, 1)}, "4 channels must be divisible by the number of heads, 3"),
        ({"merging": "v2"}, "no merging 'v2'; there are legacy, corrected"),
        ({"position_index": "nnformer"}, "no position index 'nnformer'; there are cropped and exact"),
        ({"patch_size": (8, 16, 4)}, "leaves one position at the bottom"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_network(**changes)


def test_another_input_is_refused_with_both_sizes() -> None:
    with pytest.raises(
        ValueError, match=r"SwinUNETR was built for 1 channels and patch size \(32, 32, 16\), and got 2"
    ):
        small_network()(torch.zeros(1, 2, 32, 32, 16))
