"""Windows: how a map is cut into them, the bias for positions inside them, and recurrent attention in them.

Shape legend: B batch, C channels, h heads, d = C / h, k = 2 or 3 axes, n grid of k sizes, w window of k sizes,
N = prod(w) tokens of a window (last axis fastest), M windows that cover the grid (last axis fastest), B' = B M.
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


class _TakeRows(torch.autograd.Function):
    """Rows of a tensor, each at most once, so that the gradient is a copy and needs no sum: (B, m, C) to (B, n, C)."""

    @staticmethod
    def forward(x: Tensor, rows: Tensor) -> Tensor:
        return x.index_select(1, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, rows = inputs
        ctx.save_for_backward(rows)
        ctx.number = x.shape[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _put_rows(grad, ctx.saved_tensors[0], ctx.number), None


def _put_rows(x: Tensor, rows: Tensor, number: int) -> Tensor:
    """Put the rows of a tensor into a larger one, zero elsewhere: (B, n, C) to (B, number, C)."""
    shape = (x.shape[0], number, x.shape[2])
    larger = x.new_empty(shape) if number == x.shape[1] else x.new_zeros(shape)
    return larger.index_copy_(1, rows, x)


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
        # Where each position of the map is, among the tokens of all windows.
        self.register_buffer("slots", slots.flatten(), persistent=False)

    def extra_repr(self) -> str:
        return f"grid={self.grid}, window={self.window}, shift={self.shift}"

    def partition(self, x: Tensor) -> Tensor:
        """Cut a map (B, *n, C) into windows (B', N, C)."""
        tokens = _put_rows(x.flatten(1, -2), self.slots, math.prod(self.padded))
        return tokens.reshape(-1, math.prod(self.window), x.shape[-1])

    def merge(self, windows: Tensor) -> Tensor:
        """Put windows (B', N, C) together again to a map (B, *n, C)."""
        tokens = windows.reshape(-1, math.prod(self.padded), windows.shape[-1])
        # A trace holds no functions of Python.
        traced = torch.jit.is_tracing()
        x = tokens.index_select(1, self.slots) if traced else _TakeRows.apply(tokens, self.slots)
        return x.unflatten(1, self.grid)

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
        self.register_buffer("index", position_rows(layout.window, table_window, position_index), persistent=False)
        self.register_buffer("labels", layout.labels(), persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # From the transposed table, whose result lies in order, and whose gradient torch adds up fastest.
        bias = self.table.t().index_select(1, self.index.flatten()).unflatten(1, self.index.shape)  # (h, N, N)
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
        return self.attend(self.qkv(windows), state)

    def attend(self, qkv: Tensor, state: State = None) -> tuple[Tensor, Tensor]:
        """Attend with projections (B', N, 3 C): queries, keys and values, each head by head."""
        query, key, value = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        output, state = recurrent_attention(query, key, value, state, self.position)
        return self.proj(output.transpose(1, 2).flatten(2)), state


def norms_biases_and_tables(network: nn.Module) -> set[str]:
    """Name the parameters that weight decay serves nothing in: weights of norms, biases, and position tables."""
    tables = {f"{name}.table" for name, module in network.named_modules() if isinstance(module, WindowPositionBias)}
    return tables | {name for name, parameter in network.named_parameters() if parameter.ndim < 2}
