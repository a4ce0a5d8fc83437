"""Distributed training: nnU-Net wraps the network without looking for unused parameters, so there may be none."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_ext.catalog import TRAINERS
from nnunetv2_ext.trainers import find_trainer
from tests.narrow import narrow_networks
from tests.plan_matrix import PLANS

SMALLEST = {2: "E8", 3: "D4"}
WORLD_SIZE = 2


def _train_two_steps(network: nn.Module, patch_size: tuple[int, ...]) -> None:
    """Train a network; a parameter without a gradient is an error of the second step."""
    network = DistributedDataParallel(network.train())
    for _ in range(2):
        outputs = network(torch.randn(2, 1, *patch_size))
        outputs = outputs if isinstance(outputs, list) else [outputs]
        sum(output.square().mean() for output in outputs).backward()


def _train_every_network(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD_SIZE)
    # Those that start from ImageNet weights build the networks of others.
    for entry in (entry for entry in TRAINERS if not entry.pretrained):
        for dims in entry.dims:
            plan = next(plan for plan in PLANS if plan.name == SMALLEST[dims])
            with narrow_networks():
                network = find_trainer(entry.name).build_network(plan.geometry(), 1, 3)
            _train_two_steps(network, plan.patch_size)
    # A wrapped network that outlives the group ends it while Python is locked, for which the group's thread may wait.
    gc.collect()
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_network_trains_in_two_processes(tmp_path: Path) -> None:
    mp.spawn(_train_every_network, args=(str(tmp_path / "rendezvous"),), nprocs=WORLD_SIZE)
