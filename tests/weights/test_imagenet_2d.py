"""ImageNet weights in Swin-Unet and DA-TransUNet: each tensor in its place, for any patch size and any channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resize_rel_pos_bias_table_simple
from torch import nn

from nnunetv2_ext.architectures.da_transunet import PRESETS as DA_TRANSUNET
from nnunetv2_ext.architectures.da_transunet import DATransUNet
from nnunetv2_ext.architectures.swin_unet import PRESETS as SWIN_UNET
from nnunetv2_ext.architectures.swin_unet import SwinUNet
from nnunetv2_ext.weights import da_transunet, swin_unet
from nnunetv2_ext.weights.imagenet import FOLDER_VARIABLE, ImageNetReport, ImageNetWeights, load_imagenet_weights
from tests import golden_files


def write(weights: ImageNetWeights, folder: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Write random weights as timm publishes them, with three input channels, and give their model."""
    torch.manual_seed(0)
    model = timm.create_model(weights.model, **{**weights.arguments, "in_chans": 3}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    save_file(model.state_dict(), folder / f"{weights.model}.safetensors")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    return model


def swin(patch_size: tuple[int, int], **changes) -> SwinUNet:
    settings = {"reca": False, "embed_dim": 8, "num_heads": (1, 2, 2, 4), **changes}
    return SwinUNet(settings.pop("input_channels", 3), 2, patch_size=patch_size, **settings).eval()


def hybrid(patch_size: tuple[int, int], **changes) -> DATransUNet:
    settings = {
        "reca": False,
        "hidden_size": 128,
        "mlp_dim": 256,
        "num_heads": 4,
        "num_layers": 2,
        "decoder_head_channels": 16,
        "decoder_channels": (16, 8, 8, 8),
        **changes,
    }
    return DATransUNet(settings.pop("input_channels", 3), 2, patch_size=patch_size, **settings).eval()


@pytest.mark.parametrize(
    ("network_class", "preset", "module", "count", "fresh"),
    [
        (
            SwinUNet,
            SWIN_UNET,
            swin_unet,
            25_082_820,
            {"expand", "join", "norm", "seg_layers"},
        ),
        (
            DATransUNet,
            DA_TRANSUNET,
            da_transunet,
            97_888_576,
            {"embedding.attention", "decoder"},
        ),
    ],
)
def test_published_model_covers_what_the_authors_start_from(network_class, preset, module, count: int, fresh) -> None:
    """At full size: names, shapes and the number of parameters."""
    with torch.device("meta"):
        network = network_class(**preset["synapse"])
        weights = module.imagenet_weights(network)
        given = timm.create_model(weights.model, **weights.arguments).state_dict()
        assert given.keys() == timm.create_model(weights.model).state_dict().keys()
    used, set_values = set(), 0
    for name, tensor in network.state_dict().items():
        source = weights.source(name)
        if source is None:
            assert any(part in name for part in fresh), name
            continue
        used.add(source.name)
        set_values += tensor.numel()
        if source.name != "pos_embed":
            assert given[source.name][source.rows].shape == tensor.shape, name
    assert set_values == count
    assert all(weights.unused.search(name) for name in given.keys() - used)
    assert not any(weights.unused.search(name) for name in used)


def test_swin_unet_computes_what_timm_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = swin((224, 224))
    model = write(swin_unet.imagenet_weights(network), tmp_path, monkeypatch)
    report = load_imagenet_weights(network, swin_unet.imagenet_weights(network))
    assert report.resized == {}
    model.layers[2].blocks = model.layers[2].blocks[:2]
    outputs = []
    for stage in network.stages:
        stage.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        network(x)
        expected = model.patch_embed(x)
        for stage, output in zip(model.layers, outputs, strict=True):
            expected = stage(expected)
            assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()
    for number, level in enumerate(network.decoder.levels):
        encoder = network.stages[2 - number].blocks.state_dict()
        for name, tensor in level.stage.blocks.state_dict().items():
            assert torch.equal(tensor, encoder[name])


@pytest.mark.parametrize(("patch_size", "window_size", "channels"), [((256, 96), 8, 1), ((40, 70), 7, 4)])
def test_swin_unet_of_another_size(
    patch_size: tuple[int, int], window_size: int, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = swin(patch_size, window_size=window_size, input_channels=channels)
    model = write(swin_unet.imagenet_weights(network), tmp_path, monkeypatch)
    report = load_imagenet_weights(network, swin_unet.imagenet_weights(network))
    for i, stage in enumerate(network.stages):
        for j, block in enumerate(stage.blocks):
            name = f"stages.{i}.blocks.{j}.attention.position.table"
            published = model.get_parameter(f"layers.{i}.blocks.{j}.attn.relative_position_bias_table")
            table = block.attention.position.table
            expected = resize_rel_pos_bias_table_simple(published, stage.window, tuple(table.shape))
            torch.testing.assert_close(table, expected)
            assert (name in report.resized) == (stage.window != (7, 7))
    kernel = model.get_parameter("patch_embed.proj.weight")
    expected = kernel if channels == 1 else kernel[:, [0, 1, 2, 0]] * 3 / 4
    torch.testing.assert_close(network.embedding.project.weight, expected)
    assert network(torch.randn(1, channels, *patch_size)).isfinite().all()


def load_hybrid(network: DATransUNet, folder: Path, monkeypatch) -> tuple[nn.Module, ImageNetReport]:
    model = write(da_transunet.imagenet_weights(network), folder, monkeypatch)
    return model, load_imagenet_weights(network, da_transunet.imagenet_weights(network))


def test_da_transunet_computes_what_timm_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transformer does; the stems differ in padding, norms and epsilons, so that their tensors are compared."""
    network = hybrid((224, 224))
    model, report = load_hybrid(network, tmp_path, monkeypatch)
    assert report.resized.keys() == {"embedding.position"}
    assert report.unused == ("cls_token",)
    tokens = torch.randn(2, 196, 128)
    with torch.no_grad():
        expected, got = model.norm(model.blocks(tokens)), network.transformer(tokens)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    torch.testing.assert_close(network.embedding.position[0], model.pos_embed[0, 1:])
    backbone = model.patch_embed.backbone
    pairs = [(network.stem.root.weight, backbone.stem.conv.weight)]
    for ours, theirs in zip(network.stem.blocks, backbone.stages, strict=True):
        for unit, block in zip(ours, theirs.blocks, strict=True):
            pairs += [(unit.conv2.weight, block.conv2.weight), (unit.norm3.bias, block.norm3.bias)]
        pairs += [(ours[0].project.weight, theirs.blocks[0].downsample.conv.weight)]
        pairs += [(ours[0].project_norm.weight, theirs.blocks[0].downsample.norm.weight)]
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_da_transunet_of_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = hybrid((64, 90), input_channels=2)
    model, _ = load_hybrid(network, tmp_path, monkeypatch)
    grid = model.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    corners = grid[0, :, [0, 0, -1, -1], [0, -1, 0, -1]].T
    torch.testing.assert_close(
        network.embedding.position[0].unflatten(0, (4, 6))[[0, 0, -1, -1], [0, -1, 0, -1]], corners
    )
    kernel = model.patch_embed.backbone.stem.conv.weight
    torch.testing.assert_close(network.stem.root.weight, kernel[:, :2] * 3 / 2)
    assert network(torch.randn(1, 2, 64, 90)).isfinite().all()


def test_positions_are_resized_as_the_authors_do() -> None:
    golden = golden_files.load("reca_2d_posresize")
    (table,) = golden_files.make_inputs(golden)
    grid = tuple(golden["config"]["new_grid"])
    resized = da_transunet.resize_positions(grid)(table, torch.Size((1, grid[0] * grid[1], table.shape[2])))
    assert golden_files.largest_error(golden, [resized]) <= 1e-5
