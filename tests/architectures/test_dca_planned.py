"""DCA on the networks that nnU-Net plans: what it adds, and that it leaves the rest alone."""

from __future__ import annotations

import pydoc

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from nnunetv2_ext.architectures.cost import estimate_cost
from nnunetv2_ext.architectures.dca_planned import DCAPlannedNetwork
from nnunetv2_ext.architectures.geometry import Geometry, PlannedNetwork
from tests.plan_matrix import PLANS

UNETS = "dynamic_network_architectures.architectures.unet"
SMALL = {2: ((32, 24), [(2, 2)] * 2), 3: ((8, 16, 16), [(1, 2, 2), (2, 2, 2)])}


class Identity(nn.Module):
    """Stands in for DCA."""

    def __init__(self, dca: nn.Module) -> None:
        super().__init__()
        self.channels = dca.channels

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return maps


def geometry(kind: str, spatial_dims: int, **changes) -> Geometry:
    """Make a geometry that holds a planned network with small widths, as a plans file would write it."""
    base = Geometry.from_strides(*SMALL[spatial_dims])
    arguments = {
        "n_stages": base.n_stages,
        "features_per_stage": [8, 12, 16],
        "conv_op": f"torch.nn.modules.conv.Conv{spatial_dims}d",
        "kernel_sizes": [list(kernel) for kernel in base.kernel_sizes],
        "strides": [list(stride) for stride in base.strides],
        "n_blocks_per_stage" if kind == "ResidualEncoderUNet" else "n_conv_per_stage": [1, 2, 1],
        "n_conv_per_stage_decoder": [1, 2],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{spatial_dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **changes,
    }
    planned = PlannedNetwork(f"{UNETS}.{kind}", arguments, ("conv_op", "norm_op", "dropout_op", "nonlin"))
    return Geometry(
        base.patch_size, base.strides, base.kernel_sizes, arguments["features_per_stage"], (1, 2, 1), planned
    )


def build(sizes: Geometry, *, deep_supervision: bool = True, **changes) -> DCAPlannedNetwork:
    torch.manual_seed(0)
    settings = {**DCAPlannedNetwork.settings_from_plan(sizes), **changes}
    return DCAPlannedNetwork(2, 3, **settings, deep_supervision=deep_supervision)


def build_plain(sizes: Geometry, *, deep_supervision: bool = True) -> nn.Module:
    """Build the planned network as nnU-Net does."""
    planned = sizes.network
    return get_network_from_plans(
        planned.class_name, dict(planned.arguments), planned.imports, 2, 3, deep_supervision=deep_supervision
    )


CASES = [(kind, dims) for kind in ("PlainConvUNet", "ResidualEncoderUNet") for dims in (2, 3)]


@pytest.mark.parametrize(("kind", "dims"), CASES)
class TestBothKinds:
    """What holds for plain and residual plans, in 2D and 3D."""

    @pytest.mark.parametrize("deep_supervision", [True, False])
    def test_is_the_planned_network_where_dca_is_the_identity(
        self, kind: str, dims: int, deep_supervision: bool
    ) -> None:
        """Bit for bit, in outputs and in gradients."""
        sizes = geometry(kind, dims)
        plain = build_plain(sizes, deep_supervision=deep_supervision)
        network = build(sizes, deep_supervision=deep_supervision)
        network.load_state_dict(plain.state_dict(), strict=False)
        network.dca = Identity(network.dca)
        x = torch.randn(2, 2, *sizes.patch_size)
        expected, outputs = plain(x), network(x)
        assert type(outputs) is type(expected)
        for got, want in zip(outputs, expected, strict=True):
            assert torch.equal(got, want)
        for result in (expected, outputs):
            sum(output.square().sum() for output in result).backward()
        theirs = dict(plain.named_parameters())
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                assert torch.equal(parameter.grad, theirs[name].grad), name

    def test_state_dict_is_the_planned_networks_and_dcas(self, kind: str, dims: int) -> None:
        sizes = geometry(kind, dims)
        plain, network = build_plain(sizes).state_dict(), build(sizes).state_dict()
        assert {name: x.shape for name, x in network.items() if not name.startswith("dca.")} == {
            name: x.shape for name, x in plain.items()
        }
        assert any(name.startswith("dca.") for name in network)

    def test_starts_as_nnunet_starts_it(self, kind: str, dims: int) -> None:
        """He initialisation with zero biases, the residual network's last norms at zero, and DCA's own values."""
        network = build(geometry(kind, dims))
        for module in (*network.encoder.modules(), *network.decoder.modules()):
            if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
                # The residual network's projections have no bias.
                assert module.bias is None or module.bias.eq(0).all()
        zero_norms = [name for name, x in network.encoder.named_parameters() if x.eq(0).all() and "norm.weight" in name]
        assert bool(zero_norms) == (kind == "ResidualEncoderUNet")
        for projection in network.dca.token_projections:
            assert projection.weight.abs().max() <= 1
        assert all(update.mix.bias.ne(0).any() for update in network.dca.updates)

    def test_keeps_the_names_that_pre_training_uses(self, kind: str, dims: int) -> None:
        sizes = geometry(kind, dims)
        plain, network = build_plain(sizes), build(sizes)
        for name in ("key_to_encoder", "key_to_stem", "keys_to_in_proj"):
            assert getattr(network, name) == getattr(plain, name)
        for key in (network.key_to_encoder, network.key_to_stem, *network.keys_to_in_proj):
            network.get_submodule(key)

    def test_every_parameter_learns(self, kind: str, dims: int) -> None:
        network = build(geometry(kind, dims))
        outputs = network(torch.randn(2, 2, *network.patch_size))
        sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        for name, parameter in network.dca.named_parameters():
            # Removed by a softmax or by the norm that follows.
            constant = ("key.bias", "value.bias", "out.bias", "mix.bias")
            assert parameter.grad.ne(0).any() or (name.endswith(constant) and "spatial" in name), name

    def test_takes_other_sizes_as_the_planned_network_does(self, kind: str, dims: int) -> None:
        network = build(geometry(kind, dims), deep_supervision=False).eval()
        larger = tuple(2 * size for size in network.patch_size)
        assert network(torch.randn(1, 2, *larger)).shape == (1, 3, *larger)


def test_dca_takes_its_norm_and_activation_from_the_plan() -> None:
    changes = {
        "norm_op": "torch.nn.BatchNorm2d",
        "norm_op_kwargs": {"eps": 1e-3},
        "nonlin": "torch.nn.ELU",
        "nonlin_kwargs": None,
    }
    update = build(geometry("PlainConvUNet", 2, **changes)).dca.updates[0]
    assert (type(update.norm), update.norm.eps, type(update.activation)) == (nn.BatchNorm2d, 1e-3, nn.ELU)
    bare = dict.fromkeys(changes)
    update = build(geometry("PlainConvUNet", 2, **bare)).dca.updates[0]
    assert isinstance(update.norm, nn.Identity)
    assert isinstance(update.activation, nn.Identity)


def test_a_geometry_without_a_plan_gives_the_default_planners_network() -> None:
    sizes = Geometry.from_strides((64, 48), [(2, 2)] * 3)
    settings = DCAPlannedNetwork.settings_from_plan(sizes)
    assert pydoc.locate(settings["planned_class"]).__name__ == "PlainConvUNet"
    with torch.device("meta"):
        network = DCAPlannedNetwork(1, 2, **settings)
    assert list(network.encoder.output_channels) == [32, 64, 128, 256]
    assert [row["skip"] for row in network.describe_stages()] == ["DCA", "DCA", "plain", "none (bottleneck)"]


def test_stages_grid_and_options_can_be_given() -> None:
    sizes = geometry("PlainConvUNet", 2)
    network = build(sizes, dca_stages=1, token_grid=(4, 3), dca_settings={"layout": "sum", "n_blocks": 2})
    assert network.dca.channels == (8,)
    assert network.describe_stages()[0]["token grid"] == (4, 3)
    assert len(network.dca.blocks) == 2
    assert network(torch.randn(1, 2, 32, 24))[0].shape == (1, 3, 32, 24)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"planned_class": "some.where.Primus"},
            "The plans name the network some.where.Primus, and DCA can be put into ",
        ),
        ({"planned_class": f"{UNETS}.ResidualUNet"}, r"unet\.ResidualUNet, and DCA can be put into"),
        ({"patch_size": (32, 23)}, "axis 1 has 23 voxels"),
        ({"dca_stages": 3}, "dca_stages is 3, and this network has 2 skips: give 1 to 2"),
        ({"dca_stages": 0}, "dca_stages is 0"),
        ({"token_grid": (20, 20)}, r"Token grid \(20, 20\) does not fit into the map of stage 1, of size \(16, 12\)"),
        ({"dca_settings": {"spatial_heads": (3, 4)}}, "3 heads must divide the stage's 8 channels"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(geometry("PlainConvUNet", 2), **{"dca_stages": 2, **changes})


@pytest.mark.parametrize("name", ["C1", "B1"])
def test_cost_on_planned_volumes(name: str) -> None:
    """At most 5 percent more memory, and 5 percent more arithmetic."""
    sizes = next(plan for plan in PLANS if plan.name == name).geometry()
    settings = DCAPlannedNetwork.settings_from_plan(sizes)

    def build_with() -> DCAPlannedNetwork:
        return DCAPlannedNetwork(1, 3, **settings, deep_supervision=True)

    def build_without() -> DCAPlannedNetwork:
        network = build_with()
        network.dca = Identity(network.dca)
        return network

    with_dca, without = estimate_cost(build_with), estimate_cost(build_without)
    assert with_dca.parameters - without.parameters == 235_040
    assert with_dca.kept_bytes <= 1.05 * without.kept_bytes
    assert with_dca.multiply_adds <= 1.05 * without.multiply_adds
