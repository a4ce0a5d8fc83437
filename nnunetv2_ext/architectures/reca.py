"""RecA, recurrent attention: the operator, and the run of blocks that hands its state on.

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

Shape legend: B' samples, or windows of all samples, h heads, N tokens that attend to each other, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.layers.recompute import checkpoint

__all__ = ["State", "recurrent_attention", "run_blocks"]

State = Tensor | None


def recurrent_attention(
    query: Tensor, key: Tensor, value: Tensor, state: State = None, attend: Any = F.scaled_dot_product_attention
) -> tuple[Tensor, Tensor]:
    """Attend with the sum of all queries of the run so far.

    Args:
        query: queries of this layer, not scaled.
        key: keys of this layer.
        value: values of this layer.
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
        x, state = checkpoint(block, x, state) if checkpointing else block(x, state)
        if not reca:
            state = None
    return x
