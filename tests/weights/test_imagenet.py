"""Published weights of timm's models: where they are looked for, how they are fitted, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm import models
from torch import nn

from nnunetv2_ext.weights.files import WeightsError
from nnunetv2_ext.weights.imagenet import (
    FOLDER_VARIABLE,
    ImageNetReport,
    ImageNetWeights,
    Source,
    load_imagenet_weights,
    published_tensors,
)

MODEL = "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model(MODEL).state_dict()


@pytest.fixture
def folder(published: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the published file into a folder that the variable names."""
    save_file(published, tmp_path / f"{MODEL}.safetensors")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


class Network(nn.Module):
    """Two of the model's convolutions, the second one twice and cut in half, and a layer of its own."""

    def __init__(self, channels: int = 3, kernel: int = 3) -> None:
        super().__init__()
        shapes = timm.create_model(MODEL).state_dict()
        first, second = shapes["conv1.0.weight"].shape, shapes["conv1.3.weight"].shape
        self.first = nn.Conv2d(channels, first[0], first[2], bias=False)
        self.down = nn.Conv2d(second[1], second[0] // 2, kernel, bias=False)
        self.up = nn.Conv2d(second[1], second[0] // 2, kernel, bias=False)
        self.own = nn.Linear(2, 2)


def shrink(weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return nn.functional.interpolate(weight, size=shape[2:], mode="bilinear")


def weights(**changes) -> ImageNetWeights:
    def source(name: str) -> Source | None:
        return {
            "first.weight": Source("conv1.0.weight"),
            "down.weight": Source("conv1.3.weight", slice(0, 8), shrink),
            "up.weight": Source("conv1.3.weight", slice(8, None), shrink),
        }.get(name)

    return ImageNetWeights(**{"model": MODEL, "source": source, "unused": re.compile(r"^(?!conv1\.[03])"), **changes})


def test_each_tensor_goes_to_its_place(published: dict, folder: Path) -> None:
    network = Network()
    before = network.own.weight.clone()
    report = load_imagenet_weights(network, weights())
    assert torch.equal(network.first.weight, published["conv1.0.weight"])
    assert torch.equal(torch.cat((network.down.weight, network.up.weight)), published["conv1.3.weight"])
    assert torch.equal(network.own.weight, before)
    assert set(report.loaded) == {"first.weight", "down.weight", "up.weight"}
    assert set(report.fresh) == {"own.weight", "own.bias"}
    assert report.resized == {}
    assert "layer1.0.conv1.weight" in report.unused
    assert len(report.unused) == len(published) - 2
    assert report.origin == str(folder / f"{MODEL}.safetensors")


def test_shapes_are_fitted_and_said(published: dict, folder: Path) -> None:
    network = Network(channels=5, kernel=2)
    report = load_imagenet_weights(network, weights(arguments={"in_chans": 5}))
    # timm's rule: the three planes in turn, scaled so that their sum keeps its size.
    expected = published["conv1.0.weight"][:, [0, 1, 2, 0, 1]] * 3 / 5
    torch.testing.assert_close(network.first.weight.detach(), expected)
    torch.testing.assert_close(
        network.up.weight.detach(), shrink(published["conv1.3.weight"][8:], torch.Size((2,) * 4))
    )
    assert report.resized == {
        "first.weight": tuple(published["conv1.0.weight"].shape),
        "down.weight": (8, *published["conv1.3.weight"].shape[1:]),
        "up.weight": (8, *published["conv1.3.weight"].shape[1:]),
    }
    assert "Resized: first.weight (from " in " ".join(report.sentences())


@pytest.mark.parametrize("suffix", [".pth", ".bin"])
def test_reads_files_of_torch(suffix: str, published: dict, tmp_path: Path, monkeypatch) -> None:
    torch.save({"state_dict": published}, tmp_path / f"{MODEL}{suffix}")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    tensors, origin = published_tensors(MODEL)
    assert tensors.keys() == published.keys()
    assert origin.endswith(suffix)


def test_downloads_through_timm(published: dict, tmp_path: Path, monkeypatch) -> None:
    asked = []

    def load(hub_id: str, **options) -> dict:
        asked.append((hub_id, options))
        return dict(published)

    monkeypatch.setattr(models, "load_state_dict_from_hf", load)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    network = Network()
    assert load_imagenet_weights(network, weights()).origin == "timm's download"
    assert torch.equal(network.first.weight, published["conv1.0.weight"])
    assert asked == [(f"timm/{MODEL}", {"weights_only": True})]


class TestRefusals:
    """One sentence each, and the network is left as it was."""

    @staticmethod
    def refuse(words: str, **changes) -> None:
        network = Network()
        before = network.first.weight.clone()
        with pytest.raises(WeightsError, match=words):
            load_imagenet_weights(network, weights(**changes))
        assert torch.equal(network.first.weight, before)

    @pytest.mark.parametrize("named", [True, False])
    def test_neither_file_nor_download(self, named: bool, tmp_path: Path, monkeypatch) -> None:
        def fail(*_arguments, **_options) -> dict:
            raise OSError("no route")

        monkeypatch.setattr(models, "load_state_dict_from_hf", fail)
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
        if not named:
            monkeypatch.delenv(FOLDER_VARIABLE)
        local = rf"there is none of {MODEL}.safetensors, .* in {tmp_path}" if named else f"{FOLDER_VARIABLE} is not set"
        self.refuse(rf"{MODEL} could not be downloaded \(OSError\), and {local}: give this machine access")

    @pytest.mark.parametrize("model", ["test_resnet.other", "maxvit_rmlp_small_rw_256.untrained"])
    def test_model_without_published_weights(self, model: str) -> None:
        self.refuse(f"timm publishes no weights '{model}'", model=model)

    def test_file_that_is_cut_short(self, folder: Path) -> None:
        (folder / f"{MODEL}.safetensors").write_bytes(b"123")
        self.refuse("cannot be read as safetensors")

    def test_file_of_another_model(self, folder: Path) -> None:
        save_file({"conv1.weight": torch.zeros(3)}, folder / f"{MODEL}.safetensors")
        self.refuse(f"does not hold the weights of the timm model {re.escape(MODEL)}")

    def test_tensor_without_a_place(self, folder: Path) -> None:
        self.refuse(r"conv1\.1\.weight has no place in the network", unused=re.compile(r"^(?!conv1)"))

    def test_source_that_does_not_exist(self, folder: Path) -> None:
        self.refuse(
            "nowhere, for first.weight, is missing",
            source=lambda name: Source("nowhere") if name == "first.weight" else None,
            unused=re.compile(""),
        )

    def test_shape_that_nothing_fits(self, folder: Path) -> None:
        self.refuse(
            r"conv1\.3\.weight has shape \(16, 16, 3, 3\), and first\.weight \(16, 3, 3, 3\)",
            source=lambda name: Source("conv1.3.weight") if name == "first.weight" else None,
            unused=re.compile(""),
        )


def test_report_sums_up_what_is_long() -> None:
    fresh = tuple(f"decoder.stages.{number}.weight" for number in range(40))
    report = ImageNetReport("model", "file", ("a",), {}, fresh, tuple("abcdefghijkl"))
    assert report.sentences() == [
        "ImageNet weights of the timm model model, from file: 1 tensors set, 40 as initialised, 12 of timm's without a "
        "place here.",
        "As initialised: decoder.stages (40).",
        "Without a place: a, b, c, d, e, f, g, h and 4 more.",
    ]
