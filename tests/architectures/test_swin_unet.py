"""Swin-Unet against the authors' numbers, and the properties that no number at one size shows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunetv2_ext.architectures.cost import bytes_kept_for_backward
from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.layers.drop_path import DropPath
from nnunetv2_ext.architectures.layers.window_attention import clip_window
from nnunetv2_ext.architectures.layers.window_stage import WindowBlock, WindowStage
from nnunetv2_ext.architectures.swin_unet import PRESETS, SwinUNet
from nnunetv2_ext.trainers.swin_unet import nnUNetTrainerSwinUNet
from nnunetv2_ext.weights import from_authors
from nnunetv2_ext.weights.authors import fit_tensors
from nnunetv2_ext.weights.files import WeightsError
from nnunetv2_ext.weights.swin_unet import SYSTEM, authors_name
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
    window, shift = clip_window(config["resolution"], (config["window_size"],) * 2)
    stage = WindowStage(
        config["dim"],
        config["num_heads"],
        grid=config["resolution"],
        window=window,
        shift=shift,
        mask_padding=True,
        mlp_ratio=config["mlp_ratio"],
        drop_path=(0.0,) * config["depth"],
        reca=config["reca"],
        checkpointing=False,
    ).eval()
    tensors = SYSTEM.without_ignored(golden_files.make_state_dict(golden))

    def naming(name: str) -> str:
        return authors_name(f"stages.0.{name}").removeprefix("swin_unet.layers.0.")

    stage.load_state_dict(fit_tensors(stage.state_dict(), tensors, naming, golden["system"]))
    (tokens,) = golden_files.make_inputs(golden)
    with torch.no_grad():
        output = stage(tokens.unflatten(1, config["resolution"])).flatten(1, 2)
    assert golden_files.largest_error(golden, [output]) <= 1e-5


def test_tensors_that_the_authors_never_use_may_be_there() -> None:
    golden = golden_files.load("reca_swinunet-reca-small")
    tensors = golden_files.make_state_dict(golden)
    unused = ("swin_unet.decoder0.expand.weight", "swin_unet.layers.0.blocks.1.attn_mask")
    from_authors("reca_swinunet", golden["config"], {**tensors, **{name: torch.zeros(1) for name in unused}})
    with pytest.raises(WeightsError, match=r"swin_unet\.decoder1\.expand\.weight has no place"):
        from_authors("reca_swinunet", golden["config"], {**tensors, "swin_unet.decoder1.expand.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="stem_channels 1"):
        from_authors("reca_swinunet", {**golden["config"], "stem_channels": 1}, tensors)


def test_3d_is_refused_with_the_trainers_for_it() -> None:
    geometry = Geometry.from_strides((32, 64, 64), [(2, 2, 2)])
    words = r"nnUNetTrainerSwinUNet serves 2D configurations only, and this one is 3D .*: nnUNetTrainerPECANet"
    with pytest.raises(ValueError, match=words) as caught:
        nnUNetTrainerSwinUNet.build_network(geometry, 1, 2)
    assert "nnUNetTrainerDATransUNet" not in str(caught.value)


def small_network(**changes) -> SwinUNet:
    """Build a network with windows that are shifted, clipped and padded, in well under a second."""
    settings = {"patch_size": (80, 56), "embed_dim": 8, "num_heads": (1, 2, 2, 4), "window_size": 4}
    torch.manual_seed(0)
    return SwinUNet(changes.pop("input_channels", 1), changes.pop("num_classes", 3), **{**settings, **changes})


def sharpen(network: nn.Module) -> nn.Module:
    """Draw larger weights, so that attention is far from uniform and a wrong query is seen."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return network.eval()


def plain_and_recurrent(prepare, **changes) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the two networks with the same weights, which `prepare` changes first."""
    recurrent, plain = sharpen(small_network(reca=True, **changes)), small_network(reca=False, **changes).eval()
    with torch.no_grad():
        prepare(recurrent)
        plain.load_state_dict(recurrent.state_dict())
        x = torch.randn(1, 1, *recurrent.patch_size)
        return plain(x), recurrent(x)


def zero(network: SwinUNet, part: int, blocks) -> None:
    """Set the queries (0), keys (1) or values (2) of the encoder's blocks to zero; `blocks` picks those of a stage."""
    for stage in network.stages:
        for block in list(stage.blocks)[blocks]:
            qkv = block.attention.qkv
            for tensor in (qkv.weight, qkv.bias):
                tensor.unflatten(0, (3, -1))[part].zero_()


def test_plain_and_recurrent_networks_have_the_same_tensors() -> None:
    with torch.device("meta"):
        shapes = [
            {name: tensor.shape for name, tensor in SwinUNet(**PRESETS["synapse"], reca=reca).state_dict().items()}
            for reca in (False, True)
        ]
    assert shapes[0] == shapes[1]


def test_plain_and_recurrent_networks_differ() -> None:
    plain, recurrent = plain_and_recurrent(lambda network: None)
    assert (plain - recurrent).abs().max() > 1e-2 * plain.abs().max()


def test_runs_of_one_block_are_plain() -> None:
    plain, recurrent = plain_and_recurrent(lambda network: None, depths=(1, 1, 1, 1))
    assert torch.equal(plain, recurrent)


def test_without_keys_the_queries_do_not_count() -> None:
    plain, recurrent = plain_and_recurrent(lambda network: zero(network, 1, slice(None)))
    assert torch.allclose(plain, recurrent, atol=1e-6 * float(plain.abs().max()))


def test_later_blocks_attend_with_the_first_query() -> None:
    plain, recurrent = plain_and_recurrent(lambda network: zero(network, 0, slice(1, None)))
    assert (plain - recurrent).abs().max() > 1e-2 * plain.abs().max()


def test_decoder_is_plain_and_the_state_ends_with_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def forward(self: WindowBlock, x, state=None, original=WindowBlock.forward):
        given.append(state is not None)
        return original(self, x, state)

    monkeypatch.setattr(WindowBlock, "forward", forward)
    network = small_network(reca=True, depths=(2, 1, 3, 1)).eval()
    network(torch.randn(1, 1, *network.patch_size))
    assert given == [False, True, False, False, True, True, False] + [False] * (3 + 1 + 2)


def test_skips_are_the_inputs_of_the_stages() -> None:
    network = small_network().eval()
    inputs, skips = [], []
    for stage in network.stages[:-1]:
        stage.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    network.decoder.register_forward_pre_hook(lambda module, arguments: skips.extend(arguments[1]))
    network(torch.randn(1, 1, *network.patch_size))
    assert len(skips) == 3
    assert all(skip is given for skip, given in zip(skips, inputs, strict=True))


@pytest.mark.parametrize("reca", [False, True])
@pytest.mark.parametrize("classes", [2, 9])
def test_parameter_counts(classes: int, reca: bool) -> None:
    def count(**changes) -> int:
        with torch.device("meta"):
            network = SwinUNet(**{**PRESETS["synapse"], "num_classes": classes, "reca": reca, **changes})
        return sum(parameter.numel() for parameter in network.parameters())

    assert count() == 27_168_036 + 96 * classes
    assert count(patch_size=(512, 512), window_size=8) == count() + 7_392
    # A stem for four channels instead of three.
    assert count(input_channels=4) == count() + 16 * 96


@pytest.mark.parametrize(
    ("patch", "window", "padded"),
    [
        ((224, 224), 7, (224, 224)),
        ((512, 512), 8, (512, 512)),
        ((256, 256), 8, (256, 256)),
        ((320, 256), 8, (320, 256)),
        ((192, 160), 7, (192, 160)),
        ((448, 384), 7, (448, 384)),
        ((320, 320), 7, (320, 320)),
        ((128, 128), 8, (128, 128)),
        ((56, 40), 8, (64, 64)),
        ((8, 300), 8, (32, 320)),
    ],
)
def test_settings_from_plan(patch: tuple[int, int], window: int, padded: tuple[int, int]) -> None:
    settings = SwinUNet.settings_from_plan(Geometry.from_strides(patch, [(2, 2)]))
    assert settings == {"patch_size": patch, "window_size": window}
    with torch.device("meta"):
        network = SwinUNet(1, 2, **settings)
    assert network.padded_size == padded
    deepest = network.stages[-1]
    assert deepest.grid == tuple(size // 32 for size in padded)
    assert deepest.window == tuple(min(window, size) for size in deepest.grid)


def test_initial_values() -> None:
    network = small_network(embed_dim=32, drop_path_rate=0.2)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and ".seg_layers." not in name:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), name
            assert module.bias is None or module.bias.eq(0).all(), name
    assert network.decoder.seg_layers[0].weight.abs().max().item() == pytest.approx(32**-0.5, rel=0.1)
    rates = [[block.drop_path.rate for block in stage.blocks] for stage in network.stages]
    assert rates[0] + rates[3] == pytest.approx([0, 0.2 / 7, 1.2 / 7, 0.2])
    assert [[block.drop_path.rate for block in level.stage.blocks] for level in network.decoder.levels] == rates[2::-1]
    assert sum(isinstance(module, DropPath) for module in network.modules()) == 14


def test_one_channel_is_three_equal_ones() -> None:
    grey = small_network(input_channels=1).eval()
    colour = small_network(input_channels=3).eval()
    colour.load_state_dict(grey.state_dict())
    x = torch.randn(1, 1, 80, 56)
    assert torch.equal(grey(x), colour(x.expand(-1, 3, -1, -1)))


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"built for 1 channels and patch size \(80, 56\), and got 1 .* \(80, 64\)"):
        small_network()(torch.randn(1, 1, 80, 64))
    with pytest.raises(ValueError, match="give two sizes, and as many heads as depths"):
        SwinUNet(1, 2, depths=(2, 2, 2))
    with pytest.raises(ValueError, match="patch size \\(64, 64, 64\\)"):
        SwinUNet(1, 2, patch_size=(64, 64, 64))


def test_logits_are_made_without_keeping_the_map_at_full_resolution() -> None:
    network = small_network(embed_dim=32, depths=(1, 1), num_heads=(1, 2), num_classes=2, patch_size=(128, 128))
    decoder = network.decoder
    kept = bytes_kept_for_backward(decoder.expand, torch.randn(1, 32, 32, 32))
    x = torch.randn(1, 32, 32, 32, requires_grad=True)

    class Prediction(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return decoder(x, [])

    decoder.levels = nn.ModuleList()
    assert bytes_kept_for_backward(Prediction(), x) == x.numel() * 4
    assert kept > 16 * x.numel() * 4
