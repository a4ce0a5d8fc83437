"""What CUDA's autocast and attention kernels make of a forward pass, played on fake tensors of a CPU.

No GPU is needed, and none is asked: the answer is the same on every machine. On CUDA convolutions and products take and
give half precision; norms that are on autocast's list, softmax, sums, powers and interpolation run in float32 and give
float32; everything else runs in the precision of its inputs. Lists as in PyTorch's documentation, "Autocast op
reference". Attention runs in fused kernels, which keep no scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

__all__ = ["CudaSemantics", "find_workspace"]

_PRODUCTS = {
    *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear, F.prelu),
    *(torch.matmul, torch.mm, torch.mv, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, torch.chain_matmul),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.baddbmm),
    *(F.scaled_dot_product_attention, torch.prelu),
}
_IN_FLOAT32 = {
    *(F.layer_norm, F.group_norm, F.interpolate, F.softmax, F.log_softmax, F.softplus, F.normalize),
    *(torch.layer_norm, torch.group_norm, torch.softmax, torch.log_softmax, Tensor.softmax, Tensor.log_softmax),
    *(torch.sum, Tensor.sum, torch.norm, Tensor.norm, torch.logsumexp, torch.cumsum, Tensor.cumsum, torch.prod),
    *(torch.exp, Tensor.exp, torch.log, Tensor.log, torch.pow, Tensor.pow, Tensor.__pow__, torch.rsqrt, Tensor.rsqrt),
    *(torch.reciprocal, Tensor.reciprocal, Tensor.prod),
    *(F.cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss, F.l1_loss, F.nll_loss),
}
# Widest head of the kernel without a bias, and the multiple of bytes that the kernel with a bias wants.
_WIDEST_HEAD, _ALIGNED_BYTES = 256, 16


class CudaSemantics(TorchFunctionMode):
    """Run what is inside with the precisions and kernels that CUDA has.

    Args:
        autocast: compute as under `torch.autocast("cuda", dtype=torch.float16)`. Regions with
            `torch.autocast(..., enabled=False)` stay without it.
    """

    def __init__(self, autocast: bool = True) -> None:
        super().__init__()
        self.autocast = torch.autocast("cpu", dtype=torch.float16, enabled=autocast)
        # Autocast keeps the copies of weights until its region ends.
        self._copies: dict[int, tuple[Tensor, Tensor]] | None = None

    def __enter__(self) -> CudaSemantics:
        super().__enter__()
        return self

    def forward_pass(self) -> _Region:
        """Make the context of nnU-Net's autocast region."""
        return _Region(self)

    def _half(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if self._copies is None or not (value.requires_grad and value.is_leaf):
            return value.to(torch.float16)
        if id(value) not in self._copies:
            self._copies[id(value)] = (value, value.to(torch.float16))
        return self._copies[id(value)][1]

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (torch.autocast, torch.is_autocast_enabled):
            return function(*args, **kwargs)
        enabled = torch.is_autocast_enabled("cpu")
        if enabled:
            torch.set_autocast_enabled("cpu", False)
        try:
            return self._call(function, args, kwargs, enabled)
        finally:
            if enabled:
                torch.set_autocast_enabled("cpu", True)

    def _call(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any], autocast: bool) -> Any:
        if autocast and function in _PRODUCTS:
            args, kwargs = tree_map(self._half, (args, kwargs))
        elif autocast and function in _IN_FLOAT32:
            args, kwargs = tree_map(_float, (args, kwargs))
        if function is F.scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        if function is F.dropout:
            return _drop(*args, **kwargs)
        return function(*args, **kwargs)


class _Region:
    """The region of autocast: copies of weights live as long as it."""

    def __init__(self, mode: CudaSemantics) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        self.mode.autocast.__enter__()
        self.mode._copies = {}

    def __exit__(self, *error: Any) -> None:
        self.mode._copies = None
        self.mode.autocast.__exit__(*error)


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _drop(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Apply dropout as CUDA does: one kernel, which keeps a byte per element."""
    if not training or p == 0:
        return x
    if inplace:
        return F.dropout(x, p, training, inplace)
    return torch.native_dropout(x, p, training)[0]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Attend in a fused kernel where CUDA has one for the sizes, else with all scores."""
    flash, efficient = _kernels(query, value, attn_mask)
    scale = options.get("scale")
    if query.ndim != 4 or dropout_p or not (flash or efficient):
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if flash:
        size = query.shape[-1]
        # The kernel pads heads to its alignment.
        inputs = [F.pad(each, (0, -size % 8)) if size % 8 else each for each in (query, key, value)]
        attended = torch.ops.aten._scaled_dot_product_flash_attention(*inputs, 0.0, is_causal, False, scale=scale)[0]
        return attended[..., :size]
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, True, 0.0, is_causal, scale=scale
    )[0]


def _kernels(query: Tensor, value: Tensor, bias: Tensor | None) -> tuple[bool, bool]:
    """Return whether CUDA's flash and memory-efficient kernels take these sizes and precisions."""
    widths = query.shape[-1], value.shape[-1]
    half = query.dtype in (torch.float16, torch.bfloat16)
    flash = half and bias is None and widths[0] == widths[1] <= _WIDEST_HEAD
    return flash, all(width * query.element_size() % _ALIGNED_BYTES == 0 for width in widths)


def find_workspace(function: Any, args: Sequence[Any], result: Any) -> int:
    """Return the bytes that a kernel takes while it runs, beside what it reads and writes.

    Convolutions rearrange their maps so that channels lie together, what comes in and what goes out; attention's
    backward pass adds up the gradient of the queries in float32.
    """
    aten = torch.ops.aten
    if function is aten.convolution.default:
        return args[0].nbytes + result.nbytes
    if function is aten.convolution_backward.default:
        return args[0].nbytes + args[1].nbytes
    if function in (
        aten._scaled_dot_product_flash_attention_backward.default,
        aten._scaled_dot_product_efficient_attention_backward.default,
    ):
        return args[1].numel() * 4
    return 0
