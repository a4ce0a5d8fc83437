"""DCA against the authors' numbers, and the properties that no number at one size shows."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn

from nnunetv2_ext.architectures.cost import bytes_kept_for_backward
from nnunetv2_ext.architectures.dca import (
    DCA,
    LAYOUTS,
    ChannelCrossAttention,
    DualAttentionBlock,
    SpatialCrossAttention,
    choose_token_stage,
)
from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.layers.resize import Interpolation, average_to, interpolate_to
from nnunetv2_ext.weights import from_authors
from nnunetv2_ext.weights.files import WeightsError
from tests import golden_files

MIB = 2**20
PAPER = (32, 64, 128, 256)
SIZES_2D = ((24, 20), (12, 10), (6, 5))
SIZES_3D = ((4, 8, 12), (4, 4, 6), (2, 2, 3))


def make_maps(channels: tuple[int, ...], sizes: tuple[tuple[int, ...], ...], batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, width, *size) for width, size in zip(channels, sizes, strict=True)]


def small(spatial_dims: int = 2, channels: tuple[int, ...] = (8, 16, 8), **settings) -> DCA:
    torch.manual_seed(0)
    return DCA(channels=channels, spatial_dims=spatial_dims, **settings)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", golden_files.names("dca-"))
def test_gives_the_authors_numbers(name: str) -> None:
    golden = golden_files.load(name)
    module = from_authors("dca", golden["config"], golden_files.make_state_dict(golden)).eval()
    assert count(module) == golden["trainable_parameters"]
    inputs = golden_files.make_inputs(golden)
    with torch.no_grad():
        # One attention of one stage takes two tensors and gives one; the rest take and give one per stage.
        outputs = [module(*inputs)] if golden["config"]["module"] in ("cca", "sca") else module(inputs)
    # float32 rounding is near 1e-6; a layer norm epsilon of 1e-5 shows just above 2e-5.
    assert golden_files.largest_error(golden, outputs) <= 2e-5


def test_unknown_part_of_the_authors_module_is_named() -> None:
    with pytest.raises(ValueError, match="no part of kind 'gate'"):
        from_authors("dca", {"module": "gate"}, {})
    config = {key: value for key, value in golden_files.load("dca-3stage")["config"].items() if key != "dim"}
    with pytest.raises(WeightsError, match="lacks the setting 'dim'"):
        from_authors("dca", config, {})


@pytest.mark.parametrize(
    ("channels", "settings", "parameters"),
    [
        (PAPER, {}, 110_560),
        (PAPER[:3], {}, 30_688),
        ((64, 128, 256, 512), {}, 395_200),
        (PAPER, {"spatial_attention": False}, 100_000),
        (PAPER, {"channel_attention": False}, 100_000),
        (PAPER, {"n_blocks": 2}, 110_560 + 21_120),
        (PAPER, {"n_blocks": 3}, 110_560 + 2 * 21_120),
        (PAPER, {"layout": "sca-cca"}, 110_560),
        (PAPER, {"layout": "sum"}, 110_560),
        # The paper's tables give whole U-Nets: 8,749,345 and 9,010,529 against 8,747,905.
        (PAPER, {"layout": "concat"}, 110_560 + 8_749_345 - 8_747_905),
        (PAPER, {"patch_embedding": "conv"}, 110_560 + 9_010_529 - 8_747_905),
    ],
)
def test_parameter_counts(channels: tuple[int, ...], settings: dict, parameters: int) -> None:
    sizes = [(224 // 2**stage,) * 2 for stage in range(len(channels))]
    with torch.device("meta"):
        assert count(DCA(channels=channels, spatial_dims=2, map_sizes=sizes, **settings)) == parameters


def test_initial_values_survive_an_initialiser_of_convolutions() -> None:
    dca = small(channels=PAPER, layout="concat")
    dca.apply(InitWeights_He(1e-2))
    scales = torch.cat([p.flatten() for n, p in dca.named_parameters() if ".mix." not in n and "norm" not in n])
    assert scales.abs().max() <= 1
    projections = torch.cat([p for n, p in dca.named_parameters() if ".query." in n or ".value." in n])
    assert projections.std().item() == pytest.approx(1 / math.sqrt(3), rel=0.05)
    for projection in dca.token_projections:
        assert projection.weight.abs().max() > 0.8


def test_layer_norm_epsilon() -> None:
    norms = [module for module in small().modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 6
    assert {norm.eps for norm in norms} == {1e-6}


@pytest.mark.parametrize(
    ("patch_size", "poolings", "stages", "grid", "parameters"),
    [
        ((224, 224), [(2, 2)] * 4, 4, (28, 28), 110_560),
        ((224, 224), [(2, 2)] * 3, 3, (56, 56), 30_688),
        ((512, 512), [(2, 2)] * 7, 5, (32, 32), 405_728),
        ((256, 256), [(2, 2)] * 6, 4, (32, 32), 110_560),
        ((192, 160), [(2, 2)] * 5, 4, (24, 20), 110_560),
        ((128, 128, 128), [(2, 2, 2)] * 5, 5, (8, 8, 8), 235_040),
        ((160, 128, 112), [(2, 2, 2)] * 4 + [(2, 2, 1)], 5, (10, 8, 7), 235_040),
        ((48, 192, 192), [(1, 2, 2), *[(2, 2, 2)] * 3, (1, 2, 2)], 5, (6, 12, 12), 235_040),
        ((20, 256, 224), [(1, 2, 2), *[(2, 2, 2)] * 2, *[(1, 2, 2)] * 2], 5, (5, 16, 14), 235_040),
        ((64, 192, 160), [(1, 2, 2), *[(2, 2, 2)] * 4], 5, (8, 12, 10), 235_040),
        ((40, 56, 40), [(2, 2, 2)] * 3, 3, (10, 14, 10), 30_688),
        ((28, 256, 256), [(1, 2, 2), *[(2, 2, 2)] * 2, *[(1, 2, 2)] * 3], 6, (7, 8, 8), 364_640),
    ],
)
def test_token_stage_of_plans(patch_size, poolings, stages, grid, parameters) -> None:
    geometry = Geometry.from_strides(patch_size, poolings)
    skips = [geometry.grid(stage) for stage in range(geometry.n_stages - 1)]
    chosen = choose_token_stage(skips)
    assert chosen + 1 == stages
    assert skips[chosen] == grid
    with torch.device("meta"):
        dca = DCA(channels=geometry.features[:stages], spatial_dims=len(patch_size))
    assert count(dca) == parameters


def test_token_stage_of_a_tie_is_the_deeper_one() -> None:
    assert choose_token_stage([(56, 28), (28, 14)]) == 1
    assert choose_token_stage([(2, 2)]) == 0
    with pytest.raises(ValueError, match="at least one skip"):
        choose_token_stage([])


def attend_channels_in_loops(layer: ChannelCrossAttention, tokens: Tensor, context: Tensor) -> Tensor:
    """Compute CCA in float64 as its definition reads: one head, query channel and key channel at a time."""
    weight = {name: parameter.detach().double() for name, parameter in layer.named_parameters()}
    tokens, context = tokens.double(), context.double()
    query = tokens * weight["query.weight"] + weight["query.bias"]
    key = context * weight["key.weight"] + weight["key.bias"]
    value = context * weight["value.weight"] + weight["value.bias"]
    (width, total), heads = (tokens.shape[2], context.shape[2]), layer.num_heads
    output = torch.zeros_like(tokens)
    for sample in range(len(tokens)):
        for channel in range(width):
            head = channel // (width // heads)
            others = range(head * total // heads, (head + 1) * total // heads)
            scores = torch.stack(
                [(query[sample, :, channel] * key[sample, :, other]).sum() / math.sqrt(total) for other in others]
            )
            for share, other in zip(scores.softmax(0), others, strict=True):
                output[sample, :, channel] += share * value[sample, :, other]
    return output * weight["out.weight"] + weight["out.bias"]


def attend_positions_in_loops(layer: SpatialCrossAttention, context: Tensor, tokens: Tensor) -> Tensor:
    """Compute SCA in float64 as its definition reads: one head and query token at a time."""
    weight = {name: parameter.detach().double() for name, parameter in layer.named_parameters()}
    tokens, context = tokens.double(), context.double()
    query = context * weight["query.weight"] + weight["query.bias"]
    key = context * weight["key.weight"] + weight["key.bias"]
    value = tokens * weight["value.weight"] + weight["value.bias"]
    heads, total, width = layer.num_heads, context.shape[2], tokens.shape[2]
    output = torch.zeros_like(tokens)
    for sample in range(len(tokens)):
        for head in range(heads):
            wide = slice(head * total // heads, (head + 1) * total // heads)
            narrow = slice(head * width // heads, (head + 1) * width // heads)
            for position in range(tokens.shape[1]):
                scores = key[sample, :, wide] @ query[sample, position, wide] / math.sqrt(total / heads)
                output[sample, position, narrow] = scores.softmax(0) @ value[sample, :, narrow]
    return output * weight["out.weight"] + weight["out.bias"]


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attentions_are_their_definitions(heads: int) -> None:
    torch.manual_seed(heads)
    tokens, context = torch.randn(2, 6, 8), torch.randn(2, 6, 20)
    channel = ChannelCrossAttention(channels=8, total_channels=20, num_heads=heads)
    expected = attend_channels_in_loops(channel, tokens, context)
    assert (channel(tokens, context) - expected).abs().max() <= 1e-5 * expected.abs().max()
    spatial = SpatialCrossAttention(channels=8, total_channels=20, num_heads=heads)
    expected = attend_positions_in_loops(spatial, context, tokens)
    assert (spatial(context, tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_their_definitions(layout: str) -> None:
    torch.manual_seed(0)
    block = DualAttentionBlock(channels=(4, 8), channel_heads=(1, 1), spatial_heads=(4, 4), layout=layout)
    tokens = [torch.randn(2, 6, 4), torch.randn(2, 6, 8)]

    def across_channels(x: list[Tensor]) -> list[Tensor]:
        normed = [norm(y) for norm, y in zip(block.channel_norms, x, strict=True)]
        return [attend(y, torch.cat(normed, 2)) for attend, y in zip(block.channel_attentions, normed, strict=True)]

    def across_positions(x: list[Tensor]) -> list[Tensor]:
        normed = [norm(y) for norm, y in zip(block.spatial_norms, x, strict=True)]
        return [attend(torch.cat(normed, 2), y) for attend, y in zip(block.spatial_attentions, normed, strict=True)]

    def add(*terms: list[Tensor]) -> list[Tensor]:
        return [sum(stage) for stage in zip(*terms, strict=True)]

    if layout == "cca-sca":
        first = add(tokens, across_channels(tokens))
        expected = add(first, across_positions(first))
    elif layout == "sca-cca":
        first = add(tokens, across_positions(tokens))
        expected = add(first, across_channels(first))
    elif layout == "sum":
        expected = add(tokens, across_channels(tokens), across_positions(tokens))
    else:
        expected = []
        pairs = zip(block.merges, tokens, across_channels(tokens), across_positions(tokens), strict=True)
        for merge, own, channel, spatial in pairs:
            merged = F.conv1d(
                torch.stack((channel, spatial), 3).flatten(2).transpose(1, 2),
                merge.weight[:, :, None],
                merge.bias,
                groups=own.shape[2],
            )
            expected.append(own + merged.transpose(1, 2))
    for got, want in zip(block(tokens), expected, strict=True):
        assert torch.allclose(got, want, atol=1e-5)


def test_convolutional_patches() -> None:
    """The convolution takes the place of the average, and nothing else changes."""
    dca = small(patch_embedding="conv", map_sizes=SIZES_2D).eval()
    pooled = small().eval()
    pooled.load_state_dict({name: tensor for name, tensor in dca.state_dict().items() if "patch_convs" not in name})
    for conv, window in zip(dca.patch_convs, (16, 4, 1), strict=True):
        nn.init.zeros_(conv.bias)
        nn.init.zeros_(conv.weight)
        with torch.no_grad():
            conv.weight[range(len(conv.weight)), range(len(conv.weight))] = 1 / window
    maps = make_maps((8, 16, 8), SIZES_2D)
    for got, want in zip(dca(maps), pooled(maps), strict=True):
        assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 12), (7, 5), (9, 4), (4, 6, 8), (5, 3, 7)])
def test_resizing_is_torchs(size: tuple[int, ...]) -> None:
    x, grid = torch.randn(2, 3, *size), (4, 2, 1)[: len(size)]
    pool = F.adaptive_avg_pool2d if len(size) == 2 else F.adaptive_avg_pool3d
    assert torch.allclose(average_to(x, grid), pool(x, grid), atol=1e-6)
    coarse, mode = torch.randn(2, 3, *grid), "bilinear" if len(size) == 2 else "trilinear"
    expected = F.interpolate(coarse, size=size, mode=mode, align_corners=True)
    assert torch.allclose(interpolate_to(coarse, size), expected, atol=1e-6)
    for other in (x, x.double()):
        assert torch.allclose(interpolate_to(coarse, size, plus=other).float(), expected + x, atol=1e-6)
    assert torch.equal(interpolate_to(x, size, plus=x), 2 * x)


CASES = [pytest.param(2, SIZES_2D, id="2d"), pytest.param(3, SIZES_3D, id="3d")]


@pytest.mark.parametrize(("dims", "sizes"), CASES)
class TestSymmetries:
    """Tokens are a set: only pooling and interpolation know about space."""

    def test_shapes_and_stages(self, dims: int, sizes) -> None:
        for n_stages in (1, 2, 3):
            channels = (6, 10, 4)[:n_stages]
            maps = make_maps(channels, sizes[:n_stages])
            outputs = small(dims, channels)(maps)
            assert [output.shape for output in outputs] == [x.shape for x in maps]

    def test_flipping_the_inputs_flips_the_outputs(self, dims: int, sizes) -> None:
        uneven = [tuple(size + stage for size in row) for stage, row in enumerate(sizes)]
        dca, maps = small(dims, token_grid=sizes[-1]).eval(), make_maps((8, 16, 8), uneven)
        outputs = dca(maps)
        for axis in range(2, 2 + dims):
            for flipped, output in zip(dca([x.flip(axis) for x in maps]), outputs, strict=True):
                assert torch.allclose(flipped.flip(axis), output, atol=1e-5)

    def test_transposing_the_inputs_transposes_the_outputs(self, dims: int, sizes) -> None:
        dca, maps = small(dims).eval(), make_maps((8, 16, 8), sizes)
        for turned, output in zip(dca([x.transpose(2, 3) for x in maps]), dca(maps), strict=True):
            assert torch.allclose(turned.transpose(2, 3), output, atol=1e-5)

    def test_samples_do_not_meet(self, dims: int, sizes) -> None:
        dca, maps = small(dims).eval(), make_maps((8, 16, 8), sizes)
        for alone, together in zip(dca([x[1:] for x in maps]), dca(maps), strict=True):
            assert torch.allclose(alone, together[1:], atol=1e-5)

    def test_each_output_hears_of_each_input(self, dims: int, sizes) -> None:
        maps = [x.requires_grad_() for x in make_maps((8, 16, 8), sizes)]
        for output in small(dims)(maps):
            gradients = torch.autograd.grad((output * torch.randn_like(output)).sum(), maps, retain_graph=True)
            assert all(gradient.ne(0).any() for gradient in gradients)


def test_flat_volume_is_an_image() -> None:
    flat, volume = small(2).eval(), small(3).eval()
    tensors = volume.state_dict()
    volume.load_state_dict({name: x.reshape(tensors[name].shape) for name, x in flat.state_dict().items()})
    maps = make_maps((8, 16, 8), SIZES_2D)
    for got, want in zip(volume([x[:, :, None] for x in maps]), flat(maps), strict=True):
        assert torch.allclose(got[:, :, 0], want, atol=1e-5)


def test_token_scale_is_the_papers_up_to_its_grid() -> None:
    paper = ChannelCrossAttention(channels=4, total_channels=8, num_heads=1)
    tokens = ChannelCrossAttention(channels=4, total_channels=8, num_heads=1, scale="tokens")
    tokens.load_state_dict(paper.state_dict())
    x, context = torch.randn(1, 784, 4), torch.randn(1, 784, 8)
    assert torch.equal(paper(x, context), tokens(x, context))
    # Twice the tokens at half the scale: the same scores.
    assert torch.allclose(tokens(x.repeat(1, 2, 1), context.repeat(1, 2, 1))[:, :784], paper(x, context), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Finite with thousands of tokens and large inputs, and near the numbers of float32."""
    sizes = ((128, 128), (64, 64))
    dca = small(channels=(8, 16))
    maps = [10 * x for x in make_maps((8, 16), sizes, batch=1)]
    with torch.autocast("cpu", dtype=dtype):
        outputs = dca(maps)
    sum(output.float().square().mean() for output in outputs).backward()
    assert all(output.isfinite().all() for output in outputs)
    assert all(parameter.grad.isfinite().all() for parameter in dca.parameters())
    for got, want in zip(outputs, dca(maps), strict=True):
        assert (got - want).abs().max() <= 0.1 * want.abs().max()


def test_channel_scores_are_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    softmax = Tensor.softmax
    monkeypatch.setattr(Tensor, "softmax", lambda x, dim: seen.append(x.dtype) or softmax(x, dim))
    attend = ChannelCrossAttention(channels=4, total_channels=8, num_heads=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attend(torch.randn(1, 6, 4).bfloat16(), torch.randn(1, 6, 8).bfloat16())
    assert seen == [torch.float32]


def test_memory_at_the_papers_sizes() -> None:
    """The authors' code keeps 123 and 555 MiB."""
    for channels, sizes, limit in ((PAPER, (224, 112, 56, 28), 30), (PAPER[:3], (224, 112, 56), 40)):
        dca = small(channels=channels)
        maps = [x.requires_grad_() for x in make_maps(channels, [(size,) * 2 for size in sizes], batch=1)]
        network = nn.Module()
        network.dca, network.forward = dca, lambda x, dca=dca, maps=maps: dca(maps)
        assert bytes_kept_for_backward(network, maps[0]) <= limit * MIB


def update_plainly(dca: DCA, maps: list[Tensor]) -> list[Tensor]:
    """Compute DCA without recomputation, with torch's own resizing, and with norm and activation called as modules."""
    grid = maps[-1].shape[2:]
    pool = F.adaptive_avg_pool2d if len(grid) == 2 else F.adaptive_avg_pool3d
    tokens = [
        project(pool(x, grid).flatten(2).transpose(1, 2))
        for project, x in zip(dca.token_projections, maps, strict=True)
    ]
    for block in dca.blocks:
        tokens = block(tokens)
    outputs = []
    for update, x, y in zip(dca.updates, maps, tokens, strict=True):
        mode = "bilinear" if len(grid) == 2 else "trilinear"
        coarse = update.mix(y.transpose(1, 2).unflatten(2, grid))
        fine = F.interpolate(coarse, size=x.shape[2:], mode=mode, align_corners=True)
        outputs.append(update.activation(update.norm(x + fine)))
    return outputs


NORMS = {
    "batch": {},
    "batch in place": {"activation": nn.LeakyReLU, "activation_kwargs": {"inplace": True}},
    "instance": {"norm": nn.InstanceNorm2d, "norm_kwargs": {"affine": True}, "activation_kwargs": {"inplace": True}},
    "instance without scale": {"norm": nn.InstanceNorm2d},
    "instance with state": {"norm": nn.InstanceNorm2d, "norm_kwargs": {"track_running_stats": True}},
    "batch that averages all": {"norm_kwargs": {"momentum": None}},
    "batch without state": {"norm_kwargs": {"track_running_stats": False}},
    "none": {"norm": nn.Identity, "activation": nn.Identity},
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("settings", NORMS.values(), ids=NORMS.keys())
def test_recomputation_changes_no_number(settings: dict, checkpointing: bool) -> None:
    """Same outputs, gradients and running statistics, which are updated once a pass."""
    results = []
    for step in (lambda dca, maps: dca(maps), update_plainly):
        dca = small(checkpointing=checkpointing, **settings).double()
        maps = [x.double().requires_grad_() for x in make_maps((8, 16, 8), SIZES_2D)]
        for _ in range(2):
            outputs = step(dca, maps)
            sum(output.square().sum() for output in outputs).backward()
        with torch.no_grad():
            dca.eval()
            later = step(dca, maps)
        gradients = [x.grad for x in (*maps, *dca.parameters()) if x.grad is not None]
        results.append([*outputs, *later, *gradients, *dca.buffers()])
    assert len(results[0]) == len(results[1])
    for got, want in zip(*results, strict=True):
        assert got.dtype == want.dtype
        assert (got - want).abs().max() <= 1e-9 * (1 + want.abs().max())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_exact(layout: str) -> None:
    dca = small(channels=(4, 4), layout=layout, spatial_heads=2, activation=nn.Tanh).double()
    maps = [x.double().requires_grad_() for x in make_maps((4, 4), ((4, 6), (2, 3)))]
    weights = [parameter for parameter in dca.parameters() if parameter.ndim == 1][:6]
    assert torch.autograd.gradcheck(lambda *inputs: tuple(dca(inputs[:2])), (*maps, *weights), atol=1e-4)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_compiles_into_one_graph_for_training(norm: type[nn.Module]) -> None:
    torch._dynamo.reset()
    maps = [x.double() for x in make_maps((8, 16, 8), SIZES_2D)]
    results = []
    for compiled in (False, True):
        dca = small(norm=norm, norm_kwargs={"affine": True}).double()
        step = torch.compile(dca, backend="aot_eager", fullgraph=True) if compiled else dca
        outputs = step(maps)
        sum(output.square().sum() for output in outputs).backward()
        results.append([*outputs, *(parameter.grad for parameter in dca.parameters()), *dca.buffers()])
    for got, want in zip(*results, strict=True):
        assert (got - want).abs().max() <= 1e-9 * (1 + want.abs().max())


def heads_of(dca: DCA) -> tuple[list[int], list[int]]:
    block = dca.blocks[0]
    return [x.num_heads for x in block.channel_attentions], [x.num_heads for x in block.spatial_attentions]


def test_heads_that_fit() -> None:
    assert heads_of(small(channels=PAPER)) == ([1] * 4, [4] * 4)
    assert heads_of(small(channels=(6, 12), channel_heads=8)) == ([6, 6], [3, 3])
    assert heads_of(small(channels=(5, 7))) == ([1, 1], [1, 1])
    assert heads_of(small(channels=(8, 16), channel_heads=(2, 4), spatial_heads=(8, 1))) == ([2, 4], [8, 1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"channels": ()}, "at least one stage"),
        (
            {"spatial_heads": (4, 3, 4)},
            r"spatial_heads \(4, 3, 4\): 3 heads must divide the stage's 16 channels and all 32",
        ),
        ({"channel_heads": (1, 1)}, r"channel_heads \(1, 1\) has 2 entries for 3 stages"),
        ({"channel_heads": 0}, "channel_heads is 0"),
        ({"n_blocks": 0}, "n_blocks is 0"),
        ({"layout": "cca"}, "no layout 'cca'; there are cca-sca, sca-cca, sum, concat"),
        ({"patch_embedding": "max"}, "no patch_embedding 'max'"),
        ({"channel_scale": "none"}, "no channel_scale 'none'"),
        ({"channel_attention": False, "spatial_attention": False}, "channel attention, spatial attention, or both"),
        ({"channel_attention": False, "layout": "concat"}, "leave both on"),
        ({"patch_embedding": "conv"}, "needs map_sizes"),
        ({"patch_embedding": "conv", "map_sizes": ((24, 20), (13, 10), (6, 5))}, r"stage 1 has size \(13, 10\)"),
        ({"map_sizes": SIZES_2D[:2]}, "map_sizes has 2 entries for 3 stages"),
        (
            {"token_grid": (12, 12), "map_sizes": SIZES_2D},
            r"Token grid \(12, 12\) does not fit into the map of stage 1, of size \(12, 10\)",
        ),
        ({"token_grid": (2, 2, 2), "map_sizes": SIZES_2D}, r"Token grid \(2, 2, 2\) does not fit"),
        ({"spatial_dims": 4}, "spatial_dims is 4"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**settings)


def test_interpolation_between_known_sizes_survives_every_move() -> None:
    """Its matrices are right after `to_empty`, exact after `double`, and no part of the state dict."""
    grid, size = (4, 2, 1), (9, 4, 3)
    x = torch.randn(2, 3, *grid, dtype=torch.float64)
    expected = F.interpolate(x, size=size, mode="trilinear", align_corners=True)
    with torch.device("meta"):
        skeleton = Interpolation(grid, size)
    for module in (skeleton.to_empty(device="cpu").double(), Interpolation(grid, size).half().double()):
        assert not module.state_dict()
        assert torch.allclose(module(x), expected, atol=1e-12)
    assert Interpolation(grid, size).half()(x.half()).dtype == torch.float16
