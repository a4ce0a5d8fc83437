"""Windows: how a map is cut into them, the bias for positions inside them, and recurrent attention in them.

Shape legend: B batch, C channels, h heads, d = C / h, k = 2 or 3 axes, n grid of k sizes or, where a map's positions
are in a row (last axis fastest), their number; w window of k sizes, N = prod(w) tokens of a window,
M windows that cover the grid, B' = B M.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_ext.architectures.layers.attention_backends import WindowGroups, attend_in_windows
from nnunetv2_ext.architectures.reca import State, recurrent_attention

__all__ = [
    "WindowAttention",
    "WindowLayout",
    "WindowPositionBias",
    "clip_window",
    "norms_biases_and_tables",
    "position_rows",
]

TABLE_STD = 0.02


def clip_window(grid: Sequence[int], window: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Clip a window to a grid, axis by axis: where the grid is not larger, one window spans it and nothing is shifted.

    Returns:
        The window, and the shift of shifted blocks: half of the window, rounded down, where it is not clipped.
    """
    pairs = list(zip(grid, window, strict=True))
    return tuple(min(pair) for pair in pairs), tuple(size // 2 if positions > size else 0 for positions, size in pairs)


def position_rows(window: Sequence[int], table_window: Sequence[int], rule: str) -> Tensor:
    """Return the row of the table of position biases for each pair of tokens of a window.

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


def _number(coordinates: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Number the points of a grid whose axes hold these coordinates, last axis fastest: (sizes of the axes)."""
    axes = len(sizes)
    total = torch.zeros((1,) * axes, dtype=torch.long)
    for axis, (along, size) in enumerate(zip(coordinates, sizes, strict=True)):
        total = total * size + along.view(*(-1 if other == axis else 1 for other in range(axes)))
    return total


def _rearrange(x: Tensor, slots: Tensor, positions: Tensor | None, number: int, into_windows: bool) -> Tensor:
    """Put positions of a map into slots of windows, zero where no position comes, or take them out again."""
    if not into_windows:
        return x.index_select(1, slots)
    if positions is not None:
        return x.index_select(1, positions)
    return x.new_zeros(x.shape[0], number, x.shape[2]).index_copy_(1, slots, x)


class _Rearrange(torch.autograd.Function):
    """`_rearrange` with a gradient that is the way back; autograd's own would add up where there is nothing to add."""

    @staticmethod
    def forward(x: Tensor, slots: Tensor, positions: Tensor | None, number: int, into_windows: bool) -> Tensor:
        return _rearrange(x, slots, positions, number, into_windows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, slots, positions, ctx.number, ctx.into_windows = inputs
        ctx.save_for_backward(slots, positions)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        slots, positions = ctx.saved_tensors
        return _rearrange(grad, slots, positions, ctx.number, not ctx.into_windows), None, None, None, None


class WindowLayout(nn.Module):
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

    slots: Tensor
    positions: Tensor | None

    def __init__(
        self, grid: Sequence[int], window: Sequence[int], shift: Sequence[int], *, mask_padding: bool = False
    ) -> None:
        super().__init__()
        self.grid, self.window, self.shift = tuple(grid), tuple(window), tuple(shift)
        self.counts = tuple(-(-positions // size) for positions, size in zip(grid, window, strict=True))
        self.padded = tuple(count * size for count, size in zip(self.counts, window, strict=True))
        self.mask_padding = mask_padding
        rolled = [
            (torch.arange(positions) - shift) % padded
            for positions, shift, padded in zip(self.grid, self.shift, self.padded, strict=True)
        ]
        cells = [along // size for along, size in zip(rolled, self.window, strict=True)]
        inside = [along % size for along, size in zip(rolled, self.window, strict=True)]
        slots = _number(cells, self.counts) * math.prod(self.window) + _number(inside, self.window)
        slots = slots.flatten()
        # Windows that are whole slabs of the map lie in memory as they are.
        self.in_order = self.padded == self.grid and not any(self.shift) and set(self.counts[1:]) == {1}
        # Where each position of the map is among the tokens of all windows; without padding, the way back too.
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("positions", slots.argsort() if self.padded == self.grid else None, persistent=False)

    def extra_repr(self) -> str:
        return f"grid={self.grid}, window={self.window}, shift={self.shift}"

    def partition(self, x: Tensor) -> Tensor:
        """Cut a map (B, n, C), its positions in a row, into the tokens of its windows (B' N, C)."""
        return self._move(x, into_windows=True).flatten(0, 1)

    def merge(self, tokens: Tensor) -> Tensor:
        """Put the tokens of windows, (B' N, C) or (B', N, C), together again to a map (B, n, C)."""
        return self._move(tokens.reshape(-1, math.prod(self.padded), tokens.shape[-1]), into_windows=False)

    def _move(self, x: Tensor, *, into_windows: bool) -> Tensor:
        if self.in_order:
            return x
        # A trace holds no functions of Python.
        move = _rearrange if torch.jit.is_tracing() else _Rearrange.apply
        return move(x, self.slots, self.positions, math.prod(self.padded), into_windows)

    def groups(self) -> WindowGroups:
        """Group the windows that share a mask.

        Tokens that were not neighbours on the map (a shift brings both ends of an axis together) must not see each
        other. That depends on where a window lies along each axis, at its ends or not, so that a few masks serve all
        windows.
        """
        runs = [self._runs(axis) for axis in range(len(self.grid))]
        ends = [end for group in itertools.product(*runs) for start, stop, _ in group for end in (start, stop)]
        number_of_labels = math.prod(1 + max(max(labels) for _, _, labels in axis) for axis in runs)
        return WindowGroups(self.counts, tuple(ends) if number_of_labels > 1 else (), number_of_labels)

    def labels(self) -> Tensor | None:
        """Label the tokens of each window (M, N): those of one label may see each other. None if all may."""
        axes = []
        for axis in range(len(self.grid)):
            labels = [one for start, stop, one in self._runs(axis) for _ in range(start, stop)]
            axes.append((labels, 1 + max(max(one) for one in labels)))
        if all(number == 1 for _, number in axes):
            return None
        k = len(axes)
        total = torch.zeros((1,) * (2 * k), dtype=torch.uint8)
        for axis, (labels, number) in enumerate(axes):
            shape = [1] * (2 * k)
            shape[axis], shape[k + axis] = self.counts[axis], self.window[axis]
            total = total * number + torch.tensor(labels, dtype=torch.uint8).view(shape)
        return total.reshape(math.prod(self.counts), math.prod(self.window))

    def _runs(self, axis: int) -> list[tuple[int, int, tuple[int, ...]]]:
        """Return runs of windows along an axis whose tokens see each other in the same way: start, stop and labels.

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


class WindowPositionBias(nn.Module):
    """Attention inside windows: each head adds a learned bias for the offset between two tokens, and a shift mask.

    Args:
        num_heads: h.
        layout: how the map is cut.
        table_window: window that the table of biases is made for; None: the layout's.
        position_index: see `position_rows`.

    Attributes:
        backend: what computes it, see `attention_backends`; None: what suits the device.

    Shape:
        query, key, value (B', h, N, d) to (B', h, N, d).
    """

    rows: Tensor
    labels: Tensor | None

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
        self.groups = layout.groups()
        self.backend: str | None = None
        rows = position_rows(layout.window, table_window, position_index)
        self.tokens = rows.shape[0]
        self.register_buffer("rows", rows.flatten(), persistent=False)
        self.register_buffer("labels", layout.labels(), persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # From the transposed table, whose result lies in order, and whose gradient torch adds up fastest.
        bias = self.table.t().index_select(1, self.rows).view(1, -1, self.tokens, self.tokens)
        return attend_in_windows(query, key, value, bias, self.labels, self.groups, self.backend)


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
        tokens, state = self.attend(self.qkv(windows), state)
        return tokens.view(windows.shape), state

    def attend(self, qkv: Tensor, state: State = None) -> tuple[Tensor, Tensor]:
        """Attend with projections (B' N, 3 C) or (B', N, 3 C): queries, keys and values, each head by head.

        Returns:
            Tokens (B' N, C), and the state.
        """
        size = self.proj.in_features // self.num_heads
        qkv = qkv.view(-1, self.position.tokens, 3, self.num_heads, size)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        output, state = recurrent_attention(query, key, value, state, self.position)
        return self.proj(output.transpose(1, 2).reshape(-1, self.proj.in_features)), state


def norms_biases_and_tables(network: nn.Module) -> set[str]:
    """Name the parameters that weight decay serves nothing in: weights of norms, biases, and position tables."""
    tables = {f"{name}.table" for name, module in network.named_modules() if isinstance(module, WindowPositionBias)}
    return tables | {name for name, parameter in network.named_parameters() if parameter.ndim < 2}
