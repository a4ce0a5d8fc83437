"""Which published weights DANIE's self-attention stream takes, at any size and for any number of channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from nnunetv2_ext.architectures.danie import DANIE, PRESETS
from nnunetv2_ext.weights.danie import imagenet_weights
from nnunetv2_ext.weights.files import WeightsError
from nnunetv2_ext.weights.imagenet import FOLDER_VARIABLE, load_imagenet_weights


@pytest.mark.parametrize(
    ("preset", "model", "parameters"),
    [("S", "maxvit_rmlp_tiny_rw_256.sw_in1k", 28_634_872), ("L", "maxxvit_rmlp_small_rw_256.sw_in1k", 65_239_980)],
)
def test_published_models_fit_the_presets(preset: str, model: str, parameters: int) -> None:
    """Every tensor of the stream has a source of its shape, and only timm's last norm and classifier are left."""
    with torch.device("meta"):
        network = DANIE(3, 2, patch_size=(320, 256), **PRESETS[preset])
        weights = imagenet_weights(network)
        published = timm.create_model(weights.model).state_dict()
    assert weights.model == model
    assert model in timm.list_models(pretrained=True)
    sources = {
        name: (weights.source(name).name, tensor.shape)
        for name, tensor in network.state_dict().items()
        if weights.source(name)
    }
    assert sources.keys() == {name for name in network.state_dict() if name.startswith("sap.")}
    assert sum(p.numel() for name, p in network.named_parameters() if name in sources) == parameters
    assert all(published[name].shape == shape for name, shape in sources.values())
    left = published.keys() - {name for name, _ in sources.values()}
    assert left == {name for name in published if weights.unused.search(name)}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_loads_for_any_number_of_channels(preset: str, channels: int, published_weights: Path, monkeypatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(published_weights))
    torch.manual_seed(1)
    network = DANIE(channels, 2, patch_size=(40, 96), **{**PRESETS[preset], **DANIE.narrow_settings})
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = load_imagenet_weights(network, imagenet_weights(network))
    published = load_file(published_weights / f"{report.model}.safetensors")
    first = published["stem.conv1.weight"]
    planes = {1: first.sum(1, keepdim=True), 3: first, 4: first[:, [0, 1, 2, 0]] * 3 / 4}
    torch.testing.assert_close(network.sap.stem.conv1.weight.detach(), planes[channels])
    for name, tensor in network.state_dict().items():
        if not name.startswith("sap."):
            assert torch.equal(tensor, before[name]), name
        elif name != "sap.stem.conv1.weight":
            assert torch.equal(tensor, published[imagenet_weights(network).source(name).name]), name
    assert list(report.resized) == ([] if channels == 3 else ["sap.stem.conv1.weight"])
    assert all(not name.startswith("sap.") for name in report.fresh)


def test_tables_of_positions_are_resized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone that is not an `rmlp` one has tables, which timm resizes; the log says so."""
    torch.manual_seed(0)
    settings = DANIE.narrow_settings["backbone_settings"]
    backbone = "maxvit_tiny_rw_224"
    save_file(timm.create_model(backbone, **settings).state_dict(), tmp_path / f"{backbone}.sw_in1k.safetensors")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    network = DANIE(3, 2, patch_size=(64, 96), **{**DANIE.narrow_settings, "backbone": backbone})
    report = load_imagenet_weights(network, imagenet_weights(network))
    tables = [name for name in network.state_dict() if name.endswith("relative_position_bias_table")]
    assert len(tables) == 8
    assert set(report.resized) == set(tables)
    assert all(shape == ((2 * 7 - 1) ** 2, 1) for shape in report.resized.values())


def test_without_the_stream_there_is_nothing_to_load() -> None:
    network = DANIE(3, 2, patch_size=(64, 64), self_attention=False, **DANIE.narrow_settings)
    with pytest.raises(WeightsError, match="without self_attention has no backbone"):
        imagenet_weights(network)


def test_another_size_of_backbone_is_refused(published_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published weights belong to published sizes."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(published_weights))
    settings = {**DANIE.narrow_settings["backbone_settings"], "depths": [1, 1, 2, 1]}
    network = DANIE(3, 2, patch_size=(64, 64), **{**DANIE.narrow_settings, "backbone_settings": settings})
    with pytest.raises(WeightsError, match="does not hold the weights of the timm model maxvit_rmlp_tiny_rw_256"):
        load_imagenet_weights(network, imagenet_weights(network))
