"""What a network costs: parameters, multiply-adds, and the memory that its backward pass needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_ext.architectures.network import SegmentationNetwork

__all__ = ["Cost", "bytes_kept_for_backward", "estimate_cost", "move_off_meta"]

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Cost:
    """Cost of one training step's forward pass.

    Attributes:
        parameters: all of them.
        trainable_parameters: those that training changes.
        multiply_adds: multiply-adds of convolutions and matrix products.
        kept_bytes: bytes of the distinct storages that autograd keeps for the backward pass, parameters not counted.
        autocast_fixed_bytes: the same under autocast to float16, as far as the batch does not change it: copies of
            weights.
        autocast_sample_bytes: the same under autocast, per sample.
    """

    parameters: int
    trainable_parameters: int
    multiply_adds: int
    kept_bytes: int
    autocast_fixed_bytes: int
    autocast_sample_bytes: int

    def autocast_bytes(self, batch_size: int) -> int:
        """Return what is kept for the backward pass of a batch under autocast."""
        return self.autocast_fixed_bytes + batch_size * self.autocast_sample_bytes


def bytes_kept_for_backward(network: nn.Module, x: Tensor) -> int:
    """Run a forward pass and count the bytes of the distinct storages that autograd keeps for the backward pass.

    Parameters and buffers are not counted: they are there anyway.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            # The reference keeps the storage alive, so that its address is not given to another one.
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(x)
    return sum(storage.nbytes() for storage in kept.values())


def move_off_meta(network: Network) -> Network:
    """Return a network that was built on the meta device the CPU's tensors; under `FakeTensorMode` they take no memory.

    `Module.to_empty` does this too, but visits a module as often as it has names, and fails at the second time; in
    nnU-Net's own networks the decoder holds the encoder.
    """
    moved: dict[Tensor, Tensor] = {}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in moved:
                empty = torch.empty_like(parameter, device="cpu")
                moved[parameter] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            setattr(module, name, moved[parameter])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, moved.setdefault(buffer, torch.empty_like(buffer, device="cpu")))
    return network


def estimate_cost(build: Callable[[], SegmentationNetwork], batch_size: int = 1) -> Cost:
    """Find the cost of a network in float32 and training mode, without memory or time for its arithmetic.

    Args:
        build: makes the network.
        batch_size: samples of the input.
    """
    with torch.device("meta"):
        network = build().train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        # A tensor on the meta device has no autocast; a fake one has its device's.
        network = move_off_meta(network)
        x = torch.empty(batch_size, network.input_channels, *network.patch_size)
        # torch does not count the products inside the fused attention of a CPU, so the plain one computes here.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x)
        # Fake tensors on CUDA need a torch that was built for it, so that autocast is the CPU's here.
        with torch.autocast("cpu", dtype=torch.float16):
            one, two = (bytes_kept_for_backward(network, torch.empty(samples, *x.shape[1:])) for samples in (1, 2))
        return Cost(
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            trainable_parameters=sum(
                parameter.numel() for parameter in network.parameters() if parameter.requires_grad
            ),
            # torch counts a multiply-add as two operations.
            multiply_adds=counter.get_total_flops() // 2,
            kept_bytes=bytes_kept_for_backward(network, x),
            autocast_fixed_bytes=2 * one - two,
            autocast_sample_bytes=two - one,
        )
