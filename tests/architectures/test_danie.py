"""DANIE: the paper's equations in slow loops, its switches, and the sizes that the reading of the paper rests on."""

from __future__ import annotations

import functools
import itertools
import math
import socket

import pytest
import timm
import torch
from torch import Tensor, nn

from benchmarks.danie_cost import count_danie
from nnunetv2_ext.architectures import danie
from nnunetv2_ext.architectures.cost import bytes_kept_for_backward, estimate_cost
from nnunetv2_ext.architectures.danie import (
    DANIE,
    EH,
    ES,
    FUSIONS,
    PRESETS,
    ConvBlock,
    HierarchicalAttention,
    JointPreservation,
)
from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.trainers.compilation import compile_parts

SMALL = DANIE.narrow_settings
C, H, W = 32, 3, 2


def randomise(module: nn.Module) -> nn.Module:
    """Fill all parameters and running statistics with numbers that hide nothing, in float64 and evaluation mode."""
    torch.manual_seed(0)
    module = module.double().eval()
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.5)
    return module


def small(**arguments) -> DANIE:
    torch.manual_seed(0)
    return DANIE(**{"input_channels": 2, "num_classes": 3, "patch_size": (64, 96), **SMALL, **arguments})


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# The equations, written again with loops over channels and positions.


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def linear(layer: nn.Module, vector: list[float]) -> list[float]:
    """Apply a linear map, or a 1-wide convolution at one position."""
    weights, biases = layer.weight.reshape(layer.weight.shape[0], -1).tolist(), layer.bias.tolist()
    return [
        sum(w * v for w, v in zip(row, vector, strict=True)) + bias for row, bias in zip(weights, biases, strict=True)
    ]


def positions(x: Tensor):
    return itertools.product(range(x.shape[1]), range(x.shape[2]))


def convolve(layer: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Apply a 3-wide convolution of stride 1 with zeros around the map, batch norm and GELU, to (C, H, W)."""
    height, width = x.shape[1:]
    result = torch.zeros(layer.out_channels, height, width, dtype=torch.float64)
    for channel in range(layer.out_channels):
        for row, column in positions(x):
            value = layer.bias[channel].item()
            for down, right in itertools.product(range(3), range(3)):
                at_row, at_column = row + down - 1, column + right - 1
                if 0 <= at_row < height and 0 <= at_column < width:
                    value += (layer.weight[channel, :, down, right] @ x[:, at_row, at_column]).item()
            scaled = (value - norm.running_mean[channel]) / math.sqrt(norm.running_var[channel] + 1e-5)
            result[channel, row, column] = gelu((scaled * norm.weight[channel] + norm.bias[channel]).item())
    return result


def conv_block(block: ConvBlock, x: Tensor) -> Tensor:
    return convolve(block.conv2, block.norm2, convolve(block.conv1, block.norm1, x))


def channel_weights(module: HierarchicalAttention, h: Tensor, pool) -> list[float]:
    """Equation 2."""
    pooled = [pool([h[channel, row, column].item() for row, column in positions(h)]) for channel in range(len(h))]
    hidden = [max(0.0, value) for value in linear(module.mlp[0], pooled)]
    return [sigmoid(value) for value in linear(module.mlp[2], hidden)]


def position_weights(module: HierarchicalAttention, m: Tensor, pool) -> Tensor:
    """Equation 3."""
    result = torch.zeros(m.shape[1:], dtype=torch.float64)
    for row, column in positions(m):
        result[row, column] = sigmoid(linear(module.conv, [pool(m[:, row, column].tolist())])[0])
    return result


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def hierarchical_attention(module: HierarchicalAttention, h: Tensor, *, order: str = "cs") -> Tensor:
    """Equations 2 to 5; `order` says which of channel and spatial attention there are, and which comes first."""
    calibration = [1.0, 1.0] if module.calibration is None else module.calibration.tolist()
    calibrated = torch.zeros_like(h)
    for weight, pool in zip(calibration, (max, mean), strict=True):
        branch = h
        for step in order:
            if step == "c":
                branch = torch.stack(
                    [a * m for a, m in zip(channel_weights(module, branch, pool), branch, strict=True)]
                )
            else:
                branch = position_weights(module, branch, pool) * branch
        calibrated += weight * branch  # equation 4
    result = torch.zeros_like(h)
    for row, column in positions(h):  # equation 5
        gates = [sigmoid(value) for value in linear(module.gate, calibrated[:, row, column].tolist())]
        for channel in range(len(h)):
            result[channel, row, column] = gates[channel if len(gates) > 1 else 0] * h[channel, row, column]
    return result


def es(module: ES, s: Tensor) -> Tensor:
    """Equations 6 and 7: w_ij over the first index, then lambda * sum_i w_ij s_i + s_j."""
    rows = s.flatten(1)
    gram = [[float(a @ b) for b in rows] for a in rows]
    result = torch.zeros_like(rows)
    for j in range(len(rows)):
        total = sum(math.exp(gram[i][j]) for i in range(len(rows)))
        for i in range(len(rows)):
            result[j] += math.exp(gram[i][j]) / total * rows[i]
    return (module.scale.item() * result + rows).reshape(s.shape)


def eh(module: EH, h: Tensor) -> Tensor:
    """Equations 8 and 9."""
    columns = [h[:, row, column].tolist() for row, column in positions(h)]
    scores = [linear(module.position, column)[0] for column in columns]
    total = sum(math.exp(score) for score in scores)
    gathered = [
        sum(math.exp(score) / total * column[channel] for score, column in zip(scores, columns, strict=True))
        for channel in range(len(h))
    ]
    hidden = linear(module.weigh[0], gathered)
    centre = mean(hidden)
    spread = math.sqrt(mean([(value - centre) ** 2 for value in hidden]) + 1e-5)
    norm = module.weigh[1]
    hidden = [
        gelu((value - centre) / spread * w + b)
        for value, w, b in zip(hidden, norm.weight.tolist(), norm.bias.tolist(), strict=True)
    ]
    weights = [sigmoid(value) for value in linear(module.weigh[3], hidden)]
    return torch.stack([weight * channel for weight, channel in zip(weights, h, strict=True)])


def enlarge_nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    result = torch.zeros(len(x), *size, dtype=torch.float64)
    for row, column in positions(result):
        result[:, row, column] = x[:, row * x.shape[1] // size[0], column * x.shape[2] // size[1]]
    return result


def enlarge_bilinear(x: Tensor, factor: int) -> Tensor:
    """Interpolate one axis after the other, so that pixels, not corners, are aligned."""
    for _ in range(2):
        size = x.shape[1]
        result = torch.zeros(len(x), factor * size, x.shape[2], dtype=torch.float64)
        for row in range(factor * size):
            at = max((row + 0.5) / factor - 0.5, 0.0)
            low = min(int(at), size - 1)
            result[:, row] = (1 - (at - low)) * x[:, low] + (at - low) * x[:, min(low + 1, size - 1)]
        x = result.transpose(1, 2)
    return x


class TestEquations:
    """Each against its loops, in float64."""

    @staticmethod
    def same(got: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(got.detach(), expected.detach(), rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize(
        ("arguments", "order"),
        [
            ({}, "cs"),
            ({"channel_first": False}, "sc"),
            ({"spatial_attention": False}, "c"),
            ({"channel_attention": False}, "s"),
            ({"calibration": False}, "cs"),
            ({"gate": "spatial"}, "cs"),
        ],
        ids=str,
    )
    def test_2_to_5(self, arguments: dict, order: str) -> None:
        module = randomise(HierarchicalAttention(C, **arguments))
        h = torch.randn(2, C, H, W, dtype=torch.float64)
        got = module(h)
        for sample, result in zip(h, got, strict=True):
            self.same(result, hierarchical_attention(module, sample, order=order))

    def test_2_to_5_at_the_start(self) -> None:
        """The spatial convolution starts as the identity, and calibration as the plain sum."""
        torch.manual_seed(0)
        module = HierarchicalAttention(C)
        assert module.conv.weight.item() == 1
        assert module.conv.bias.item() == 0
        plain = HierarchicalAttention(C, calibration=False)
        plain.load_state_dict({k: v for k, v in module.state_dict().items() if k != "calibration"})
        h = torch.randn(2, C, H, W)
        assert torch.equal(module(h), plain(h))

    def test_6_and_7(self) -> None:
        module = randomise(ES())
        s = 0.5 * torch.randn(2, C, H, W, dtype=torch.float64)
        got = module(s)
        for sample, result in zip(s, got, strict=True):
            self.same(result, es(module, sample))

    @pytest.mark.parametrize(
        ("s", "expected"),
        [
            ([[1, 0], [0, 1]], [[1.7311, 0.2689], [0.2689, 1.7311]]),
            ([[1, 1], [0, 1]], [[1.7311, 2.0], [0.5, 2.0]]),
        ],
    )
    def test_7_normalises_over_the_first_index(self, s: list, expected: list) -> None:
        """Worked by hand for two channels and two positions; the other index would give [1.7311, 2.2311] below."""
        module = ES()
        nn.init.ones_(module.scale)
        got = module(torch.tensor(s, dtype=torch.float32).reshape(1, 2, 1, 2)).reshape(2, 2)
        torch.testing.assert_close(got.detach(), torch.tensor(expected), rtol=0, atol=5e-5)

    def test_7_is_the_identity_at_the_start(self) -> None:
        s = torch.randn(2, C, H, W)
        assert torch.equal(ES()(s), s)

    def test_8_and_9(self) -> None:
        module = randomise(EH(C))
        h = torch.randn(2, C, H, W, dtype=torch.float64)
        got = module(h)
        for sample, result in zip(h, got, strict=True):
            self.same(result, eh(module, sample))
            weights = result / sample
            assert torch.allclose(weights, weights[:, :1, :1].expand_as(weights))
            assert weights.min() > 0
            assert weights.max() < 1

    @pytest.mark.parametrize("module", [ES(), EH(C)], ids=["ES", "EH"])
    def test_6_to_9_do_not_know_where_a_position_is(self, module: nn.Module) -> None:
        module = randomise(module)
        x = 0.5 * torch.randn(1, C, H, W, dtype=torch.float64)
        order = torch.randperm(H * W)
        shuffled = x.flatten(2)[..., order].reshape(x.shape)
        self.same(module(shuffled).flatten(2), module(x).flatten(2)[..., order])

    @pytest.mark.parametrize("deepest", [False, True])
    @pytest.mark.parametrize("fusion", FUSIONS)
    def test_10_and_11(self, fusion: str, deepest: bool) -> None:
        block = randomise(
            JointPreservation(
                C,
                None if deepest else 8,
                streams="sh",
                fusion=fusion,
                first_previous="sum",
                norm="batch",
                checkpointing=False,
            )
        )
        s, h = 0.5 * torch.randn(2, C, 4, 2, dtype=torch.float64)
        deeper = torch.randn(8, 2, 1, dtype=torch.float64)
        got = block(s[None], h[None], None if deepest else deeper[None])[0]
        previous = s + h if deepest else convolve(block.bring[0], block.bring[1], enlarge_nearest(deeper, (4, 2)))
        if fusion == "add":
            expected = conv_block(block.block, s + h if deepest else s + h + previous)
        elif fusion == "concat_res":
            expected = conv_block(block.block, torch.cat((s, h, previous))) + s + h
        else:
            e = (s if fusion == "eh_add" else es(block.es, s)) + (h if fusion == "es_add" else eh(block.eh, h))
            expected = conv_block(block.block, torch.cat((e, previous)))
        self.same(got, expected)

    def test_12(self) -> None:
        """The logits are the sum of the heads' maps, enlarged; the order of the heads is that of the stages."""
        network = randomise(small(self_attention=False, patch_size=(64, 64), auxiliary_heads=True))
        seen = []
        for head in network.decoder.seg_layers:
            head.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
        x = torch.randn(1, 2, 64, 64, dtype=torch.float64)
        network.decoder.deep_supervision = True
        logits, *maps = network(x)
        for got, coarse, factor in zip(maps, reversed(seen), (4, 8, 16, 32), strict=True):
            self.same(got[0], enlarge_bilinear(coarse, factor))
        self.same(logits, maps[0] + maps[1] + maps[2] + maps[3])
        network.decoder.deep_supervision = False
        assert torch.equal(network(x), logits)

    def test_stages_of_the_convolutional_encoder(self) -> None:
        """Embedding to a quarter of the size, and between stages a strided convolution: shapes and order of layers."""
        hap = small().hap.double().eval()
        x = torch.randn(1, 2, 64, 96, dtype=torch.float64)
        maps = hap(x)
        assert [tuple(m.shape[1:]) for m in maps] == [(32, 16, 24), (32, 8, 12), (32, 4, 6), (32, 2, 3)]
        embedded = hap.reduction(nn.functional.max_pool2d(hap.embedding(x), 2))
        first, last = hap.stages[0], hap.stages[3]
        self.same(maps[0], first.block(first.attention(embedded)))
        self.same(maps[3][0], conv_block(last.block, hierarchical_attention(last.attention, last.down(maps[2])[0])))


class TestSizes:
    """What the reading of the paper rests on; nothing here takes memory."""

    @pytest.fixture
    def _one_backbone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Build each of timm's models once for all switches."""
        monkeypatch.setattr(danie, "_make_self_attention", lambda backbone, *_, **__: backbone_skeleton(backbone))

    @pytest.mark.usefixtures("_one_backbone")
    @pytest.mark.parametrize(
        ("arguments", "of_s", "of_l"),
        [
            ({}, 47_938_212, 108_574_704),
            ({"fusion": "add"}, 44_759_144, 101_423_386),
            ({"fusion": "concat_res"}, 51_026_024, 115_523_866),
            ({"fusion": "eh_add"}, 47_938_208, 108_574_700),
            ({"fusion": "es_add"}, 47_892_588, 108_473_630),
            ({"fusion": "add", "hierarchical_attention": False}, 36_465_820, 82_847_760),
            ({"fusion": "add", "self_attention": False}, 16_124_272, 36_183_406),
            ({"fusion": "add", "spatial_attention": False}, 44_759_136, 101_423_378),
            ({"fusion": "add", "channel_attention": False}, 44_714_604, 101_323_936),
            ({"calibration": False}, 47_938_204, 108_574_696),
            ({"gate": "spatial"}, 47_590_056, 107_791_348),
            ({"first_previous": "none"}, 45_578_916, 103_266_288),
            ({"channel_first": False}, 47_938_212, 108_574_704),
            ({"auxiliary_heads": True}, 47_938_212, 108_574_704),
        ],
        ids=str,
    )
    def test_parameters_of_every_switch(self, arguments: dict, of_s: int, of_l: int) -> None:
        with torch.device("meta"):
            counts = [
                count(DANIE(3, 9, patch_size=(256, 256), **PRESETS[preset], **arguments)) for preset in ("S", "L")
            ]
        assert counts == [of_s, of_l]

    @pytest.mark.parametrize(
        ("preset", "size", "layers", "operations"),
        [
            ("S", 224, 10_195_244_682, 10_475_402_378),
            ("S", 256, 13_316_272_256, 13_752_971_392),
            ("L", 224, 20_229_556_746, 20_726_863_626),
            ("L", 256, 26_422_834_688, 27_178_546_688),
        ],
    )
    def test_multiply_adds(self, preset: str, size: int, layers: int, operations: int) -> None:
        """Of convolutions and linear maps, and with the products inside attention, ES and EH."""
        assert count_danie(preset, size)[1] == layers
        cost = estimate_cost(lambda: DANIE(3, 9, patch_size=(size, size), **PRESETS[preset]))
        assert cost.multiply_adds == operations

    @pytest.mark.parametrize("preset", PRESETS)
    def test_parameters_do_not_depend_on_the_size(self, preset: str) -> None:
        """A model trained at one size can start another."""
        with torch.device("meta"):
            shapes = [
                {
                    name: tensor.shape
                    for name, tensor in DANIE(1, 4, patch_size=size, **PRESETS[preset]).state_dict().items()
                }
                for size in ((224, 224), (320, 250))
            ]
        assert shapes[0] == shapes[1]

    def test_plan_gives_the_patch_size_alone(self) -> None:
        geometry = Geometry.from_strides((320, 250), [(2, 2)] * 5)
        assert DANIE.settings_from_plan(geometry) == {"patch_size": (320, 250)}


@functools.cache
def backbone_skeleton(backbone: str) -> nn.Module:
    return timm.create_model(backbone, features_only=True, out_indices=(1, 2, 3, 4))


class TestAnySize:
    """Padding to a multiple of 32 and to 64 at least."""

    @pytest.mark.parametrize(
        ("size", "padded"),
        [((64, 96), (64, 96)), ((32, 24), (64, 64)), ((56, 40), (64, 64)), ((250, 97), (256, 128))],
    )
    def test_padded_size(self, size: tuple[int, int], padded: tuple[int, int]) -> None:
        with torch.device("meta"):
            assert small(patch_size=size).padded_size == padded

    def test_padding_is_cut_off_again(self) -> None:
        """A small patch gives what the padded image gives; a fitting one is left alone."""
        network, whole = small(patch_size=(56, 40)).eval(), small(patch_size=(64, 64)).eval()
        whole.load_state_dict(network.state_dict())
        x = torch.randn(1, 2, 56, 40)
        with torch.no_grad():
            expected = whole(nn.functional.pad(x, (0, 24, 0, 8)))
            assert torch.equal(network(x), expected[..., :56, :40])

    def test_other_sizes_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"built for 2 channels and patch size \(64, 96\), and got 3 channels"):
            small()(torch.zeros(1, 3, 64, 96))


class TestRefusals:
    """One sentence each."""

    @pytest.mark.parametrize(
        ("words", "arguments"),
        [
            ("both off: DANIE needs one of them", {"self_attention": False, "hierarchical_attention": False}),
            ("DANIE is a 2D network .* train the 2d configuration", {"patch_size": (32, 64, 64)}),
            ("gate is 'none': choose one of full, spatial", {"gate": "none"}),
            ("fusion is 'sum': choose one of joint_preservation", {"fusion": "sum"}),
            ("norm is 'layer': choose one of batch, instance", {"norm": "layer"}),
            ("first_previous is 'zeros': choose one of sum, none", {"first_previous": "zeros"}),
            ("DANIE has 4 stages, and .* are 3 widths", {"widths": [32, 32, 32]}),
            ("timm has no MaxViT 'maxvit': choose one of .*maxvit_rmlp_tiny_rw_256", {"backbone": "maxvit"}),
            ("give the backbone's widths", {"widths": [32, 32, 32, 64]}),
            ("timm has no MaxViT 'test_resnet'", {"backbone": "test_resnet"}),
        ],
    )
    def test_sentence(self, words: str, arguments: dict) -> None:
        with pytest.raises(ValueError, match=words):
            small(**arguments)


@pytest.mark.parametrize("arguments", [{}, {"backbone": PRESETS["L"]["backbone"]}], ids=["S", "L"])
def test_each_parameter_gets_a_gradient(arguments: dict) -> None:
    """Lambda of ES too, which is zero; but not what is added to all the scores of a softmax, to no effect."""
    network = small(**arguments).train()
    network(torch.randn(2, 2, 64, 96)).square().mean().backward()
    without = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert not {name for name in without if not name.endswith(("eh.position.bias", "rel_pos.mlp.fc2.bias"))}


def test_es_is_finite_where_half_precision_is_not() -> None:
    """The products that its softmax sees pass what fp16 holds."""
    module = ES()
    nn.init.ones_(module.scale)
    torch.manual_seed(0)
    s = (10 * torch.randn(1, 16, 64, 64)).half().requires_grad_()
    rows = s.detach().float().flatten(2)
    assert (rows @ rows.transpose(1, 2)).max() > torch.finfo(torch.float16).max
    with torch.autocast("cpu", dtype=torch.float16):
        result = module(s)
    assert result.dtype == torch.float16
    assert result.isfinite().all()
    result.float().square().mean().backward()
    assert s.grad.isfinite().all()
    assert module.scale.grad.isfinite().all()


def test_building_a_network_needs_no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments, **_options) -> None:
        raise AssertionError("a network was built with a connection")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(timm.models._builder, "load_pretrained", refuse)
    small()


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_norm_of_the_convolutions(norm: str) -> None:
    network = small(norm=norm)
    own = [module for part in (network.hap, network.decoder) for module in part.modules()]
    kinds = {type(module) for module in own if isinstance(module, nn.modules.batchnorm._NormBase)}
    assert kinds == {nn.BatchNorm2d if norm == "batch" else nn.InstanceNorm2d}
    assert network.train()(torch.randn(1, 2, 64, 96)).isfinite().all()


@pytest.mark.parametrize("preset", PRESETS)
def test_recomputation_gives_the_same_step(preset: str) -> None:
    """With checkpointing: less memory, and the same gradients and running statistics of batch norm."""
    networks = [small(backbone=PRESETS[preset]["backbone"], checkpointing=value).train() for value in (False, True)]
    networks[1].load_state_dict(networks[0].state_dict())
    x = torch.randn(2, 2, 64, 96)
    for network in networks:
        torch.manual_seed(1)  # MaxViT's map of positions has a dropout
        network(x).square().mean().backward()
    for (name, one), two in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-7, msg=name)
    for (name, one), two in zip(networks[0].named_buffers(), networks[1].buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=name)
    kept = [bytes_kept_for_backward(network, x) for network in networks]
    assert kept[1] < 0.8 * kept[0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_it_has_the_gradients_of_an_uncompiled_step(checkpointing: bool) -> None:
    """Under autocast, which is left before the backward pass: HAP's float32 products have float32 gradients."""
    gradients = []
    for compiled in (False, True):
        network = small(self_attention=False, checkpointing=checkpointing).train()
        if compiled:
            torch._dynamo.reset()
            parts = network.parts_to_compile()
            assert parts
            compile_parts(parts, backend="aot_eager", fullgraph=True)
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.float16):
            logits = network(torch.randn(2, 2, 64, 96))
        loss = nn.functional.cross_entropy(logits.float(), torch.randint(0, 3, (2, 64, 96)))
        (1024 * loss).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    assert (gradients[1] - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


def test_exempt_from_weight_decay() -> None:
    exempt = small(backbone=PRESETS["L"]["backbone"]).parameters_without_weight_decay()
    kinds = {name.rsplit(".", 1)[-1] for name in exempt if ".rel_pos." not in name}
    assert kinds == {"scale", "calibration", "gamma"}
    assert any(".rel_pos.mlp." in name for name in exempt)


def test_stages_are_described() -> None:
    assert small().describe_stages()[1] == {
        "stage": 2,
        "stride": 8,
        "grid": (8, 12),
        "channels": 32,
        "window": (2, 3),
    }
    assert small(self_attention=False).describe_stages()[1]["window"] == "none"


@pytest.mark.parametrize("name", ["drop_rate", "drop_path_rate"])
def test_rates_that_leave_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is 1.0"):
        DANIE(1, 2, patch_size=(64, 64), backbone_settings={name: 1.0})
