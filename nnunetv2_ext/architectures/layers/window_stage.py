"""The window block, and the stage of window blocks that SwinUNETR, nnFormer and Swin-Unet share.

Shape legend: B batch, C channels, h heads, d = C / h, n grid of k = 2 or 3 sizes (or the number of its positions),
N tokens of a window, B' windows of all samples.

Memory: nothing of size N x N is kept for the backward pass, neither are outputs of norms and activations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.layers.drop_path import DropPath
from nnunetv2_ext.architectures.layers.precision import as_factor
from nnunetv2_ext.architectures.layers.recompute import recompute
from nnunetv2_ext.architectures.layers.window_attention import WindowAttention, WindowLayout
from nnunetv2_ext.architectures.reca import State, run_blocks

__all__ = ["MLPBranch", "WindowBlock", "WindowStage", "describe_window_stages", "window_blocks"]


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
        return recompute(self._contract, recompute(self._expand, x.flatten(0, -2))).view(x.shape)

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
        position_index: see `window_attention.position_rows`.
        mask_padding: see `WindowLayout`.
        mlp_ratio: width of the MLP's hidden layer against C.
        drop_path: rate of stochastic depth on both branches. The state of a dropped branch is handed on all the same.

    Shape:
        map (B, *n, C), or (B, n, C) with its positions in a row, and a state (B', h, N, d) or None, to the same two.
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
        shape, x = x.shape, x.flatten(1, -2)
        # Of the projection, the norm and the copy into windows are recomputed; the linear map needs only its input.
        tokens, state = self.attention.attend(recompute(self._project, x), state)
        x = x + self.drop_path(self.layout.merge(tokens))
        x = x + self.drop_path(self.mlp(x))
        return x if x.shape == shape else x.view(shape), state

    def _project(self, x: Tensor) -> Tensor:
        return self.attention.qkv(self.layout.partition(as_factor(self.norm(x))))


def window_blocks(
    channels: int,
    num_heads: int,
    *,
    shift: Sequence[int],
    drop_path: Sequence[float],
    always_shifted: bool = False,
    **settings: Any,
) -> nn.ModuleList:
    """Build the window blocks of one grid.

    Args:
        channels: C.
        num_heads: h.
        shift: positions per axis by which the windows of shifted blocks are moved.
        drop_path: rate of stochastic depth, for each block.
        always_shifted: shift the windows of every block; otherwise of every second one.
        settings: the other arguments of `WindowBlock`, the same for all.
    """
    return nn.ModuleList(
        WindowBlock(
            channels,
            num_heads,
            shift=shift if always_shifted or number % 2 else None,
            drop_path=rate,
            **settings,
        )
        for number, rate in enumerate(drop_path)
    )


class WindowStage(nn.Module):
    """Window blocks on one grid, every second one shifted.

    Args:
        channels: C.
        num_heads: h.
        grid: n.
        window: w; it fits the grid.
        reca: the blocks are a run of RecA; otherwise their attention is plain.
        checkpointing: recompute the blocks in the backward pass.
        settings: the other arguments of `window_blocks`.

    Shape:
        (B, *n, C) to (B, *n, C).
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        grid: Sequence[int],
        window: Sequence[int],
        reca: bool = False,
        checkpointing: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.grid, self.window, self.num_heads = tuple(grid), tuple(window), num_heads
        self.reca, self.checkpointing = reca, checkpointing
        self.blocks = window_blocks(channels, num_heads, grid=grid, window=window, **settings)

    def forward(self, x: Tensor) -> Tensor:
        # In a row once, and not once per block.
        tokens = run_blocks(self.blocks, x.flatten(1, -2), reca=self.reca, checkpointing=self.checkpointing)
        return tokens.view(x.shape)


def describe_window_stages(stages: Iterable[Any], strides: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Return one row for each stage, for people to read.

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
