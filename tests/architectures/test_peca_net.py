"""PECA-Net against the authors' numbers, and the properties that no number at one size shows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.cost import bytes_kept_for_backward, estimate_cost
from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.peca_net import PRESETS, PairedAttention, ParallelInteraction, PECANet
from nnunetv2_ext.trainers.compilation import compile_parts
from nnunetv2_ext.weights import from_authors
from tests import golden_files

MIB = 2**20
FULL_SIZE = {"peca_net-synapse", "peca_net-acdc", "peca_net-acdc-p64", "peca_net-tumor"}
GOLDEN = [
    pytest.param(name, marks=pytest.mark.slow if name in FULL_SIZE else ()) for name in golden_files.names("peca_net")
]


def small_network(**changes) -> PECANet:
    """Build a 3D network with every part of the full one, in well under a second."""
    settings = {
        "patch_size": (16, 32, 32),
        "stem_stride": (2, 4, 4),
        "stage_strides": ((2, 2, 2), (1, 2, 2)),
        "feature_size": 4,
        "depths": (1, 1, 1),
        "decoder_depth": 1,
        "head_kernels": ((1, 2, 2), (2, 2, 2)),
    }
    return PECANet(changes.pop("input_channels", 1), changes.pop("num_classes", 3), **{**settings, **changes})


def without_dropout(network: nn.Module) -> nn.Module:
    """Put a network into training mode but for its dropout."""
    network.train()
    for module in network.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d, nn.Dropout3d)):
            module.eval()
    return network


@pytest.mark.parametrize("name", GOLDEN)
def test_gives_the_authors_numbers(name: str) -> None:
    golden = golden_files.load(name)
    network = from_authors("peca_net", golden["config"], golden_files.make_state_dict(golden)).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == golden["trainable_parameters"]
    with torch.no_grad():
        outputs = network(*golden_files.make_inputs(golden))
    outputs = outputs if isinstance(outputs, list) else [outputs]
    # float32 rounding alone is near 1e-6.
    assert golden_files.largest_error(golden, outputs) <= 1e-5


@pytest.mark.parametrize(
    ("preset", "changes", "with_heads", "without_heads"),
    [
        ("synapse", {}, 46_181_858, 46_176_454),
        ("acdc", {}, 91_679_812, 91_677_244),
        ("acdc", {"proj_size": (64, 64, 64, 32), "decoder_proj_size": 64}, 57_896_164, 57_893_596),
        ("tumor", {}, 46_204_260, 46_201_180),
    ],
)
def test_parameter_counts(preset: str, changes: dict, with_heads: int, without_heads: int) -> None:
    for heads, count in ((True, with_heads), (False, without_heads)):
        with torch.device("meta"):
            network = PECANet(**{**PRESETS[preset], **changes}, auxiliary_heads=heads)
        assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_initial_values() -> None:
    torch.manual_seed(0)
    network = PECANet(**{**PRESETS["tumor"], "patch_size": (32, 64, 64), "depths": (1,) * 4, "decoder_depth": 1})
    for block in (module for module in network.modules() if isinstance(module, ParallelInteraction)):
        attention = block.attention
        assert block.layer_scale.eq(1e-6).all()
        assert block.position.eq(0).all()
        assert attention.channel_temperature.eq(1).all()
        assert attention.spatial_temperature.eq(1).all()
        assert block.norm.eps == 1e-5
        for memory in (attention.key_memory, attention.channel_memory, attention.spatial_memory):
            assert memory.std().item() == pytest.approx(0.01, rel=0.35)
    encoder, decoder = network.encoder.stages[3].blocks[0].attention, network.decoder.stages[0].blocks[0].attention
    assert encoder.query.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert encoder.spatial_out.bias.eq(0).all()
    bound = 1 / math.sqrt(decoder.query.in_features)
    assert decoder.query.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert decoder.spatial_out.bias.ne(0).any()


def test_block_without_attention_is_its_convolutions() -> None:
    """Attention has no other path than through the layer scale and the position table."""
    block = ParallelInteraction(
        grid=(2, 4, 3),
        channels=16,
        num_heads=2,
        proj_size=5,
        conv_blocks=1,
        attention_dropout=0.1,
        conv_dropout=0.1,
    ).eval()
    nn.init.zeros_(block.layer_scale)
    x = torch.randn(2, 16, 2, 4, 3)
    assert torch.equal(block(x), x + block.mix(block.convs(x)))


def attend_in_loops(layer: PairedAttention, tokens: Tensor) -> Tensor:
    """Compute the attention layer in float64 as its definition reads: one sample, head, row and column at a time."""
    tokens = tokens.double()
    weight = {name: parameter.detach().double() for name, parameter in layer.named_parameters()}
    batch, n_tokens, channels = tokens.shape
    heads, size = layer.num_heads, channels // layer.num_heads
    units = weight["spatial_memory"].shape[1]
    key = torch.stack([row / max(row.norm(), 1e-12) for row in weight["key_memory"]])
    projected = weight["key_memory"] @ weight["key_projection.weight"].T + weight["key_projection.bias"]
    outputs = []
    for sample in range(batch):
        query = tokens[sample] @ weight["query.weight"].T
        across_channels = torch.zeros(n_tokens, channels, dtype=torch.float64)
        across_positions = torch.zeros(size, heads, n_tokens, dtype=torch.float64)
        for head in range(heads):
            rows = [query[:, head * size + i] for i in range(size)]
            rows = [row / max(row.norm(), 1e-12) for row in rows]
            # Channels: softmax over the query's index, then division by the sum over the memory's.
            scores = [[weight["channel_temperature"][head, 0, 0] * (q @ k) for k in key] for q in rows]
            scores = torch.tensor(scores, dtype=torch.float64).exp()
            scores = scores / scores.sum(0)
            scores = scores / (1e-9 + scores.sum(1, keepdim=True))
            for i in range(size):
                across_channels[:, head * size + i] = sum(
                    scores[i, j] * weight["channel_memory"][j] for j in range(size)
                )
            # Positions: softmax over the tokens, then division by the sum over the memory units.
            scores = torch.zeros(n_tokens, units, dtype=torch.float64)
            for n in range(n_tokens):
                for p in range(units):
                    product = sum(rows[i][n] * projected[i, p] for i in range(size))
                    scores[n, p] = torch.exp(weight["spatial_temperature"][head, 0, 0] * product)
            scores = scores / scores.sum(0)
            scores = scores / (1e-9 + scores.sum(1, keepdim=True))
            for i in range(size):
                across_positions[i, head] = scores @ weight["spatial_memory"][i]
        if layer.aligned_heads:
            mixed = across_positions.permute(2, 1, 0).reshape(n_tokens, channels)
        else:
            mixed = across_positions.reshape(n_tokens, channels)
        gated = tokens[sample] @ weight["spatial_gate_in.weight"].T + weight["spatial_gate_in.bias"]
        gated = gated * torch.sigmoid(gated @ weight["spatial_gate.weight"].T)
        excited = tokens[sample] @ weight["channel_gate_in.weight"].T + weight["channel_gate_in.bias"]
        squeezed = weight["channel_squeeze.weight"] @ excited.mean(0)
        excited = excited * torch.sigmoid(weight["channel_excite.weight"] @ squeezed)
        outputs.append(
            torch.cat(
                (
                    mixed @ weight["spatial_out.weight"].T + weight["spatial_out.bias"],
                    gated,
                    across_channels @ weight["channel_out.weight"].T + weight["channel_out.bias"],
                    excited,
                ),
                dim=1,
            )
        )
    return torch.stack(outputs)


@pytest.mark.parametrize("aligned_heads", [False, True])
def test_attention_is_its_definition(aligned_heads: bool) -> None:
    torch.manual_seed(0)
    layer = PairedAttention(
        tokens=7, channels=16, num_heads=2, proj_size=3, dropout=0.1, aligned_heads=aligned_heads
    ).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(2, 7, 16)
    expected = attend_in_loops(layer, tokens)
    assert (layer(tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_attention_stays_finite(scale: float) -> None:
    layer = PairedAttention(tokens=4096, channels=16, num_heads=2, proj_size=8, dropout=0.0)
    tokens = (scale * torch.randn(1, 4096, 16)).requires_grad_()
    output = layer(tokens)
    output.sum().backward()
    assert output.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("compiled", [False, True])
def test_attention_learns_under_half_precision(compiled: bool) -> None:
    """At initialisation, with the loss scaled as nnU-Net scales it, no element of a weight has a gradient of zero."""
    torch.manual_seed(0)
    network = without_dropout(small_network(patch_size=(16, 64, 64)))
    if compiled:
        torch._dynamo.reset()
        compile_parts(network.parts_to_compile(), backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.float16):
        logits = network(torch.randn(2, 1, 16, 64, 64))
    loss = nn.functional.cross_entropy(logits.float(), torch.randint(0, 3, (2, 16, 64, 64)))
    (65536 * loss).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        if ".attention." in name:
            assert parameter.grad.ne(0).all(), name


def test_attention_layer_computes_in_float32_under_autocast() -> None:
    block = small_network().encoder.stages[0].blocks[0]
    seen = []
    block.attention.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        block(torch.randn(1, 8, 8, 8, 8).bfloat16())
    assert seen == [(torch.float32, torch.float32)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_at_the_synapse_size(checkpointing: bool) -> None:
    """The authors' code keeps 2067 MiB for the backward pass."""
    cost = estimate_cost(lambda: PECANet(**PRESETS["synapse"], checkpointing=checkpointing))
    assert cost.kept_bytes <= (400 if checkpointing else 900) * MIB
    assert cost.multiply_adds == pytest.approx(45.4e9, rel=1e-3)


def test_estimated_cost_is_the_real_one() -> None:
    network = small_network().train()
    cost = estimate_cost(small_network)
    assert cost.kept_bytes == bytes_kept_for_backward(network, torch.randn(1, 1, 16, 32, 32))
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())


def test_recomputation_changes_no_number() -> None:
    """Same outputs, gradients and running statistics, dropout included."""
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = small_network(checkpointing=checkpointing).train()
        logits = network(torch.randn(2, 1, 16, 32, 32))
        logits.square().mean().backward()
        results.append(
            [logits, *(parameter.grad for parameter in network.parameters()), *network.buffers()],
        )
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_deep_supervision_changes_the_number_of_outputs_alone() -> None:
    network = small_network(auxiliary_heads=True, deep_supervision=True).eval()
    x = torch.randn(2, 1, 16, 32, 32)
    outputs = network(x)
    # The finest decoder feature has stride (2, 4, 4), the next one (4, 8, 8); the head kernels divide them.
    assert [tuple(output.shape[2:]) for output in outputs] == [(16, 32, 32), (8, 16, 16), (8, 8, 8)]
    network.decoder.deep_supervision = False
    assert torch.equal(network(x), outputs[0])
    headless = small_network().eval()
    headless.decoder.deep_supervision = True
    assert isinstance(headless(x), Tensor)


def test_unused_heads_are_frozen() -> None:
    """Distributed training stops on a trainable parameter without a gradient."""
    network = small_network(auxiliary_heads=True, deep_supervision=False)
    network(torch.randn(1, 1, 16, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
    assert not any(parameter.requires_grad for parameter in network.decoder.seg_layers[1:].parameters())


def test_presets_are_what_a_plan_of_the_authors_sizes_gives() -> None:
    """At the authors' patch and the planner's poolings the rules give the authors' network."""
    plan = PECANet.settings_from_plan(Geometry.from_strides((64, 128, 128), [(1, 2, 2), *[(2, 2, 2)] * 4]))
    assert plan["stem_stride"] == PRESETS["synapse"]["stem_stride"]
    assert plan["stage_strides"] == PRESETS["synapse"]["stage_strides"]
    plan = PECANet.settings_from_plan(Geometry.from_strides((128, 128, 128), [(2, 2, 2)] * 5))
    tumor = {**PRESETS["tumor"]}
    defaults = PECANet(4, 4, **plan, auxiliary_heads=True).state_dict()
    preset = PECANet(**tumor, auxiliary_heads=True).state_dict()
    assert {name: tensor.shape for name, tensor in defaults.items()} == {
        name: tensor.shape for name, tensor in preset.items()
    }


@pytest.mark.parametrize(
    ("patch_size", "poolings", "channels", "classes", "tokens", "millions"),
    [
        ((128, 128, 128), [(2, 2, 2)] * 5, 4, 4, (32768, 4096, 512, 64), 46.20),
        ((48, 192, 192), [(1, 2, 2), *[(2, 2, 2)] * 3, (1, 2, 2)], 1, 14, (55296, 6912, 864, 216), 64.50),
        ((40, 224, 192), [(1, 2, 2), *[(2, 2, 2)] * 3, (1, 2, 2)], 1, 14, (53760, 6720, 840, 210), 63.24),
        (
            (20, 320, 256),
            [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)],
            2,
            3,
            (102400, 12800, 1600, 400),
            103.15,
        ),
        ((40, 56, 40), [(2, 2, 2)] * 3, 1, 3, (1400, 175), 2.16),
        ((512, 512), [(2, 2)] * 7, 1, 14, (16384, 4096, 1024, 256), 24.11),
        ((256, 224), [(2, 2)] * 5, 1, 4, (3584, 896, 224, 56), 10.95),
    ],
)
def test_worked_examples_of_plans(patch_size, poolings, channels, classes, tokens, millions) -> None:
    settings = PECANet.settings_from_plan(Geometry.from_strides(patch_size, poolings))
    with torch.device("meta"):
        network = PECANet(channels, classes, **settings, auxiliary_heads=True)
    assert tuple(row["tokens"] for row in network.describe_stages()) == tokens
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_no_weight_decay_on_memories_scales_positions_temperatures_and_norms() -> None:
    network = small_network()
    exempt = network.parameters_without_weight_decay()
    assert exempt < {name for name, _ in network.named_parameters()}
    block = "encoder.stages.0.blocks.0."
    for name in (
        "attention.key_memory",
        "attention.channel_memory",
        "attention.spatial_memory",
        "attention.channel_temperature",
        "attention.spatial_temperature",
        "layer_scale",
        "position",
        "norm.weight",
        "norm.bias",
        "convs.0.norm1.weight",
    ):
        assert block + name in exempt
    assert "encoder.stages.0.downsample.1.weight" in exempt
    for name in ("attention.query.weight", "attention.key_projection.bias", "convs.0.conv1.weight", "mix.bias"):
        assert block + name not in exempt


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": (16, 34, 32)}, "axis 1 has 34 voxels, which its strides, 16 in all, do not divide; use 48"),
        ({"patch_size": (32, 32)}, "Patch size .* has 2 axes, the strides have 3"),
        ({"depths": (1, 1)}, "need one entry for each of 3 stages"),
        ({"num_heads": 3}, "8 channels must be divisible by 8 and by the number of heads, 3"),
        ({"head_kernels": ((1, 2, 2),) * 3, "auxiliary_heads": True}, "3 auxiliary heads need as many decoder stages"),
        ({"head_kernels": ((1, 3, 2),), "auxiliary_heads": True}, "must divide its feature's stride"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_network(**changes)


@pytest.mark.parametrize("shape", [(1, 1, 16, 32, 64), (1, 2, 16, 32, 32)])
def test_another_input_is_refused_with_both_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"built for 1 channels and patch size \(16, 32, 32\), and got"):
        small_network()(torch.zeros(shape))


def test_dropout_needs_no_generator_to_be_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device whose generator torch's checkpoint leaves alone, gradients are those without any recomputation."""
    torchs = torch.utils.checkpoint.checkpoint

    def gradients(**changes) -> list[Tensor]:
        torch.manual_seed(0)
        network = small_network(attention_dropout=0.5, **changes).train()
        network(torch.randn(2, 1, 16, 32, 32)).square().mean().backward()
        return [parameter.grad for parameter in network.parameters()]

    def unsafe(*args, **settings):
        return torchs(*args, **{**settings, "preserve_rng_state": False})

    with monkeypatch.context() as patch:
        patch.setattr(torch.utils.checkpoint, "checkpoint", lambda function, *inputs, **_: function(*inputs))
        expected = gradients()
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", unsafe)
    for checkpointing in (False, True):
        pairs = zip(gradients(checkpointing=checkpointing), expected, strict=True)
        assert all(torch.allclose(got, want, rtol=1e-4, atol=1e-7) for got, want in pairs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network, x = small_network().eval(), torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad():
        expected = network(x)
        got = network.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    assert (got.float() - expected).abs().max() <= 0.1 * expected.abs().max()


@pytest.mark.parametrize("rate", [-0.1, 1.0])
@pytest.mark.parametrize("name", ["attention_dropout", "conv_dropout"])
def test_rates_are_checked(name: str, rate: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {rate}"):
        small_network(**{name: rate})
