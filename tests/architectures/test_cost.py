"""Counting what a network costs."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunetv2_ext.architectures.cost import move_off_meta


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
