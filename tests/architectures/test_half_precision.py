"""Networks in half precision: under the autocast of a GPU, emulated, with half-precision weights or other layouts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.half_precision import compare, relative_error
from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.catalog import TrainerEntry
from tests.architectures.test_contract import ENTRIES, family_of, trainer_class
from tests.plan_matrix import PLANS

pytestmark = pytest.mark.usefixtures("narrow")

PLAN = {2: next(plan for plan in PLANS if plan.name == "E5"), 3: next(plan for plan in PLANS if plan.name == "D4")}


def wake(network: nn.Module) -> None:
    """Give a size to what starts at zero or next to it, as a training does: factors of attentions, layer scales."""
    for parameter in network.parameters():
        if parameter.min() == parameter.max() and parameter.max().abs() < 1e-3:
            nn.init.normal_(parameter, std=0.1)


def families() -> list[Any]:
    """Return the last trainer of each network, which has all that the others have."""
    last = [entry for entry in ENTRIES if family_of(entry)[-1] is entry]
    return [pytest.param(entry, id=entry.name.removeprefix("nnUNetTrainer")) for entry in last]


def make(entry: TrainerEntry, dim: int) -> tuple[SegmentationNetwork, Tensor]:
    """Build a network, and an image of smooth structures and noise."""
    torch.manual_seed(0)
    plan = PLAN[dim]
    network = trainer_class(entry).build_network(plan.narrow(), 1, 3).eval()
    network.decoder.deep_supervision = False
    wake(network)
    generator = torch.Generator().manual_seed(1)
    smooth = torch.randn(2, 1, *(4,) * dim, generator=generator)
    smooth = F.interpolate(smooth, size=plan.patch_size, mode="bilinear" if dim == 2 else "trilinear")
    return network, smooth + 0.3 * torch.randn(smooth.shape, generator=generator)


@pytest.mark.parametrize("entry", families())
@torch.no_grad()
def test_half_precision_costs_less_than_noise_in_the_image(entry: TrainerEntry) -> None:
    """Logits under fp16 are right to 5e-3, or as right as with noise of a thousandth of the image's deviation.

    Depth and norms amplify each difference, in some networks a hundredfold; the noise shows by how much.
    """
    network, x = make(entry, min(entry.dims))
    error, _, sensitivity = compare(network, x)
    assert error <= max(5e-3, sensitivity)


@pytest.mark.parametrize("entry", families())
@torch.no_grad()
def test_takes_weights_in_half_precision(entry: TrainerEntry) -> None:
    network, x = make(entry, min(entry.dims))
    exact = network(x)
    # Rounding of weights, image and maps, 2^-11 and 2^-8, amplified by depth.
    for dtype, tolerance in ((torch.float16, 0.1), (torch.bfloat16, 0.5)):
        got = copy.deepcopy(network).to(dtype)(x.to(dtype))
        assert got.dtype == dtype
        assert relative_error(got, exact) <= tolerance, dtype


@pytest.mark.parametrize("entry", families())
@torch.no_grad()
def test_takes_channels_last(entry: TrainerEntry) -> None:
    dim = max(entry.dims)
    layout = torch.channels_last if dim == 2 else torch.channels_last_3d
    network, x = make(entry, dim)
    exact = network(x)
    assert relative_error(network.to(memory_format=layout)(x.to(memory_format=layout)), exact) <= 1e-5
