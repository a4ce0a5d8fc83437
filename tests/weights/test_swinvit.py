"""Self-supervised weights of SwinUNETR's encoder: as MONAI loads them, and fitted to what a plan asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.swin_unetr import SwinUNETR
from nnunetv2_ext.commands.import_weights import import_weights
from nnunetv2_ext.trainers import find_own_trainer
from nnunetv2_ext.weights.files import WeightsError
from nnunetv2_ext.weights.swinvit import FILE, fit_encoder, holds_encoder_alone, load_swinvit
from tests.narrow import swinvit_file
from tests.planned_data import LABELS, PlannedData
from tests.trainers.test_contract import make_trainer

SIZES = {"feature_size": 12, "num_heads": (3, 3, 6, 6)}
CUBE = Geometry.from_strides((64, 64, 64), [(2, 2, 2)] * 4)


def network(geometry: Geometry = CUBE, channels: int = 1, **changes) -> SwinUNETR:
    torch.manual_seed(1)
    settings = {**SwinUNETR.settings_from_plan(geometry), **SIZES, **changes}
    return SwinUNETR(channels, 3, **settings)


@pytest.fixture(scope="module")
def content() -> dict:
    torch.manual_seed(0)
    return swinvit_file(network())


def test_features_are_those_of_monai(content: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all five maps; MONAI merges in the corrected order since 1.5."""
    swin_unetr = pytest.importorskip("monai.networks.nets.swin_unetr")
    theirs = swin_unetr.SwinUNETR(in_channels=1, out_channels=3, **SIZES).eval()
    theirs.load_from(content)
    torch.save(content, tmp_path / FILE)
    monkeypatch.setenv("nnUNet_ext_weights", str(tmp_path))
    x = torch.randn(1, 1, 64, 64, 64)
    grid = torch.arange(8.0).reshape(1, 2, 2, 2, 1)
    merge = swin_unetr.PatchMerging(1)
    merge.norm = merge.reduction = torch.nn.Identity()
    merging = "corrected" if len(merge(grid).unique()) == 8 else "legacy"
    ours = network(merging=merging).eval()
    log = load_swinvit(ours)
    with torch.no_grad():
        expected, got = theirs.swinViT(x), ours.encoder(x)
    assert len(expected) == len(got) == 5
    for one, other in zip(got, expected, strict=True):
        assert (one - other).abs().max() <= 1e-6 * other.abs().max()
    assert [line.split(":")[0] for line in log[1:]] == ["As initialised", "Without a place"]
    assert log[1].startswith("As initialised: image_skip.conv1 (1), ")
    assert log[2] == "Without a place: contrastive_head.weight, conv.weight, rotation_head.weight."


@pytest.mark.parametrize("prefix", ["", "swinViT.", "module.", "module.swinViT."])
def test_names_of_all_who_write_them(content: dict, prefix: str) -> None:
    """Of the encoder, or of the class that holds it and the heads; in one process or in several."""
    tensors = {prefix + name.removeprefix("module."): tensor for name, tensor in content["state_dict"].items()}
    assert holds_encoder_alone(tensors)
    fitted = fit_encoder(network(), tensors, "The file")
    assert set(fitted.tensors) == {name for name in network().state_dict() if name.startswith("encoder.")}
    assert len(fitted.left_out) == 3
    assert not fitted.resized
    assert not holds_encoder_alone({**tensors, "encoder1.layer.conv1.conv.weight": torch.zeros(1)})


def test_channels_are_repeated_and_scaled(content: dict) -> None:
    """A picture that is the same in all channels gives what the one channel gave."""
    one, three = network().eval(), network(channels=3).eval()
    for target in (one, three):
        fitted = fit_encoder(target, content["state_dict"], "The file")
        target.load_state_dict(dict(fitted.tensors), strict=False)
    assert fitted.resized == {"encoder.embedding.weight": (12, 1, 2, 2, 2)}
    x = torch.randn(1, 1, 64, 64, 64)
    with torch.no_grad():
        for expected, got in zip(one.encoder(x), three.encoder(x.expand(1, 3, 64, 64, 64)), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_axes_that_the_plan_does_not_halve(content: dict) -> None:
    """Where neighbours along such an axis are equal, the first merging gives what it gives when it halves them."""
    thick = Geometry.from_strides((32, 64, 64), [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)])
    target = network(thick)
    tensors = dict(content["state_dict"])
    norm = "module.layers1.0.downsample.norm."
    tensors |= {norm + "weight": torch.ones(96), norm + "bias": torch.zeros(96)}
    fitted = fit_encoder(target, tensors, "The file")
    assert fitted.resized["encoder.embedding.weight"] == (12, 1, 2, 2, 2)
    assert fitted.resized["encoder.stages.0.merging.reduction.weight"] == (24, 96)
    assert not any(name.startswith("encoder.stages.2.") for name in fitted.resized)
    target.load_state_dict(dict(fitted.tensors), strict=False)
    cube = network()
    cube.load_state_dict(dict(fit_encoder(cube, tensors, "The file").tensors), strict=False)
    x = torch.randn(1, 1, 32, 64, 64)
    doubled = x.repeat_interleave(2, dim=2)
    with torch.no_grad():
        torch.testing.assert_close(target.encoder.embedding(x), cube.encoder.embedding(doubled), rtol=1e-4, atol=1e-5)
        # The order that the weights were trained in takes (0, y, 0) and (0, 0, z) twice, which weighs in its norm.
        flat = torch.randn(1, 4, 1, 1, 12).expand(1, 4, 4, 4, 12)
        ours = target.encoder.stages[0].merging(flat)
        theirs = cube.encoder.stages[0].merging(flat.repeat_interleave(2, dim=1))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_tables_of_other_windows_are_resized(content: dict) -> None:
    table = torch.arange(13.0).reshape(13, 1, 1, 1).expand(13, 13, 13, 3).reshape(-1, 3).clone()
    tensors = {**content["state_dict"], "module.layers1.0.blocks.0.attn.relative_position_bias_table": table}
    name = "encoder.stages.0.blocks.0.attention.position.table"
    fitted = fit_encoder(network(window_size=4), tensors, "The file")
    small = fitted.tensors[name].reshape(7, 7, 7, 3)
    assert fitted.resized[name] == (2197, 3)
    assert small[3].unique().item() == pytest.approx(6.0)
    assert (small[1:] > small[:-1]).all()


def test_what_does_not_fit_is_said_in_a_sentence(content: dict, tmp_path: Path, monkeypatch) -> None:
    tensors = content["state_dict"]
    with pytest.raises(WeightsError, match=r"it is an encoder of feature size 12, and the network has 24; give"):
        fit_encoder(network(feature_size=24, num_heads=(3, 6, 12, 24)), tensors, "The file")
    with pytest.raises(WeightsError, match=r"an encoder for 3D, and the network is one for 2D; choose a 3D conf"):
        fit_encoder(network(Geometry.from_strides((64, 64), [(2, 2)] * 4)), tensors, "The file")
    short = {name: tensor for name, tensor in tensors.items() if not name.endswith("layers2.0.blocks.1.norm1.bias")}
    with pytest.raises(WeightsError, match=r"does not fit: swinViT\.layers2\.0\.blocks\.1\.norm1\.bias is missing\.$"):
        fit_encoder(network(), short, "The file")
    with pytest.raises(WeightsError, match=r"layers5\.norm\.weight has no place"):
        fit_encoder(network(), {**tensors, "module.layers5.norm.weight": torch.ones(3)}, "The file")
    monkeypatch.delenv("nnUNet_ext_weights", raising=False)
    with pytest.raises(WeightsError, match=r"nnUNet_ext_weights is not set: download model_swinvit\.pt from release"):
        load_swinvit(network())
    monkeypatch.setenv("nnUNet_ext_weights", str(tmp_path))
    with pytest.raises(WeightsError, match=r"there is no model_swinvit\.pt in .* without _pretrained starts"):
        load_swinvit(network())
    torch.save({"state_dict": {"conv.weight": torch.ones(1)}}, tmp_path / FILE)
    with pytest.raises(WeightsError, match="does not hold the encoder of SwinUNETR alone"):
        load_swinvit(network())


@pytest.mark.usefixtures("narrow")
class TestInNNUNet:
    """From the file to a training, by the command and by the trainer."""

    def test_command_completes_the_file(
        self, nnunet_folders: PlannedData, published_weights: Path, tmp_path: Path
    ) -> None:
        report = import_weights(
            published_weights / FILE,
            tmp_path / "ready.pth",
            trainer_name="nnUNetTrainerSwinUNETRRecA",
            dataset=LABELS,
            configuration="3d_fullres",
            plans_name="nnUNetPlans",
        )
        assert report.source == "encoder"
        assert {name.split(".")[0] for name in report.fresh} == {"image_skip", "map_skips", "bottom", "decoder"}
        assert {name.split(".")[0] for name in report.left_out} == {"rotation_head", "contrastive_head", "conv"}
        trainer = make_trainer(nnunet_folders, "nnUNetTrainerSwinUNETRRecA", LABELS, "3d_fullres")
        trainer.initialize()
        load_pretrained_weights(trainer.network, str(tmp_path / "ready.pth"))
        published = torch.load(published_weights / FILE)["state_dict"]["module.layers3.0.blocks.0.mlp.fc1.weight"]
        assert torch.equal(trainer.network.encoder.stages[2].blocks[0].mlp.fc1.weight, published)

    @pytest.mark.parametrize("name", ["nnUNetTrainerSwinUNETR_pretrained", "nnUNetTrainerSwinUNETRRecA_pretrained"])
    def test_trainer_starts_from_it(self, name: str, nnunet_folders: PlannedData, published_weights: Path) -> None:
        trainer = make_trainer(nnunet_folders, f"{name}_1epochs_1iters", LABELS, "3d_fullres")
        assert type(trainer).network_settings == find_own_trainer(name.removesuffix("_pretrained")).network_settings
        trainer.on_train_start()
        published = torch.load(published_weights / FILE)["state_dict"]["module.layers1.0.blocks.1.attn.qkv.weight"]
        assert torch.equal(trainer.network.encoder.stages[0].blocks[1].attention.qkv.weight, published)
        log = Path(trainer.log_file).read_text()
        assert "Self-supervised weights from " in log
        assert "As initialised: image_skip" in log

    def test_in_2d_it_says_what_to_choose(self, nnunet_folders: PlannedData) -> None:
        with pytest.raises(ValueError, match=r"SwinUNETR_pretrained serves 3D configurations only, and this one is 2D"):
            make_trainer(nnunet_folders, "nnUNetTrainerSwinUNETR_pretrained", LABELS, "2d")
