"""CUDA's fp16 autocast, emulated on a CPU, whose own autocast has other lists of operators.

On CUDA convolutions and products take and give half precision and add up in float32; norms that are on the list,
softmax, sums, powers and interpolation run in float32 and give float32; everything else runs in the precision of its
inputs. Lists as in PyTorch's documentation, "Autocast op reference".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

__all__ = ["CudaAutocast"]

PRODUCTS = {
    *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear, F.prelu),
    *(torch.matmul, torch.mm, torch.mv, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, torch.chain_matmul),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.baddbmm),
    *(F.scaled_dot_product_attention, torch.prelu),
}
IN_FLOAT32 = {
    *(F.layer_norm, F.group_norm, F.interpolate, F.softmax, F.log_softmax, F.softplus, F.normalize),
    *(torch.softmax, torch.log_softmax, Tensor.softmax, Tensor.log_softmax, torch.sum, Tensor.sum, torch.norm),
    *(torch.exp, torch.log, torch.pow, torch.rsqrt, torch.reciprocal, torch.cumsum, torch.prod, torch.logsumexp),
    *(Tensor.exp, Tensor.log, Tensor.pow, Tensor.__pow__, Tensor.rsqrt, Tensor.reciprocal, Tensor.cumsum, Tensor.prod),
    *(Tensor.norm, F.cross_entropy, F.mse_loss, F.l1_loss, F.nll_loss),
}
# Not listed: they give the precision of their input, and compute in float32 inside.
INSIDE_FLOAT32 = {F.instance_norm, F.batch_norm, F.gelu, F.avg_pool2d, F.avg_pool3d, torch.mean, Tensor.mean}


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, values)


class CudaAutocast(TorchFunctionMode):
    """Run what is inside as under `torch.autocast("cuda", dtype=torch.float16)`.

    Regions with `torch.autocast(..., enabled=False)` stay without it.
    """

    def __enter__(self) -> CudaAutocast:
        self._autocast = torch.autocast("cpu", dtype=torch.float16)
        self._autocast.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._autocast.__exit__(*error)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (torch.autocast, torch.is_autocast_enabled):
            return function(*args, **kwargs)
        enabled = torch.is_autocast_enabled("cpu")
        if function in PRODUCTS | INSIDE_FLOAT32 | IN_FLOAT32:
            given = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            half = any(x.dtype == torch.float16 for x in given)
            with torch.autocast("cpu", enabled=False):
                if (function in PRODUCTS and enabled) or (half and not enabled and function not in INSIDE_FLOAT32):
                    args, kwargs = _cast((args, kwargs), torch.float16)
                    half = True
                if not (half or enabled):
                    return function(*args, **kwargs)
                args, kwargs = _cast((args, kwargs), torch.float32)
                result = function(*args, **kwargs)
                if function in IN_FLOAT32 and enabled:
                    return result
                return _cast(result, torch.float16) if half else result
        with torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)
