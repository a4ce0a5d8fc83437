"""Checkpoints of 0.1.0 load: every trainer has the parameters and buffers that it had there.

`tests/released/state_dicts-0.1.0.txt.gz` was written by that release. A line `# trainer dimension, ...` names what has
one state dict, and the lines below it are names and shapes, in order; `zcat` shows them.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.trainers import find_trainer

RELEASED = Path(__file__).parents[1] / "released" / "state_dicts-0.1.0.txt.gz"
STRIDES = {
    "2D": ((128, 128), ((1, 1), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2))),
    "3D": ((32, 64, 64), ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))),
}


def read_released() -> dict[tuple[str, ...], dict[str, str]]:
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for line in gzip.decompress(RELEASED.read_bytes()).decode().splitlines():
        if line.startswith("# "):
            tensors = groups.setdefault(tuple(line[2:].split(", ")), {})
        else:
            name, shape = line.split(" ")
            tensors[name] = shape
    return groups


@pytest.mark.parametrize("trainers", read_released(), ids=lambda trainers: trainers[0].replace(" ", "-"))
def test_names_and_shapes_are_those_of_the_release(trainers: tuple[str, ...]) -> None:
    released = read_released()[trainers]
    for trainer in trainers:
        name, dims = trainer.split(" ")
        patch, strides = STRIDES[dims]
        geometry = Geometry(
            patch_size=patch,
            strides=strides,
            kernel_sizes=tuple((3,) * len(patch) for _ in strides),
            features=(32, 64, 128, 256, 320, 320),
            n_conv_per_stage=(2,) * len(strides),
        )
        with torch.device("meta"):
            network = find_trainer(name).build_network(geometry, 1, 3)
        now = {key: "x".join(map(str, tensor.shape)) for key, tensor in network.state_dict().items()}
        assert now == released, trainer


def test_every_trainer_of_the_release_is_held() -> None:
    trainers = {trainer.split(" ")[0] for group in read_released() for trainer in group}
    assert len(trainers) == 35
