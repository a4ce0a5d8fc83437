"""RecA, recurrent attention, and the window attention of the networks that it is put into.

Method: Recurrent-Attention (RecA); docs/networks/reca.md has the equations, the sources and every deviation.

Idea: self-attention whose query is the sum of this layer's query and of the queries of all earlier layers of the same
run of layers. That running sum, the state, is handed from block to block; everything else stays as it is, so that no
parameter is added and weights of plain and recurrent networks can be exchanged:

    [Q_t, K_t, V_t] = X_t W_t + b_t
    S_t = Q_t + S_(t-1)                                      the state; before the scale, S_0 = 0
    Y_t = softmax(d^(-1/2) S_t K_t^T + P_t + M_t) V_t        P position bias, M shift mask, of windows only

A run is all layers of an encoder of constant width (RecA-S), or the blocks of one stage of a hierarchical one (RecA-H).
The state is a variable of the loop over blocks and never an attribute of a module; no state is `None`. In window
attention it lives in window slots (window, head, token), and is not rolled with the map.

Shape legend: B batch, C channels, h heads, d = C / h, k = 2 or 3 axes, n grid of k sizes, w window of k sizes,
N = prod(w) tokens of a window (last axis fastest), M windows that cover the grid (last axis fastest), B' = B M.

Memory: nothing of size N x N is kept for the backward pass, neither are outputs of norms and activations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from nnunetv2_ext.architectures.layers.recompute import recompute

__all__ = [
    "DropPath",
    "MLPBranch",
    "PatchMerging",
    "WindowAttention",
    "WindowBlock",
    "WindowLayout",
    "WindowPositionBias",
    "clip_window",
    "describe_window_stages",
    "norms_biases_and_tables",
    "position_rows",
    "recurrent_attention",
    "run_blocks",
]

MASKED = -100.0
TABLE_STD = 0.02
# Attention scores that the backward pass of window attention holds at a time: few enough for a CPU's cache, on a GPU
# enough to keep it busy.
SCORES_AT_A_TIME = (2**20, 2**25)

State = Tensor | None


def recurrent_attention(
    query: Tensor, key: Tensor, value: Tensor, state: State = None, attend: Any = F.scaled_dot_product_attention
) -> tuple[Tensor, Tensor]:
    """Attend with the sum of all queries of the run so far.

    Args:
        query: of this layer, not scaled.
        key: of this layer.
        value: of this layer.
        state: what the layer before returned; None in the first layer, and for plain self-attention.
        attend: scaled dot-product attention, called with the sum, `key` and `value`.

    Returns:
        The output, and the state for the next layer.

    Shape:
        all (B', h, N, d).
    """
    state = query if state is None else query + state
    return attend(state, key, value), state


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, *, reca: bool, checkpointing: bool = False) -> Tensor:
    """Run the blocks of one run of layers.

    Args:
        blocks: modules that map (x, state) to (x, state).
        x: input of the first.
        reca: hand the state on; otherwise every block is plain self-attention.
        checkpointing: recompute the blocks in the backward pass.
    """
    state: State = None
    for block in blocks:
        x, state = recompute(block, x, state) if checkpointing else block(x, state)
        if not reca:
            state = None
    return x


class DropPath(nn.Module):
    """Stochastic depth: in training, drop the residual branch of a sample, and scale up the branches that are left.

    Args:
        rate: probability of dropping, below 1.

    Shape:
        (B, ...) to the same.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def extra_repr(self) -> str:
        return f"{self.rate:g}"

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.rate):
            return x
        keep = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))


def clip_window(grid: Sequence[int], window: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Clip a window to a grid, axis by axis: where the grid is not larger, one window spans it and nothing is shifted.

    Returns:
        The window, and the shift of shifted blocks: half of the window, rounded down, where it is not clipped.
    """
    pairs = list(zip(grid, window, strict=True))
    return tuple(min(pair) for pair in pairs), tuple(size // 2 if positions > size else 0 for positions, size in pairs)


def position_rows(window: Sequence[int], table_window: Sequence[int], rule: str) -> Tensor:
    """Give the row of the table of position biases for each pair of tokens of a window.

    Args:
        window: w.
        table_window: the window W that the table was made for, with prod(2 W - 1) rows; at least w.
        rule: "exact", one row for each offset between tokens; "cropped", the exact rule for the first N tokens of the
            full window W, whose offsets are wrong if another axis than the first is clipped; "nnformer", a rule for
            windows of equal sides in 3D by which different offsets share rows.

    Shape:
        (N, N), integers.

    Raises:
        ValueError: for an unknown rule, or a window that the rule does not serve.
    """
    if rule not in ("exact", "cropped", "nnformer"):
        raise ValueError(f"There is no position index {rule!r}; there are exact, cropped and nnformer.")
    cubic = len(window) == 3 and len({*window, *table_window}) == 1
    if rule == "nnformer" and not cubic:
        raise ValueError(f"The position index nnformer needs a 3D window of equal sides, and got {tuple(window)}.")
    tokens = torch.cartesian_prod(*(torch.arange(size) for size in (table_window if rule == "cropped" else window)))
    tokens = tokens[: math.prod(window)]  # (N, k)
    spans = [2 * size - 1 for size in table_window]
    steps = [math.prod(spans[axis + 1 :]) for axis in range(len(spans))]
    if rule == "nnformer":
        steps[0] = 3 * window[0] - 1
    offsets = tokens[:, None] - tokens[None] + torch.tensor([size - 1 for size in table_window])
    return (offsets * torch.tensor(steps)).sum(-1)


class WindowLayout:
    """How a map is cut into windows: zero-padded at the end of each axis, rolled by the shift, and cut.

    Args:
        grid: n.
        window: w.
        shift: positions per axis by which the windows are moved.
        mask_padding: keep tokens of the map from attending to padding. Without, padding is attended to.

    Attributes:
        counts: windows per axis.
        padded: positions per axis that the windows cover.
    """

    def __init__(
        self, grid: Sequence[int], window: Sequence[int], shift: Sequence[int], *, mask_padding: bool = False
    ) -> None:
        self.grid, self.window, self.shift = tuple(grid), tuple(window), tuple(shift)
        self.counts = tuple(-(-positions // size) for positions, size in zip(grid, window, strict=True))
        self.padded = tuple(count * size for count, size in zip(self.counts, window, strict=True))
        self.mask_padding = mask_padding
        self._axes = tuple(range(1, len(self.grid) + 1))

    def partition(self, x: Tensor) -> Tensor:
        """Cut a map (B, *n, C) into windows (B', N, C)."""
        if self.padded != self.grid:
            missing = [padded - positions for padded, positions in zip(self.padded, self.grid, strict=True)]
            x = F.pad(x, (0, 0, *itertools.chain.from_iterable((0, size) for size in reversed(missing))))
        if any(self.shift):
            x = torch.roll(x, [-size for size in self.shift], self._axes)
        shape = itertools.chain.from_iterable(zip(self.counts, self.window, strict=True))
        axes = len(self.grid)
        x = x.reshape(x.shape[0], *shape, x.shape[-1])
        x = x.permute(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
        return x.reshape(-1, math.prod(self.window), x.shape[-1])

    def merge(self, windows: Tensor) -> Tensor:
        """Put windows (B', N, C) together again to a map (B, *n, C)."""
        axes = len(self.grid)
        x = windows.reshape(-1, *self.counts, *self.window, windows.shape[-1])
        order = itertools.chain.from_iterable((1 + axis, 1 + axes + axis) for axis in range(axes))
        x = x.permute(0, *order, 2 * axes + 1).reshape(x.shape[0], *self.padded, windows.shape[-1])
        if any(self.shift):
            x = torch.roll(x, self.shift, self._axes)
        for axis, (padded, positions) in enumerate(zip(self.padded, self.grid, strict=True), start=1):
            if padded != positions:
                x = x.narrow(axis, 0, positions)
        return x

    def cells(self) -> tuple[list[tuple[tuple[int, int], ...]], Tensor | None]:
        """Group the windows that share a mask.

        Tokens that were not neighbours on the map (a shift brings both ends of an axis together) must not see each
        other. That depends on where a window lies along each axis, at its ends or not, so that a few masks serve all
        windows.

        Returns:
            For each group, first and last window (exclusive) along each axis, and the masks (groups, N, N), zero where
            tokens may see each other and -100 elsewhere. No groups and no masks if all may.
        """
        runs = [self._runs(axis) for axis in range(len(self.grid))]
        if all(set(labels) == {0} for axis in runs for _, _, labels in axis):
            return [], None
        groups, masks = [], []
        for group in itertools.product(*runs):
            groups.append(tuple((start, stop) for start, stop, _ in group))
            tokens = torch.cartesian_prod(*(torch.tensor(labels) for _, _, labels in group))  # (N, k)
            masks.append((tokens[:, None] != tokens[None]).any(-1) * MASKED)
        return groups, torch.stack(masks)

    def _runs(self, axis: int) -> list[tuple[int, int, tuple[int, ...]]]:
        """Give runs of windows along an axis whose tokens see each other in the same way: start, stop and labels.

        Tokens of one label may see each other.
        """
        positions, size = self.grid[axis], self.window[axis]
        padded, shift = self.padded[axis], self.shift[axis]
        runs: list[tuple[int, int, tuple[int, ...]]] = []
        for number in range(self.counts[axis]):
            labels = []
            for rolled in range(number * size, (number + 1) * size):
                label = 0 if not shift or rolled < padded - size else 1 if rolled < padded - shift else 2
                labels.append(3 if self.mask_padding and (rolled + shift) % padded >= positions else label)
            order = list(dict.fromkeys(labels))
            pattern = tuple(order.index(label) for label in labels)
            if runs and runs[-1][2] == pattern:
                runs[-1] = (runs[-1][0], number + 1, pattern)
            else:
                runs.append((number, number + 1, pattern))
        return runs


def _windows_of(tensor: Tensor, counts: Sequence[int], group: Sequence[int]) -> Tensor:
    """Pick the windows of a group: (B', ...) to a view (B, *windows of the group, ...)."""
    tensor = tensor.unflatten(0, (-1, *counts))
    for axis, (start, stop) in enumerate(zip(group[::2], group[1::2], strict=True), start=1):
        tensor = tensor.narrow(axis, start, stop - start)
    return tensor


def _groups_of(counts: Sequence[int], groups: Sequence[int]) -> list[Sequence[int]]:
    """Split the ends of all groups into those of each; without groups, all windows are one."""
    length = 2 * len(counts)
    every = list(itertools.chain.from_iterable((0, count) for count in counts))
    return [groups[start : start + length] for start in range(0, len(groups), length)] or [every]


def _empty_heads(like: Tensor) -> Tensor:
    """Make an empty tensor (B', h, N, d) whose tokens come before its heads in memory, as projections have it."""
    windows, heads, tokens, size = like.shape
    return like.new_empty(windows, tokens, heads, size).transpose(1, 2)


# Scaled dot-product attention with a bias that learns, and a mask for each group of windows, as an operator of its own.
# torch's fused kernels do not give the gradient of a bias on every device, and without them the scores of all windows
# would be kept. Here the fused kernel is used forward, and scores are computed again, a few windows at a time, in the
# backward pass. To torch.compile an operator is one node, where its loops would be thousands.
_ARGUMENTS = "Tensor query, Tensor key, Tensor value, Tensor bias, Tensor? masks, int[] counts, int[] groups"


@torch.library.custom_op("nnunetv2_ext::window_attention", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
def _window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    masks: Tensor | None,
    counts: Sequence[int],
    groups: Sequence[int],
) -> Tensor:
    output = _empty_heads(query)
    for number, group in enumerate(_groups_of(counts, groups)):
        parts = [_windows_of(tensor, counts, group) for tensor in (query, key, value)]
        added = (bias if masks is None else bias + masks[number]).to(query.dtype)
        got = F.scaled_dot_product_attention(*(part.flatten(0, len(counts)) for part in parts), added[None])
        _windows_of(output, counts, group).copy_(got.view(parts[0].shape))
    return output


@torch.library.custom_op(
    "nnunetv2_ext::window_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor output, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _window_attention_backward(
    grad: Tensor,
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    masks: Tensor | None,
    counts: Sequence[int],
    groups: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, heads, tokens, size = query.shape
    at_a_time = max(1, SCORES_AT_A_TIME[query.is_cuda] // (heads * tokens * tokens))
    # Half precision would round scores that the forward pass, inside the fused kernel, did not round.
    precise = torch.promote_types(query.dtype, torch.float32)
    grads = [_empty_heads(query) for _ in range(3)]
    grad_bias = torch.zeros_like(bias)
    for number, group in enumerate(_groups_of(counts, groups)):
        parts = [_windows_of(tensor, counts, group) for tensor in (query, key, value, output, grad)]
        shape = parts[0].shape
        added = bias if masks is None else bias + masks[number]
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
            grad_bias += change.view(-1, heads, tokens, tokens).sum(0)
        for tensor, piece in zip(grads, pieces, strict=True):
            _windows_of(tensor, counts, group).copy_(torch.cat(piece).view(shape))
    return (*grads, grad_bias)


@_window_attention.register_fake
def _(query: Tensor, *_others: Any) -> Tensor:
    return _empty_heads(query)


@_window_attention_backward.register_fake
def _(_grad: Tensor, _output: Tensor, query: Tensor, _key: Tensor, _value: Tensor, bias: Tensor, *_others: Any) -> Any:
    return (*(_empty_heads(query) for _ in range(3)), torch.empty_like(bias))


def _remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.counts, ctx.groups = inputs
    ctx.save_for_backward(output, *tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple:
    return (*_window_attention_backward(grad, *ctx.saved_tensors, ctx.counts, ctx.groups), None, None, None)


_window_attention.register_autograd(_differentiate, setup_context=_remember)


@register_flop_formula(torch.ops.nnunetv2_ext.window_attention)
def _count_operations(query_shape: Sequence[int], *_others: Any, **_more: Any) -> int:
    """Count two for each multiply-add of the two products, as torch does."""
    windows, heads, tokens, size = query_shape
    return 4 * windows * heads * tokens * tokens * size


class WindowPositionBias(nn.Module):
    """Attention inside windows: each head adds a learned bias for the offset between two tokens, and a shift mask.

    Args:
        num_heads: h.
        layout: how the map is cut.
        table_window: window that the table of biases is made for; None: the layout's.
        position_index: see `position_rows`.

    Shape:
        query, key, value (B', h, N, d) to (B', h, N, d).
    """

    def __init__(
        self,
        num_heads: int,
        layout: WindowLayout,
        *,
        table_window: Sequence[int] | None = None,
        position_index: str = "exact",
    ) -> None:
        super().__init__()
        table_window = tuple(table_window or layout.window)
        self.table = nn.Parameter(torch.empty(math.prod(2 * size - 1 for size in table_window), num_heads))
        nn.init.trunc_normal_(self.table, std=TABLE_STD)
        self.counts = layout.counts
        groups, masks = layout.cells()
        self.groups = [end for group in groups for ends in group for end in ends]
        self.register_buffer("index", position_rows(layout.window, table_window, position_index), persistent=False)
        self.register_buffer("masks", None if masks is None else masks[:, None], persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        bias = self.table[self.index].permute(2, 0, 1).contiguous()  # (h, N, N)
        return _window_attention(query, key, value, bias, self.masks, self.counts, self.groups)


class WindowAttention(nn.Module):
    """Recurrent self-attention inside windows.

    Args:
        channels: C, divisible by the heads.
        num_heads: h; heads are consecutive groups of channels.
        layout: how the map is cut.
        table_window: see `WindowPositionBias`.
        position_index: see `position_rows`.

    Shape:
        windows (B', N, C), and a state (B', h, N, d) or None, to the same two.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        layout: WindowLayout,
        *,
        table_window: Sequence[int] | None = None,
        position_index: str = "exact",
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{channels} channels must be divisible by the number of heads, {num_heads}.")
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.position = WindowPositionBias(num_heads, layout, table_window=table_window, position_index=position_index)
        self.proj = nn.Linear(channels, channels)

    def forward(self, windows: Tensor, state: State = None) -> tuple[Tensor, Tensor]:
        return self.attend(self.qkv(windows), state)

    def attend(self, qkv: Tensor, state: State = None) -> tuple[Tensor, Tensor]:
        """Attend with projections (B', N, 3 C): queries, keys and values, each head by head."""
        query, key, value = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        output, state = recurrent_attention(query, key, value, state, self.position)
        return self.proj(output.transpose(1, 2).flatten(2)), state


class MLPBranch(nn.Module):
    """Layer norm, linear map, exact GELU, linear map.

    Args:
        channels: C.
        hidden: width between the two maps.

    Shape:
        (..., C) to (..., C).
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return recompute(self._contract, recompute(self._expand, x))

    # What is recomputed ends in a linear map, which itself is not: the backward pass needs only its input.
    def _expand(self, x: Tensor) -> Tensor:
        return self.fc1(self.norm(x))

    def _contract(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(hidden))


class WindowBlock(nn.Module):
    """Pre-norm window block: x + Attention(windows(LN(x))), then x + MLP(LN(x)), both with stochastic depth.

    Padding comes after the first norm, so that a padded token has the biases of its projections as query, key and
    value.

    Args:
        channels: C.
        num_heads: h.
        grid: n; the block accepts no other.
        window: w.
        shift: positions per axis by which this block's windows are moved; None: none.
        table_window: window that the table of position biases is made for; None: `window`.
        position_index: see `position_rows`.
        mask_padding: see `WindowLayout`.
        mlp_ratio: width of the MLP's hidden layer against C.
        drop_path: rate of stochastic depth on both branches. The state of a dropped branch is handed on all the same.

    Shape:
        map (B, *n, C), and a state (B', h, N, d) or None, to the same two.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        grid: Sequence[int],
        window: Sequence[int],
        shift: Sequence[int] | None = None,
        table_window: Sequence[int] | None = None,
        position_index: str = "exact",
        mask_padding: bool = False,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.layout = WindowLayout(grid, window, shift or (0,) * len(grid), mask_padding=mask_padding)
        self.norm = nn.LayerNorm(channels)
        self.attention = WindowAttention(
            channels, num_heads, self.layout, table_window=table_window, position_index=position_index
        )
        self.mlp = MLPBranch(channels, int(channels * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, Tensor]:
        # Of the projection, the norm and the copy into windows are recomputed; the linear map needs only its input.
        windows, state = self.attention.attend(recompute(self._project, x), state)
        x = x + self.drop_path(self.layout.merge(windows))
        return x + self.drop_path(self.mlp(x)), state

    def _project(self, x: Tensor) -> Tensor:
        return self.attention.qkv(self.layout.partition(self.norm(x)))


class PatchMerging(nn.Module):
    """Between stages: the sub-grids of every stride-th position side by side, layer norm, linear map to 2 C.

    Args:
        channels: C.
        stride: per axis; an axis that it does not divide gets zeros at its end.
        offsets: the sub-grids, in order, by their first position; None: all, first axis fastest.

    Shape:
        (B, *n, C) to (B, *ceil(n / stride), 2 C).
    """

    def __init__(self, channels: int, stride: Sequence[int], offsets: Sequence[Sequence[int]] | None = None) -> None:
        super().__init__()
        self.stride = tuple(stride)
        if offsets is None:
            offsets = [one[::-1] for one in itertools.product(*(range(step) for step in reversed(self.stride)))]
        self.offsets = tuple(tuple(offset) for offset in offsets)
        self.norm = nn.LayerNorm(len(self.offsets) * channels)
        self.reduction = nn.Linear(len(self.offsets) * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return recompute(self._merge, x)

    def _merge(self, x: Tensor) -> Tensor:
        missing = [-size % step for size, step in zip(x.shape[1:-1], self.stride, strict=True)]
        if any(missing):
            x = F.pad(x, (0, 0, *itertools.chain.from_iterable((0, size) for size in reversed(missing))))
        parts = [
            x[(slice(None), *(slice(first, None, step) for first, step in zip(offset, self.stride, strict=True)))]
            for offset in self.offsets
        ]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))


def describe_window_stages(stages: Iterable[nn.Module], strides: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Give one row for each stage, for people to read.

    Args:
        stages: each with its `WindowBlock`s as `blocks`.
        strides: the stride that leads to each.
    """
    return [
        {
            "stage": number,
            "stride": stride,
            "grid": stage.blocks[0].layout.grid,
            "channels": stage.blocks[0].mlp.fc2.out_features,
            "heads": stage.blocks[0].attention.num_heads,
            "window": stage.blocks[0].layout.window,
            "windows": math.prod(stage.blocks[0].layout.counts),
            "shift": stage.blocks[-1].layout.shift,
            "blocks": len(stage.blocks),
        }
        for number, (stage, stride) in enumerate(zip(stages, strides, strict=False), start=1)
    ]


def norms_biases_and_tables(network: nn.Module) -> set[str]:
    """Name the parameters that weight decay serves nothing in: weights of norms, biases, and position tables."""
    tables = {f"{name}.table" for name, module in network.named_modules() if isinstance(module, WindowPositionBias)}
    return tables | {name for name, parameter in network.named_parameters() if parameter.ndim < 2}
