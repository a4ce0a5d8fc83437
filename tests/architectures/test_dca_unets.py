"""The six U-Nets of the DCA paper against the authors' numbers, and what no number at one size shows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.cost import estimate_cost
from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.unets.blocks import Layers
from nnunetv2_ext.architectures.unets.common import UShapedNetwork, scale_dilations
from nnunetv2_ext.architectures.unets.double_unet import DoubleUNet, VGGStage
from nnunetv2_ext.architectures.unets.multi_res_unet import MultiResUNet, block_widths
from nnunetv2_ext.architectures.unets.r2unet import R2UNet
from nnunetv2_ext.architectures.unets.resunet_pp import ResUNetPP
from nnunetv2_ext.architectures.unets.unet import UNet
from nnunetv2_ext.architectures.unets.vnet import VNet
from nnunetv2_ext.weights import from_authors
from tests import golden_files

MIB = 2**20
NETWORKS = (UNet, VNet, R2UNet, ResUNetPP, DoubleUNet, MultiResUNet)
GOLDEN = [
    pytest.param(name, marks=pytest.mark.slow if name.endswith("paper") else ())
    for name in golden_files.names("dca_unets")
]
each_network = pytest.mark.parametrize("network_class", NETWORKS, ids=lambda network: network.__name__)


def small_network(network_class: type[UShapedNetwork], **changes) -> UShapedNetwork:
    """Build an authors' network with an eighth of its width, for images of 48 x 48."""
    features = tuple(width // 8 for width in network_class.AUTHORS_FEATURES)
    return network_class(3, 2, **{"patch_size": (48, 48), "features": features, "dca_stages": 2, **changes})


def planned_network(
    network_class: type[UShapedNetwork], patch_size: tuple[int, ...] = (16, 32, 24), **changes
) -> UShapedNetwork:
    """Build a narrow network as the trainers do, with heads."""
    poolings = [(1, 2, 2), (2, 2, 2), (2, 2, 2)] if len(patch_size) == 3 else [(2, 2)] * 3
    geometry = replace(Geometry.from_strides(patch_size, poolings), features=(8, 16, 24, 24))
    settings = {**network_class.settings_from_plan(geometry), "auxiliary_heads": True, "deep_supervision": True}
    return network_class(2, 3, **{**settings, **changes})


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", GOLDEN)
def test_gives_the_authors_numbers(name: str) -> None:
    golden = golden_files.load(name)
    network = from_authors("dca_unets", golden["config"], golden_files.make_state_dict(golden)).eval()
    assert count(network) == golden["trainable_parameters"]
    with torch.no_grad():
        logits = network(*golden_files.make_inputs(golden))
    # float32 rounding alone is near 1e-6; the channel attention of DoubleU-Net's three modules makes 2e-5 of it.
    assert golden_files.largest_error(golden, [logits]) <= (1e-4 if "doubleunet-paper" in name else 1e-5)


@pytest.mark.parametrize(
    ("network_class", "plain", "with_dca", "synapse_plain", "synapse_with_dca"),
    [
        (UNet, 8_637_345, 8_747_905, 8_637_033, 8_747_593),
        (VNet, 35_970_106, 36_080_666, 35_968_706, 36_079_266),
        (R2UNet, 9_781_729, 9_892_289, 9_781_929, 9_892_489),
        (ResUNetPP, 13_090_980, 13_121_668, 13_090_092, 13_120_780),
        (DoubleUNet, 29_683_556, 30_584_516, 29_683_820, 30_584_780),
        (MultiResUNet, 7_244_070, 7_354_630, 7_244_240, 7_354_800),
    ],
)
def test_parameter_counts(network_class, plain, with_dca, synapse_plain, synapse_with_dca) -> None:
    # DoubleU-Net repeats a single channel, so that it has the weights for three.
    for channels, classes, expected in ((3, 1, (plain, with_dca)), (1, 9, (synapse_plain, synapse_with_dca))):
        with torch.device("meta"):
            counts = tuple(count(network_class(channels, classes, dca=dca)) for dca in (False, True))
        assert counts == expected


@pytest.mark.parametrize(
    ("network_class", "plain", "with_dca"),
    [
        (UNet, 172, 238),
        (VNet, 171, 241),
        (R2UNet, 405, 472),
        (ResUNetPP, 413, 543),
        (DoubleUNet, 348, 678),
        (MultiResUNet, 325, 392),
    ],
)
def test_memory_at_the_paper_size(network_class: type[UShapedNetwork], plain: int, with_dca: int) -> None:
    """The authors' code keeps as much for the backward pass without DCA, and 283 to 958 MiB with it."""
    assert estimate_cost(lambda: network_class(3, 1, dca=False)).kept_bytes <= plain * MIB
    assert estimate_cost(lambda: network_class(3, 1)).kept_bytes <= with_dca * MIB


@each_network
@pytest.mark.parametrize("dca", [False, True])
def test_parameters_without_influence(network_class: type[UShapedNetwork], dca: bool) -> None:
    """The authors' networks have them, and those built from a plan have not."""
    network = small_network(network_class, dca=dca).train()
    network(torch.randn(2, 3, 48, 48)).square().mean().backward()
    unused = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    expected = set()
    if network_class is VNet and not dca:
        expected = {"encoder.0.project.weight", "encoder.0.project.bias"}
    if network_class is MultiResUNet and dca:
        last = {0: 3, 1: 2}
        expected = {f"encoder.{i}.path.norms.{norm}.{kind}" for i, norm in last.items() for kind in ("weight", "bias")}
    assert unused == expected
    lean = small_network(network_class, dca=dca, unused_layers=False)
    assert lean.state_dict().keys() == network.state_dict().keys() - {
        name
        for name in network.state_dict()
        if name.rpartition(".")[0] in {used.rpartition(".")[0] for used in expected}
    }


@each_network
def test_all_last_norms_of_res_paths_are_dead_at_the_paper_size(network_class: type[UShapedNetwork]) -> None:
    with torch.device("meta"):
        whole, lean = network_class(3, 1), network_class(3, 1, unused_layers=False)
    missing = whole.state_dict().keys() - lean.state_dict().keys()
    assert sum(name.endswith((".weight", ".bias")) for name in missing) == (8 if network_class is MultiResUNet else 0)


@each_network
@pytest.mark.parametrize("dca", [False, True])
@pytest.mark.parametrize("size", [(96, 64), (48, 80)])
def test_other_sizes_than_the_patch(network_class: type[UShapedNetwork], dca: bool, size: tuple[int, int]) -> None:
    network = small_network(network_class, dca=dca).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, *size)).shape == (1, 2, *size)


@each_network
@pytest.mark.parametrize("dca", [False, True])
def test_from_a_plan_in_3d(network_class: type[UShapedNetwork], dca: bool) -> None:
    """Outputs at every resolution above the deepest, and a gradient for each parameter."""
    poolings = [(1, 2, 2), (2, 2, 2), (2, 2, 2)]
    geometry = replace(Geometry.from_strides((32, 48, 40), poolings), features=(8, 16, 24, 24))
    settings = network_class.settings_from_plan(geometry)
    network = network_class(1, 3, **settings, dca=dca, auxiliary_heads=True, deep_supervision=True).train()
    outputs = network(torch.randn(1, 1, 32, 48, 40))
    assert [tuple(output.shape[2:]) for output in outputs] == [(32, 48, 40), (32, 24, 20), (16, 12, 10)]
    assert network.output_strides == ((1, 1, 1), (1, 2, 2), (2, 4, 4))
    sum(output.square().mean() for output in outputs).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("network_class", [UNet, VNet, R2UNet, ResUNetPP, MultiResUNet])
@pytest.mark.parametrize("dca", [False, True])
def test_a_plan_of_the_authors_size_gives_the_authors_network(network_class: type[UShapedNetwork], dca: bool) -> None:
    """But for nnU-Net's norm and activation."""
    n_stages = len(network_class.AUTHORS_FEATURES)
    plan = network_class.settings_from_plan(Geometry.from_strides((224, 224), [(2, 2)] * (n_stages - 1)))
    plan.update(norm="batch", activation=None, unused_layers=True)
    with torch.device("meta"):
        ours, authors = network_class(3, 1, dca=dca, **plan), network_class(3, 1, dca=dca)
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: tensor.shape for name, tensor in authors.state_dict().items()
    }
    assert ours.describe_stages() == authors.describe_stages()
    dilations = [
        [module.dilation for module in network.modules() if isinstance(module, nn.Conv2d)]
        for network in (ours, authors)
    ]
    assert dilations[0] == dilations[1]


@pytest.mark.parametrize(
    ("network_class", "millions"),
    [(UNet, 35.5), (VNet, 51.5), (R2UNet, 8.2), (ResUNetPP, 16.5), (DoubleUNet, 11.1), (MultiResUNet, 7.4)],
)
def test_size_under_a_3d_plan(network_class: type[UShapedNetwork], millions: float) -> None:
    """At 128 x 128 x 128 with nnU-Net's widths of 32 to 320; all but U-Net take half of them."""
    settings = network_class.settings_from_plan(Geometry.from_strides((128,) * 3, [(2, 2, 2)] * 5))
    with torch.device("meta"):
        network = network_class(1, 2, **settings, dca=False, auxiliary_heads=True)
    assert count(network) / 1e6 == pytest.approx(millions, rel=0.02)
    assert all(width % 8 == 0 for width in network.features)


def test_kernels_of_a_plan_are_kept() -> None:
    """A kernel of one voxel stays one wide, in V-Net too, where others grow to 2k - 1."""
    geometry = replace(
        Geometry.from_strides((8, 32, 32), [(1, 2, 2), (2, 2, 2)]), kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3))
    )
    with torch.device("meta"):
        convs = VNet(1, 2, **VNet.settings_from_plan(geometry)).encoder
    assert convs[0].conv.kernel_size == (1, 5, 5)
    assert convs[1].convs[0].conv.kernel_size == (5, 5, 5)


def test_dilations_are_scaled_per_axis() -> None:
    assert scale_dilations((1, 6, 12, 18), (28, 28), 28) == ((1, 1), (6, 6), (12, 12), (18, 18))
    assert scale_dilations((1, 6, 12, 18), (4, 14), 28) == ((1, 1), (1, 3), (2, 6), (3, 9))


def test_widths_of_multi_res_blocks() -> None:
    assert [block_widths(width) for width in (32, 64, 128, 256, 512)] == [
        (8, 17, 26),
        (17, 35, 53),
        (35, 71, 106),
        (71, 142, 213),
        (142, 284, 427),
    ]


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_activation_in_place_leaves_a_raw_skip_alone(activation: str) -> None:
    """Without norms the activation follows the very convolution whose output is the skip."""
    stage = VGGStage(Layers(2, "batch", activation), 3, 8, (3, 3), (1, 1), n_convs=2, norm=False)
    out, skip, source = stage(torch.randn(1, 3, 8, 8))
    assert skip.min() < 0
    assert skip is source
    assert torch.equal(out, stage.activation(skip.clone()))


def test_vgg_starts_as_torchvision_leaves_it() -> None:
    encoder = DoubleUNet(3, 1, dca=False).encoder
    conv = encoder[3].convs[1]
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.01)
    assert conv.bias.eq(0).all()


def test_double_unet_repeats_and_normalises_one_channel() -> None:
    network = small_network(DoubleUNet).eval()
    one = DoubleUNet(1, 2, patch_size=(48, 48), features=network.features, dca_stages=2).eval()
    one.load_state_dict(network.state_dict())
    x = torch.rand(1, 1, 48, 48)
    with torch.no_grad():
        assert torch.equal(one(x), network(x.repeat(1, 3, 1, 1)))
    assert not any(name in network.state_dict() for name in ("mean", "deviation"))


def test_second_dca_of_double_unet_reads_what_is_asked_for() -> None:
    torch.manual_seed(0)
    network = small_network(DoubleUNet).eval()
    x = torch.randn(1, 3, 48, 48)
    seen: dict[str, list[Tensor]] = {}
    for name in ("dca", "second_dca"):
        getattr(network, name).register_forward_hook(
            lambda module, inputs, outputs, name=name: seen.update({name: inputs[0], f"{name} out": outputs})
        )
    with torch.no_grad():
        network(x)
        assert all(map(torch.equal, seen["second_dca"], seen["dca out"]))
        network.second_dca_input = "encoder"
        network(x)
        assert all(map(torch.equal, seen["second_dca"], seen["dca"]))


@each_network
@pytest.mark.parametrize("dca_stages", [1, 3])
def test_deeper_skips_stay_plain(network_class: type[UShapedNetwork], dca_stages: int) -> None:
    """Without weight in the DCA's own part, the decoder gets what the rule says from each stage."""
    network = planned_network(network_class, dca_stages=dca_stages).eval()
    assert [row["DCA"] for row in network.describe_stages()] == ["yes"] * dca_stages + ["no"] * (4 - dca_stages)
    assert network.dca.channels == network.features[:dca_stages]
    received = []
    network.dca.register_forward_hook(lambda module, inputs, outputs: received.extend((inputs[0], outputs)))
    network.decoder.register_forward_hook(lambda module, inputs, outputs: received.append(inputs[1]))
    with torch.no_grad():
        network(torch.randn(1, 2, 16, 32, 24))
    maps, outputs, skips = received[0], received[1], received[-1]
    assert [tuple(one.shape[2:]) for one in maps] == list(network.grids[:dca_stages])
    assert len(skips) == 3
    if network_class is not DoubleUNet:
        assert all(one is other for one, other in zip(skips[:dca_stages], outputs, strict=True))


@each_network
@pytest.mark.parametrize("dca", [False, True])
def test_recomputation_changes_no_number(network_class: type[UShapedNetwork], dca: bool) -> None:
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        network = planned_network(network_class, dca=dca, checkpointing=checkpointing).train()
        outputs = network(torch.randn(2, 2, 16, 32, 24))
        sum(output.square().mean() for output in outputs).backward()
        results.append([*outputs, *(parameter.grad for parameter in network.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@each_network
def test_running_statistics_are_updated_once(network_class: type[UShapedNetwork]) -> None:
    """A norm is applied as often as it stands in the equations, though DCA and the poolings are recomputed."""
    network = small_network(network_class).train()
    network(torch.randn(2, 3, 48, 48)).square().mean().backward()
    counts = {
        name: int(module.num_batches_tracked)
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    unused = {
        name
        for name in counts
        if network_class is MultiResUNet and name in ("encoder.0.path.norms.3", "encoder.1.path.norms.2")
    }
    recurrent = {name for name in counts if name.endswith("first.norm")}
    for name, number in counts.items():
        assert number == (0 if name in unused else 3 if name in recurrent else 1), name


@each_network
@pytest.mark.parametrize("patch_size", [(4, 4), (5, 6, 7)])
def test_plans_of_one_stage_are_refused_with_a_remedy(
    network_class: type[UShapedNetwork], patch_size: tuple[int, ...]
) -> None:
    """nnU-Net plans such a network for tiny images."""
    geometry = Geometry.from_strides(patch_size, [])
    assert geometry.n_stages == 1
    with pytest.raises(ValueError, match="two stages at least: plan a larger patch, or take a network that works"):
        network_class(1, 2, **network_class.settings_from_plan(geometry))


@pytest.mark.parametrize(
    ("network_class", "changes", "words"),
    [
        (UNet, {"patch_size": (48, 50)}, "axis 1 has 50 voxels, which its strides, 16 in all, do not divide; use 64"),
        (UNet, {"features": (8,)}, "need one entry for each stage, and two stages at least"),
        (UNet, {"strides": ((1, 1), (2, 2))}, "need one entry for each stage"),
        (UNet, {"norm": "group"}, "The norm 'group' is none of batch, instance"),
        (UNet, {"activation": "gelu"}, "The activation 'gelu' is none of relu, leaky_relu, prelu"),
        (UNet, {"checkpointing": True}, "running statistics twice a step"),
        (UNet, {"dca_stages": 5}, "dca_stages is 5; this network has 4 skip connections"),
        (
            UNet,
            {"dca_stages": 4, "token_grid": (12, 12)},
            r"Token grid \(12, 12\) does not fit into the map of stage 3",
        ),
        (UNet, {"dca_settings": {"channel_heads": (3, 3)}}, "3 heads must divide"),
        (DoubleUNet, {"second_dca_input": "decoder"}, "must be 'first_dca' or 'encoder'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(network_class, changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_network(network_class, **changes)


def test_imagenet_input_needs_one_or_three_channels() -> None:
    with pytest.raises(ValueError, match=r"for 1 or 3 channels, and there are 4: set imagenet_input to False"):
        DoubleUNet(4, 2)


@pytest.mark.parametrize("shape", [(1, 3, 48, 40), (1, 2, 48, 48), (1, 3, 48, 48, 48)])
def test_an_input_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"UNet takes 3 channels and sizes that are multiples of \(16, 16\), and got"):
        small_network(UNet)(torch.zeros(shape))
