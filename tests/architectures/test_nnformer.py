"""nnFormer against the authors' numbers, and the properties that no number at one size shows."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.cost import bytes_kept_for_backward, estimate_cost
from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.layers.drop_path import DropPath
from nnunetv2_ext.architectures.nnformer import (
    CrossAttentionBlock,
    DecoderStage,
    Downsampling,
    EncoderStage,
    NNFormer,
    clip_to_smallest_axis,
)
from nnunetv2_ext.weights import from_authors, nnformer
from nnunetv2_ext.weights.authors import fit_tensors
from tests import golden_files

GOLDEN = [
    pytest.param(name, marks=pytest.mark.slow if name.endswith("-paper") else ())
    for name in golden_files.names("reca_nnformer-")
]


def small_network(**changes) -> NNFormer:
    """Build a 3D network with every part of the full one: windows that are shifted, padded and clipped."""
    torch.manual_seed(0)
    settings = {"patch_size": (16, 32, 64), "embed_dim": 8, "num_heads": (2, 2, 4, 4), "windows": (3, 4, 8, (4, 4, 4))}
    return NNFormer(changes.pop("input_channels", 1), changes.pop("num_classes", 3), **{**settings, **changes})


def as_list(outputs: Tensor | list[Tensor]) -> list[Tensor]:
    return outputs if isinstance(outputs, list) else [outputs]


@pytest.mark.parametrize("name", GOLDEN)
def test_gives_the_authors_numbers(name: str) -> None:
    golden = golden_files.load(name)
    network = from_authors("reca_nnformer", golden["config"], golden_files.make_state_dict(golden)).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == golden["trainable_parameters"]
    with torch.no_grad():
        outputs = as_list(network(*golden_files.make_inputs(golden)))
    # float32 rounding alone is near 2e-6.
    assert golden_files.largest_error(golden, outputs) <= 1e-5


def load_part(part: nn.Module, golden: dict, prefix: str, authors_prefix: str, rename=lambda name: name) -> nn.Module:
    """Load the authors' tensors of a part of the network, under the names that they have in the whole."""
    given = {rename(authors_prefix + key): tensor for key, tensor in golden_files.make_state_dict(golden).items()}
    given = nnformer.SYSTEM.without_ignored(given)
    names = {f"{prefix}{name}": tensor for name, tensor in part.state_dict().items()}
    fitting = fit_tensors(names, given, nnformer.authors_name, golden["system"])
    part.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in fitting.items()})
    assert sum(parameter.numel() for parameter in part.parameters()) == golden["trainable_parameters"]
    return part.eval()


def test_encoder_gives_the_authors_numbers() -> None:
    golden = golden_files.load("reca_3d_nnencoder-reca")
    encoder = load_part(nnformer.build(golden["config"]).encoder, golden, "encoder.", "model_down.")
    with torch.no_grad():
        outputs = [skip.movedim(-1, 1) for skip in encoder(*golden_files.make_inputs(golden))]
    assert golden_files.largest_error(golden, outputs) <= 1e-5


class StageWithDownsampling(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.grid = config["resolution"]
        stage = EncoderStage(
            config["dim"],
            config["num_heads"],
            grid=self.grid,
            window=config["window_size"],
            drop_path=[0.0] * config["depth"],
            checkpointing=False,
            **{key: config[key] for key in ("position_index", "mlp_ratio", "reca")},
        )
        self.stages = nn.ModuleList([stage])
        self.downsamplings = nn.ModuleList([Downsampling(config["dim"], (2, 2, 2))] if config["downsample"] else [])

    def forward(self, tokens: Tensor) -> list[Tensor]:
        x = self.stages[0](tokens.unflatten(1, self.grid))
        return [y.flatten(1, -2) for y in (x, *(downsampling(x) for downsampling in self.downsamplings))]


@pytest.mark.parametrize("name", golden_files.names("reca_3d_nnstage"))
def test_encoder_stage_gives_the_authors_numbers(name: str) -> None:
    golden = golden_files.load(name)
    stage = load_part(StageWithDownsampling(golden["config"]), golden, "encoder.", "model_down.layers.0.")
    with torch.no_grad():
        outputs = stage(*golden_files.make_inputs(golden))
    assert golden_files.largest_error(golden, outputs) <= 1e-5


def test_decoder_stage_gives_the_authors_numbers() -> None:
    golden = golden_files.load("reca_3d_nnupstage")
    config = golden["config"]
    stage = DecoderStage(
        config["dim"],
        config["num_heads"],
        stride=(2, 2, 2),
        grid=config["resolution"],
        window=config["window_size"],
        drop_path=[0.0] * config["depth"],
        checkpointing=False,
        **{key: config[key] for key in ("position_index", "mlp_ratio")},
    )
    load_part(stage, golden, "decoder.stages.0.", "decoder.layers.0.")
    coarse, skip = golden_files.make_inputs(golden)
    grid = config["resolution"]
    with torch.no_grad():
        output = stage(coarse.unflatten(1, [size // 2 for size in grid]), skip.unflatten(1, grid))
    assert golden_files.largest_error(golden, [output.flatten(1, -2)]) <= 1e-5


@pytest.mark.parametrize(
    ("classes", "changes", "parameters"),
    [
        (5, {}, 149_265_629),
        (8, {}, 149_284_064),
        (14, {}, 149_320_934),
        (5, {"auxiliary_heads": True}, 149_449_959),
        (5, {"patch_size": (64, 128, 128)}, 149_482_781),
        (5, {"patch_size": (128, 128, 128)}, 149_482_781),
    ],
)
def test_parameter_counts(classes: int, changes: dict, parameters: int) -> None:
    for reca in (False, True):
        with torch.device("meta"):
            network = NNFormer(1, classes, reca=reca, **changes)
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_plain_and_recurrent_networks_exchange_weights() -> None:
    plain, reca = small_network().eval(), small_network(reca=True).eval()
    assert {n: t.shape for n, t in plain.state_dict().items()} == {n: t.shape for n, t in reca.state_dict().items()}
    reca.load_state_dict(plain.state_dict())
    x = torch.randn(1, 1, 16, 32, 64)
    with torch.no_grad():
        assert not torch.allclose(plain(x), reca(x), atol=1e-6)
        single = [small_network(depths=(1, 1, 1, 1), reca=choice).eval()(x) for choice in (False, True)]
    assert torch.equal(*single), "stages of one block leave nothing to hand on"


def test_state_starts_anew_in_every_stage_and_not_in_the_decoder() -> None:
    network = small_network(reca=True, depths=(2, 3, 1, 2))
    received = {"encoder": [], "decoder": []}
    for place, calls in received.items():
        for stage in getattr(network, place).stages:
            for block in stage.blocks:
                block.register_forward_pre_hook(
                    lambda _module, inputs, calls=calls: calls.append(inputs[1] is not None)
                )
    network(torch.randn(1, 1, 16, 32, 64))
    assert received == {"encoder": [False, True, False, True, True, False, False, True], "decoder": [False] * 3}


def test_rates_of_stochastic_depth() -> None:
    with torch.device("meta"):
        network = NNFormer(1, 3)
    encoder = [block.drop_path.rate for stage in network.encoder.stages for block in stage.blocks]
    assert encoder == pytest.approx([0.2 * number / 7 for number in range(8)])
    decoder = [
        [stage.cross.drop_path.rate, *(block.drop_path.rate for block in stage.blocks)]
        for stage in network.decoder.stages
    ]
    # Highest resolution first; it is run last.
    assert decoder == [pytest.approx([0.16, 0.2]), pytest.approx([0.08, 0.12]), pytest.approx([0, 0.04])]


def test_shifts() -> None:
    """Encoder blocks are shifted in turns, self-attention in the decoder always, clipped stages never."""
    network = small_network(depths=(3, 2, 2, 2))
    assert [block.layout.shift for block in network.encoder.stages[0].blocks] == [(0, 0, 0), (1, 1, 1), (0, 0, 0)]
    assert [block.layout.shift for block in network.decoder.stages[0].blocks] == [(1, 1, 1)] * 2
    assert network.decoder.stages[0].cross.layout.shift == (0, 0, 0)
    # Grid 4 x 4 x 8 and window 4: no shift, though the last axis has two windows.
    assert network.encoder.stages[1].blocks[1].layout.counts == (1, 1, 2)
    assert network.encoder.stages[1].blocks[1].layout.shift == (0, 0, 0)
    # Clipped axis by axis: 1 x 1 x 2.
    assert network.encoder.stages[3].blocks[1].layout.window == (1, 1, 2)


def test_clipping() -> None:
    assert clip_to_smallest_axis((12, 6, 6), 8) == ((6, 6, 6), (0, 0, 0))
    assert clip_to_smallest_axis((4, 9, 9), 4) == ((4, 4, 4), (0, 0, 0))
    assert clip_to_smallest_axis((5, 9, 9), 4) == ((4, 4, 4), (2, 2, 2))


def test_cross_attention_takes_queries_from_the_decoder_without_projecting_them() -> None:
    """Written out for one window and head; one norm serves both maps."""
    torch.manual_seed(0)
    block = CrossAttentionBlock(
        4, 1, grid=(2, 3), window=(2, 3), position_index="exact", mlp_ratio=2.0, drop_path=0.0
    ).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x, skip = torch.randn(2, 1, 2, 3, 4, dtype=torch.float64)
    query = block.norm(x).view(6, 4)
    key, value = (block.norm(skip).view(6, 4) @ block.attention.kv.weight.T + block.attention.kv.bias).split(4, dim=1)
    table = block.attention.position.table[:, 0]
    tokens = [(i, j) for i in range(2) for j in range(3)]
    bias = torch.stack([torch.stack([table[(a - c + 1) * 5 + b - d + 2] for c, d in tokens]) for a, b in tokens])
    attended = block.attention.proj((query @ key.T / 2 + bias).softmax(-1) @ value)
    expected = x + skip + attended.view(1, 2, 3, 4)
    expected = expected + block.mlp(expected)
    assert torch.allclose(block(x.flatten(1, 2), skip.flatten(1, 2)), expected.flatten(1, 2), atol=1e-12)


def test_deep_supervision_changes_the_number_of_outputs_alone() -> None:
    network = small_network(auxiliary_heads=True, deep_supervision=True).eval()
    x = torch.randn(1, 1, 16, 32, 64)
    outputs = network(x)
    assert [tuple(output.shape[2:]) for output in outputs] == [(16, 32, 64), (8, 16, 32), (4, 8, 16)]
    assert network.output_strides == ((1, 1, 1), (2, 2, 2), (4, 4, 4))
    network.decoder.deep_supervision = False
    assert torch.equal(network(x), outputs[0])
    unused = small_network(auxiliary_heads=True, deep_supervision=False)
    assert not any(parameter.requires_grad for parameter in unused.decoder.seg_layers[1:].parameters())
    thin = small_network(
        patch_size=(4, 32, 32),
        embedding_stride=(1, 4, 4),
        strides=((1, 2, 2), (2, 2, 2), (1, 1, 1)),
        auxiliary_heads=True,
    )
    assert thin.output_strides == ((1, 1, 1), (1, 2, 2), (2, 4, 4))


@pytest.mark.parametrize(
    ("patch_size", "poolings", "embedding", "strides", "first", "last"),
    [
        ((96, 96, 96), [(2, 2, 2)] * 4, (2, 4, 4), [(2, 2, 2)] * 3, (48, 24, 24), (6, 3, 3)),
        ((128, 128, 128), [(2, 2, 2)] * 5, (2, 4, 4), [(2, 2, 2)] * 3, (64, 32, 32), (8, 4, 4)),
        (
            (40, 224, 192),
            [(1, 2, 2), *[(2, 2, 2)] * 3, (1, 2, 2)],
            (2, 4, 4),
            [(2, 2, 2), (2, 2, 2), (1, 2, 2)],
            (20, 56, 48),
            (5, 7, 6),
        ),
        (
            (20, 320, 256),
            [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)],
            (1, 4, 4),
            [(2, 2, 2), (2, 2, 2), (1, 2, 2)],
            (20, 80, 64),
            (5, 10, 8),
        ),
        (
            (14, 256, 224),
            [(1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)],
            (1, 4, 4),
            [(2, 2, 2), (1, 2, 2), (1, 2, 2)],
            (14, 64, 56),
            (7, 8, 7),
        ),
        (
            (160, 128, 112),
            [*[(2, 2, 2)] * 4, (2, 2, 1)],
            (2, 4, 4),
            [(2, 2, 2), (2, 2, 2), (2, 2, 1)],
            (80, 32, 28),
            (10, 4, 7),
        ),
        ((40, 56, 40), [(2, 2, 2)] * 3, (2, 4, 4), [(2, 2, 2), (2, 1, 1), (1, 1, 1)], (20, 14, 10), (5, 7, 5)),
        (
            (28, 32, 40),
            [(2, 2, 2), (2, 2, 2), (1, 2, 2)],
            (2, 4, 4),
            [(2, 2, 2), (1, 2, 1), (1, 1, 1)],
            (14, 8, 10),
            (7, 2, 5),
        ),
        ((512, 512), [(2, 2)] * 7, (4, 4), [(2, 2)] * 3, (128, 128), (16, 16)),
        ((56, 40), [(2, 2)] * 3, (4, 4), [(2, 2), (1, 1), (1, 1)], (14, 10), (7, 5)),
    ],
)
def test_worked_examples_of_plans(patch_size, poolings, embedding, strides, first, last) -> None:
    settings = NNFormer.settings_from_plan(Geometry.from_strides(patch_size, poolings))
    assert settings["embedding_stride"] == embedding
    assert settings["strides"] == tuple(strides)
    with torch.device("meta"):
        rows = NNFormer(1, 3, **settings).describe_stages()
    assert (rows[0]["grid"], rows[-1]["grid"]) == (first, last)


def test_windows_of_plans() -> None:
    """The authors' cubes, but where an axis has only one or two positions."""
    windows = NNFormer.settings_from_plan(Geometry.from_strides((28, 32, 40), [(2, 2, 2), (2, 2, 2), (1, 2, 2)]))
    assert windows["windows"] == (4, 4, (8, 8, 8), (4, 4, 4))
    with torch.device("meta"):
        rows = NNFormer(1, 3, **windows).describe_stages()
    assert [row["window"] for row in rows] == [(4, 4, 4), (4, 4, 4), (7, 2, 5), (4, 2, 4)]
    assert [row["shift"] for row in rows] == [(2, 2, 2), (0, 0, 0), (0, 0, 0), (2, 0, 2)]


def test_a_plan_of_the_authors_size_gives_the_authors_network() -> None:
    with torch.device("meta"):
        planned = NNFormer(1, 5, **NNFormer.settings_from_plan(Geometry.from_strides((96,) * 3, [(2, 2, 2)] * 4)))
        default = NNFormer(1, 5)
    assert planned.describe_stages() == default.describe_stages()
    assert [row["window"][0] for row in default.describe_stages()] == [4, 4, 6, 3]


def test_position_index() -> None:
    """The authors' for cubes, the exact one for all other windows, and for all on request."""
    network = small_network()
    with torch.device("meta"):
        exact = small_network(position_index="exact").state_dict()
    assert {n: t.shape for n, t in network.state_dict().items()} == {n: t.shape for n, t in exact.items()}
    rows = [stage.blocks[0].attention.position.rows.unique().numel() for stage in network.encoder.stages]
    # Of 125, 343, 27 and 3 offsets.
    assert rows == [57, 115, 19, 3]
    in_2d = small_network(patch_size=(32, 32), windows=(4, 4, 2, 1))
    assert in_2d.encoder.stages[0].blocks[0].attention.position.rows.unique().numel() == 7 * 7


def test_no_weight_decay_on_norms_biases_and_position_tables() -> None:
    network = small_network()
    exempt = network.parameters_without_weight_decay()
    for name in (
        "encoder.stages.0.blocks.1.attention.position.table",
        "decoder.stages.0.cross.attention.position.table",
        "encoder.embedding.norm1.weight",
        "encoder.embedding.conv1.bias",
        "decoder.stages.1.cross.mlp.norm.weight",
    ):
        assert name in exempt
    kept = {name for name, _ in network.named_parameters()} - exempt
    assert all(name.endswith(".weight") and not re.search(r"norms?\d?\.", name) for name in kept)
    assert "encoder.stages.0.blocks.0.attention.qkv.weight" in kept


def test_estimated_cost_is_the_real_one() -> None:
    cost = estimate_cost(small_network)
    assert cost.kept_bytes == bytes_kept_for_backward(small_network().train(), torch.randn(1, 1, 16, 32, 64))


def test_recomputation_changes_no_number() -> None:
    results = []
    for checkpointing in (False, True):
        network = small_network(reca=True, checkpointing=checkpointing, drop_path_rate=0.5).train()
        assert any(module.rate for module in network.modules() if isinstance(module, DropPath))
        logits = network(torch.randn(2, 1, 16, 32, 64, generator=torch.Generator().manual_seed(0)))
        logits.square().mean().backward()
        results.append([logits, *(parameter.grad for parameter in network.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": (16, 34, 64)}, "axis 1 has 34 voxels, which its strides, 32 in all, do not divide; use 64"),
        ({"strides": ((2, 2, 2),) * 4}, "strides .* need three entries"),
        ({"windows": (4, 4)}, r"windows \(4, 4\) four each"),
        ({"embedding_stride": (2, 3, 4)}, "can embed by 1, 2 or 4 per axis"),
        ({"num_heads": (3, 1, 1, 1)}, "8 channels must be divisible by the number of heads, 3"),
        ({"position_index": "cropped"}, "no position index 'cropped'; there are nnformer and exact"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_network(**changes)
