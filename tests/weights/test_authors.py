"""Weights of the authors: carried over whole, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2_ext.weights import from_authors
from nnunetv2_ext.weights.files import WeightsError, read_checkpoint, write_checkpoint
from tests import golden_files

GOLDEN = golden_files.load("peca_net-small")


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return golden_files.make_state_dict(GOLDEN)


def test_every_tensor_is_used(tensors: dict[str, torch.Tensor]) -> None:
    network = from_authors("peca_net", GOLDEN["config"], tensors)
    assert len(network.state_dict()) == len(tensors)
    assert sum(t.numel() for t in network.state_dict().values()) == sum(t.numel() for t in tensors.values())


@pytest.mark.parametrize(
    "name", ["out1.conv.conv.weight", "unetr_pp_encoder.stages.0.1.PEA_PCA.M_v_SA", "decoder4.transp_conv.conv.weight"]
)
def test_missing_tensor_is_named(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]
    with pytest.raises(WeightsError, match=f"'peca_net' does not fit: {name} is missing.$"):
        from_authors("peca_net", GOLDEN["config"], tensors)


def test_left_over_tensor_is_named(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"does not fit: decoder9.weight has no place in the network.$"):
        from_authors("peca_net", GOLDEN["config"], {**tensors, "decoder9.weight": torch.zeros(1)})


def test_tensor_of_another_shape_is_named(tensors: dict[str, torch.Tensor]) -> None:
    name = "encoder1.conv1.conv.weight"
    tensors[name] = tensors[name].repeat(1, 3, 1, 1, 1)
    with pytest.raises(WeightsError, match=rf"{name} has shape \(4, 3, 3, 3, 3\) instead of \(4, 1, 3, 3, 3\)"):
        from_authors("peca_net", GOLDEN["config"], tensors)


def test_many_problems_are_counted() -> None:
    with pytest.raises(WeightsError, match=r"; and \d+ more\.$"):
        from_authors("peca_net", GOLDEN["config"], {})


def test_counters_of_batch_norm_may_be_missing(tensors: dict[str, torch.Tensor]) -> None:
    without = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    assert len(without) < len(tensors)
    from_authors("peca_net", GOLDEN["config"], without)


def test_unknown_system_and_missing_setting_are_named(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(WeightsError, match=r"no system 'pica_net'; known are .*peca_net"):
        from_authors("pica_net", GOLDEN["config"], tensors)
    config = {key: value for key, value in GOLDEN["config"].items() if key != "stem_stride"}
    with pytest.raises(WeightsError, match="lacks the setting 'stem_stride'"):
        from_authors("peca_net", config, tensors)
    with pytest.raises(ValueError, match="no part of kind 'head'"):
        from_authors("peca_net", {"kind": "head"}, tensors)


@pytest.mark.parametrize("container", [None, "state_dict", "network_weights"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_reads_what_training_code_writes(tmp_path: Path, container: str | None, prefix: str) -> None:
    """Bare, or beside the logs of nnU-Net's first version: tuples of lists of numpy's numbers."""
    tensors = {f"{prefix}a.weight": torch.ones(2), f"{prefix}b": torch.zeros(3)}
    content = tensors if container is None else {container: tensors, "epoch": 3}
    if container is not None:
        content["plot_stuff"] = ([np.float32(1), np.float64(2)], [np.arange(3)], [{"dice": np.int64(1)}])
    torch.save(content, tmp_path / "file.model")
    read = read_checkpoint(tmp_path / "file.model")
    assert read.keys() == {"a.weight", "b"}
    assert torch.equal(read["a.weight"], torch.ones(2))


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_executes_nothing_of_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "evil": Evil(tmp_path / "ran")}, tmp_path / "file.pth")
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint of plain tensors"):
        read_checkpoint(tmp_path / "file.pth")
    assert not (tmp_path / "ran").exists()


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save({"state_dict": {"a": torch.ones(1000)}}, whole)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match="There is no file"):
        read_checkpoint(tmp_path / "none.pth")
    for name in ("cut.pth", "text.pth"):
        with pytest.raises(WeightsError, match=f"{name} cannot be read .* cut short"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(WeightsError, match="holds no tensors by name"):
        read_checkpoint(tmp_path / "empty.pth")


def test_writing_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    write_checkpoint({"network_weights": {"a": torch.ones(1)}}, path)

    def disk_full(content: dict, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint({"network_weights": {}}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]
    assert read_checkpoint(path).keys() == {"a"}
