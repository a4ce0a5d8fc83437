"""Counting what a network costs."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunetv2_ext.architectures.cost import estimate_cost, move_off_meta


def test_networks_with_modules_and_parameters_in_two_places_leave_the_meta_device() -> None:
    with torch.device("meta"):
        inner = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1))
        inner[0].weight.requires_grad_(False)
        network = nn.ModuleDict({"encoder": inner, "decoder": nn.ModuleList([inner]), "tied": nn.Conv2d(1, 1, 3)})
        network["tied"].weight = inner[0].weight
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = move_off_meta(network)
        tensors = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers())
        assert {str(tensor.device) for tensor in tensors.values()} == {"cpu"}
    assert network["tied"].weight is network["decoder"][0][0].weight
    assert not network["tied"].weight.requires_grad
    assert network["encoder"] is network["decoder"][0]
    assert network["encoder"].state_dict().keys() == inner.state_dict().keys()


class _OneConvolution(nn.Conv2d):
    """A convolution of 2 to 3 channels that is asked what a network is asked."""

    input_channels, patch_size = 2, (8, 16)

    def __init__(self) -> None:
        super().__init__(2, 3, 3, bias=False)


def test_memory_under_autocast_grows_with_the_batch_but_for_the_weights() -> None:
    cost = estimate_cost(_OneConvolution)
    assert cost.kept_bytes == 4 * 2 * 8 * 16
    # The input and the weights, each as a copy in float16.
    assert cost.autocast_sample_bytes == 2 * 2 * 8 * 16
    assert cost.autocast_fixed_bytes == 2 * 3 * 2 * 3 * 3
    assert cost.autocast_bytes(4) == 4 * cost.autocast_sample_bytes + cost.autocast_fixed_bytes
