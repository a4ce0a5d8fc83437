"""Attention inside windows with a bias that learns: its definition, and how each device computes it.

    Y = softmax(d^(-1/2) Q K^T + P + M) V

P is the bias of a window's pairs of tokens, one table for all windows. M is the shift mask: 0 between tokens of a
window that have the same label, -100 between others.

- "fused", on CUDA: torch's memory-efficient kernel, forward and backward, with the gradient of P.
- "operator", on all other devices: an operator of its own, which keeps no scores. Forward it is torch's fused kernel;
  backward it computes the scores of a few windows at a time again.
- "plain", while exporting or tracing: two products and a softmax, which every runtime knows.

All give the same numbers and gradients. On CUDA the fused kernel is held against the plain backend once for each
device and precision, before it is first used there; if it fails or differs, a warning says so and the operator takes
its place.

Shape legend: B batch, M windows of a sample, B' = B M, h heads, N tokens of a window, d channels of a head.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import register_flop_formula

__all__ = ["MASKED", "WindowGroups", "attend_in_windows", "choose_backend"]

MASKED = -100.0

# Scores that the operator's backward pass holds at a time, by type of device: few enough for a CPU's cache, elsewhere
# enough to keep the device busy and few enough for its memory.
SCORES_AT_A_TIME = {"cpu": 2**20, "cuda": 2**25, "xpu": 2**25, "mps": 2**23}
SCORES_ELSEWHERE = 2**23
# Types of devices that have the fused kernel.
FUSED_ON = frozenset({"cuda"})
# Scores of the fused kernel at a time: it writes the gradient of P for each window before all are added up.
FUSED_SCORES_AT_A_TIME = 2**28
# Windows that one start of the kernel can take.
FUSED_WINDOWS_AT_A_TIME = 2**16 - 1
# Alignment that the kernel wants: of a head's channels, and of the rows of the bias.
CHANNELS_ALIGNED, BIAS_ALIGNED = 8, 16
# Difference to the plain backend that the fused kernel may have, as a part of the largest value.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class WindowGroups(NamedTuple):
    """Which windows share a mask; the rest of what a mask is are the labels of their tokens.

    Attributes:
        counts: windows per axis.
        ends: first and last window (exclusive) of each group along each axis, one after the other.
        number_of_labels: labels are less than this.
    """

    counts: tuple[int, ...]
    ends: tuple[int, ...]
    number_of_labels: int


def attend_in_windows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    labels: Tensor | None,
    groups: WindowGroups,
    backend: str | None = None,
) -> Tensor:
    """Attend inside windows.

    Args:
        query: not scaled.
        key: keys, as many as queries.
        value: values, as many as queries.
        bias: added to the scores of every window.
        labels: label of each token of a sample's windows; tokens of different labels do not see each other. None: all
            do.
        groups: windows that share a mask.
        backend: "fused", "operator" or "plain"; None: what suits the device, see the top of this file.

    Shape:
        query, key, value (B', h, N, d), bias (1, h, N, N), labels (M, N), to (B', h, N, d).
    """
    backend = backend or choose_backend(query)
    if backend == "operator":
        return _operator(query, key, value, bias, labels, groups.counts, groups.ends)
    attend = _fused if backend == "fused" else _plain
    return attend(query, key, value, bias, labels, groups.number_of_labels)


def choose_backend(query: Tensor) -> str:
    """Choose the backend for a query's device and precision, and for what becomes of the operators that run now."""
    # `is_exporting` is new in torch 2.7.
    if torch.jit.is_tracing() or getattr(torch.compiler, "is_exporting", bool)():
        return "plain"
    if query.device.type in FUSED_ON and _fused_is_right(query.device, query.dtype):
        return "fused"
    return "operator"


def _add_codes(query: Tensor, key: Tensor, labels: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Add channels to queries and keys whose products are the mask.

    A key has 1 in the channel of its token's label, a query what the scale turns into -100 in all channels but that of
    its own label. So one kernel serves all windows, with the same bias for each.
    """
    same = labels.unsqueeze(-1) == torch.arange(channels, device=labels.device)  # (M, N, channels)
    codes = (~same).to(query.dtype) * (MASKED * math.sqrt(query.shape[-1])), same.to(key.dtype)

    def append(x: Tensor, code: Tensor) -> Tensor:
        x = x.unflatten(0, (-1, code.shape[0]))  # (B, M, h, N, d)
        return torch.cat((x, code.unsqueeze(1).expand(*x.shape[:-1], -1)), dim=-1).flatten(0, 1)

    return append(query, codes[0]), append(key, codes[1])


def _plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, labels: Tensor | None, number: int) -> Tensor:
    scale = query.shape[-1] ** -0.5
    if labels is not None:
        query, key = _add_codes(query, key, labels, number)
    scores = (query * scale) @ key.transpose(2, 3) + bias.to(query.dtype)
    return scores.softmax(-1) @ value


def _fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, labels: Tensor | None, number: int) -> Tensor:
    windows, heads, tokens, size = query.shape
    scale = size**-0.5
    missing = -size % CHANNELS_ALIGNED
    if labels is not None:
        query, key = _add_codes(query, key, labels, number + -(size + number) % CHANNELS_ALIGNED)
    elif missing:
        query, key = F.pad(query, (0, missing)), F.pad(key, (0, missing))
    if missing:
        value = F.pad(value, (0, missing))
    bias = bias.to(query.dtype)
    if tokens % BIAS_ALIGNED:
        bias = F.pad(bias, (0, -tokens % BIAS_ALIGNED))[..., :tokens]
    at_a_time = FUSED_WINDOWS_AT_A_TIME
    if torch.is_grad_enabled() and bias.requires_grad:
        at_a_time = min(at_a_time, max(1, FUSED_SCORES_AT_A_TIME // (heads * tokens * tokens)))
    parts = [(query, key, value)]
    if windows > at_a_time:
        # Of nearly one size: torch's compiler sees fewer different shapes.
        number_of_parts = -(-windows // at_a_time)
        parts = list(zip(*(x.split(-(-windows // number_of_parts)) for x in (query, key, value)), strict=True))
    # Elsewhere, that is in tests, there is no such kernel to ask for.
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION) if query.is_cuda else nullcontext():
        outputs = [
            F.scaled_dot_product_attention(*part, attn_mask=bias.expand(part[0].shape[0], -1, -1, -1), scale=scale)
            for part in parts
        ]
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output[..., :size] if missing else output


@torch.compiler.assume_constant_result
def _fused_is_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the fused kernel works on a device; while compiling, torch asks once, outside of the graph."""
    return _compare_fused(device, dtype)


@functools.cache
def _compare_fused(device: torch.device, dtype: torch.dtype) -> bool:
    if dtype not in TOLERANCES:
        return False
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            difference = _largest_difference(device, dtype)
        reason = f"its largest difference to the plain computation is {difference:.1e}"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        difference, reason = math.inf, str(error).splitlines()[0]
    if difference <= TOLERANCES[dtype]:
        return True
    warnings.warn(
        f"Window attention is slower on {device} in {dtype}, without torch's memory-efficient kernel: {reason}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def _largest_difference(device: torch.device, dtype: torch.dtype) -> float:
    """Compare outputs and gradients of the fused and the plain backend, as a part of each one's largest value."""
    batch, windows, heads, tokens, size = 2, 2, 2, 49, 16
    shape = (batch * windows, heads, tokens, size)
    # Not random, so that the user's random numbers stay as they are.
    numbers = torch.arange(4 * math.prod(shape), dtype=torch.float32, device=device).view(4, *shape)
    query, key, value, change = (numbers * 0.7).sin().mul(2).to(dtype).unbind(0)
    bias = (numbers.flatten()[: heads * tokens**2] * 0.3).cos().view(1, heads, tokens, tokens).to(dtype)
    labels = torch.stack([torch.zeros(tokens, device=device), numbers.flatten()[:tokens] % 3]).to(torch.uint8)
    results = []
    for attend, precision in ((_fused, dtype), (_plain, torch.float32)):
        inputs = [x.to(precision).detach().requires_grad_() for x in (query, key, value, bias)]
        output = attend(inputs[0], inputs[1], inputs[2], inputs[3], labels, 3)
        results.append([output, *torch.autograd.grad(output, inputs, change.to(precision))])
    differences = [
        (got.float() - expected).abs().max() / expected.abs().max() for got, expected in zip(*results, strict=True)
    ]
    return float(torch.stack(differences).nan_to_num(nan=math.inf).max())


# The operator. Without one, the scores of all windows would be kept for the backward pass: outside of CUDA no kernel of
# torch gives the gradient of a bias. Here they are computed again, a few windows at a time. To torch.compile an
# operator is one node, where its loops would be thousands.
_ARGUMENTS = "Tensor query, Tensor key, Tensor value, Tensor bias, Tensor? labels, int[] counts, int[] ends"


def _windows_of(tensor: Tensor, counts: Sequence[int], group: Sequence[int]) -> Tensor:
    """Pick the windows of a group: (B', ...) to a view (B, *windows of the group, ...)."""
    tensor = tensor.unflatten(0, (-1, *counts))
    for axis, (start, stop) in enumerate(zip(group[::2], group[1::2], strict=True), start=1):
        tensor = tensor.narrow(axis, start, stop - start)
    return tensor


def _groups_of(counts: Sequence[int], ends: Sequence[int]) -> list[Sequence[int]]:
    """Split the ends of all groups into those of each; without groups, all windows are one."""
    length = 2 * len(counts)
    every = list(itertools.chain.from_iterable((0, count) for count in counts))
    return [ends[start : start + length] for start in range(0, len(ends), length)] or [every]


def _bias_of(bias: Tensor, labels: Tensor | None, counts: Sequence[int], group: Sequence[int]) -> Tensor:
    """Add the mask of a group to the bias."""
    if labels is None:
        return bias
    own = _windows_of(labels, counts, group).flatten(0, len(counts))[0]
    return bias + (own[:, None] != own[None]).to(bias.dtype) * MASKED


def _empty_heads(like: Tensor) -> Tensor:
    """Make an empty tensor (B', h, N, d) whose tokens come before its heads in memory, as projections have it."""
    windows, heads, tokens, size = like.shape
    return like.new_empty(windows, tokens, heads, size).transpose(1, 2)


@torch.library.custom_op("nnunetv2_ext::window_attention", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
def _operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    labels: Tensor | None,
    counts: Sequence[int],
    ends: Sequence[int],
) -> Tensor:
    output = _empty_heads(query)
    for group in _groups_of(counts, ends):
        parts = [_windows_of(tensor, counts, group) for tensor in (query, key, value)]
        added = _bias_of(bias, labels, counts, group).to(query.dtype)
        q, k, v = (part.flatten(0, len(counts)) for part in parts)
        got = F.scaled_dot_product_attention(q, k, v, added)
        _windows_of(output, counts, group).copy_(got.view(parts[0].shape))
    return output


@torch.library.custom_op(
    "nnunetv2_ext::window_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor output, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _operator_backward(
    grad: Tensor,
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    labels: Tensor | None,
    counts: Sequence[int],
    ends: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, heads, tokens, size = query.shape
    at_a_time = max(1, SCORES_AT_A_TIME.get(query.device.type, SCORES_ELSEWHERE) // (heads * tokens * tokens))
    # Half precision would round scores that the forward pass, inside the fused kernel, did not round.
    precise = torch.promote_types(query.dtype, torch.float32)
    grads = [_empty_heads(query) for _ in range(3)]
    grad_bias = torch.zeros_like(bias, dtype=precise)
    for group in _groups_of(counts, ends):
        parts = [_windows_of(tensor, counts, group) for tensor in (query, key, value, output, grad)]
        shape = parts[0].shape
        added = _bias_of(bias, labels, counts, group)
        pieces: list[list[Tensor]] = [[], [], []]
        for some in zip(*(part.flatten(0, len(counts)).split(at_a_time) for part in parts), strict=True):
            # Products of tensors that do not lie in order are several times slower than the copy that orders them.
            q, k, v, y, dy = (tensor.to(precise).contiguous().flatten(0, 1) for tensor in some)
            q = q * size**-0.5
            with torch.autocast(query.device.type, enabled=False):
                weights = torch.bmm(q, k.transpose(1, 2))
                weights.view(-1, heads, tokens, tokens).add_(added)
                weights = weights.softmax(-1)
                pieces[2].append(torch.bmm(weights.transpose(1, 2), dy))
                change = torch.bmm(dy, v.transpose(1, 2)).sub_((y * dy).sum(-1, keepdim=True)).mul_(weights)
                pieces[0].append(torch.bmm(change, k).mul_(size**-0.5))
                pieces[1].append(torch.bmm(change.transpose(1, 2), q))
            grad_bias += change.view(-1, heads, tokens, tokens).sum(0, keepdim=True)
        for tensor, piece in zip(grads, pieces, strict=True):
            _windows_of(tensor, counts, group).copy_(torch.cat(piece).view(shape))
    return grads[0], grads[1], grads[2], grad_bias.to(bias.dtype)


@_operator.register_fake
def _(query: Tensor, *_others: Any) -> Tensor:
    return _empty_heads(query)


@_operator_backward.register_fake
def _(_grad: Tensor, _output: Tensor, query: Tensor, _key: Tensor, _value: Tensor, bias: Tensor, *_others: Any) -> Any:
    return (*(_empty_heads(query) for _ in range(3)), torch.empty_like(bias))


def _remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.counts, ctx.ends = inputs
    ctx.save_for_backward(output, *tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple:
    return (*_operator_backward(grad, *ctx.saved_tensors, ctx.counts, ctx.ends), None, None, None)


_operator.register_autograd(_differentiate, setup_context=_remember)


@register_flop_formula(torch.ops.nnunetv2_ext.window_attention)
def _count_operations(query_shape: Sequence[int], *_others: Any, **_more: Any) -> int:
    """Count two for each multiply-add of the two products, as torch does."""
    windows, heads, tokens, size = query_shape
    return 4 * windows * heads * tokens * tokens * size
