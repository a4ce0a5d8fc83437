"""Dual cross-attention (DCA) on the skip connections of a U-shaped network.

Paper: Ates, Mohan, Celik, "Dual Cross-Attention for Medical Image Segmentation", arXiv 2303.17696. The module follows
the authors' public implementation (MIT licence) where it differs from the paper; docs/networks/dca.md has the
equations, the sources and every deviation.

Idea: the maps of the first n encoder stages are averaged to one grid of tokens. Each stage then attends to all stages,
once over channels (CCA) and once over positions (SCA), and the tokens, brought back to the stage's size, are added to
its map. Outputs have the shapes of the inputs.

Shape legend: B batch, n stages, C_i channels of stage i, C = sum of all C_i, G token grid, P = prod(G) tokens in C
order (last axis fastest), h heads.

Memory: the tokens are few, the maps are large. Of what happens at full resolution (interpolation, sum, norm,
activation) nothing but the input map is kept for the backward pass; the rest is computed again, though running
statistics are updated once. The attentions, a few percent of a network's work, are computed again too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.layers import nd
from nnunetv2_ext.architectures.layers.precision import as_factor
from nnunetv2_ext.architectures.layers.recompute import checkpoint, is_captured, recompute
from nnunetv2_ext.architectures.layers.resize import Interpolation, average_to, interpolate_to

__all__ = [
    "DCA",
    "LAYOUTS",
    "ChannelCrossAttention",
    "DualAttentionBlock",
    "SpatialCrossAttention",
    "choose_token_stage",
]

LAYOUTS = ("cca-sca", "sca-cca", "sum", "concat")
# Tokens of the paper's networks, but for ResUNet++. Channel scores grow with the number of tokens, so that a grid far
# from this one makes channel attention nearly one-hot, or nearly uniform.
PAPER_TOKENS = 784
TOKEN_NORM_EPS = 1e-6


def choose_token_stage(sizes: Sequence[Sequence[int]]) -> int:
    """Choose the stage whose size is the token grid: the one whose positions are nearest to 784 in ratio.

    That stage is the deepest that goes through DCA; deeper skips are smaller than the grid and stay as they are. At
    224 x 224 this is the authors' choice in all their networks.

    Args:
        sizes: positions per axis of each skip, full resolution first, without the bottleneck.

    Returns:
        The stage, counted from 0; of two that are equally near, the deeper one.
    """
    if not sizes:
        raise ValueError("DCA needs at least one skip connection, and this network has none.")
    distances = [abs(math.log(math.prod(size) / PAPER_TOKENS)) for size in sizes]
    return max(stage for stage, distance in enumerate(distances) if math.isclose(distance, min(distances)))


class DepthwiseProjection(nn.Module):
    """Learned scale and shift of each channel: what a convolution of width 1 with a group for each channel computes.

    It is no convolution here, so that nnU-Net's initialiser of convolutions leaves it alone: with a fan-in of 1 that
    would spread the scales more than twice as far, and make the softmax over channels six times as peaked.

    Shape:
        (B, P, channels) to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels).uniform_(-1, 1))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.weight + self.bias


def _project(tokens: Tensor, *rows: Iterable[Any]) -> Tensor:
    """Apply several rows of projections to the same tokens; those of a row lie side by side and fill its channels.

    Shape:
        tokens (B, P, C) to (rows, B, P, C).
    """
    shape = (len(rows), 1, 1, -1)
    weight = torch.cat([projection.weight for row in rows for projection in row]).view(shape)
    return tokens * weight + torch.cat([projection.bias for row in rows for projection in row]).view(shape)


class DepthwiseMerge(nn.Module):
    """Merge two token tensors channel by channel: output channel c sees channel c of both.

    Shape:
        two times (B, P, channels) to (B, P, channels).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(2)
        self.weight = nn.Parameter(torch.empty(channels, 2).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first * self.weight[:, 0] + second * self.weight[:, 1] + self.bias


class ChannelCrossAttention(nn.Module):
    """CCA of one stage: its channels attend to the channels of all stages.

    Per head: A = softmax(Q^T K / sqrt(C)), O = (A V^T)^T; the scale holds all channels C whatever the number of heads.

    Args:
        channels: C_i, divisible by the heads.
        total_channels: C, divisible by the heads.
        num_heads: h; heads are consecutive groups of channels.
        scale: "paper", 1 / sqrt(C), or "tokens", that times min(1, 784 / P).

    Shape:
        tokens (B, P, C_i) and context (B, P, C) to (B, P, C_i).
    """

    def __init__(self, *, channels: int, total_channels: int, num_heads: int, scale: str = "paper") -> None:
        super().__init__()
        self.num_heads = num_heads
        self.total_channels = total_channels
        self.scale = scale
        self.query = DepthwiseProjection(channels)
        self.key = DepthwiseProjection(total_channels)
        self.value = DepthwiseProjection(total_channels)
        self.out = DepthwiseProjection(channels)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        query = self.query(tokens) * self.scale_for(tokens.shape[1])
        return self.out(self.attend(query, self.key(context), self.value(context)))

    def scale_for(self, n_tokens: int) -> float:
        """Return the factor of the queries, the same for all stages."""
        scale = 1 / math.sqrt(self.total_channels)
        return scale * min(1.0, PAPER_TOKENS / n_tokens) if self.scale == "tokens" else scale

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend with what is projected and scaled: (B, P, C_i) and two times (B, P, C) to (B, P, C_i)."""
        batch = query.shape[0]
        query, key, value = (self._split(x) for x in (query, key, value))  # (B h, P, C_i / h or C / h)
        # Scores are sums over all tokens, and reach hundreds: there half precision rounds to whole numbers and changes
        # the softmax, and beyond 14,000 tokens unscaled sums leave fp16's range.
        with torch.autocast(device_type=query.device.type, enabled=False):
            precise = torch.promote_types(query.dtype, torch.float32)
            scores = torch.bmm(query.to(precise).transpose(1, 2), key.to(precise))
            attention = scores.softmax(dim=-1)  # (B h, C_i / h, C / h)
        mixed = torch.bmm(value, attention.to(value.dtype).transpose(1, 2))  # (B h, P, C_i / h)
        if self.num_heads == 1:
            return mixed
        return mixed.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)

    def _split(self, tokens: Tensor) -> Tensor:
        if self.num_heads == 1:
            return tokens
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2).flatten(0, 1)


class SpatialCrossAttention(nn.Module):
    """SCA of one stage: positions attend to positions, by the channels of all stages.

    Per head: A = softmax(Q K^T / sqrt(C / h)), O = A V, with Q and K from all stages and V from this one.

    Args:
        channels: C_i, divisible by the heads.
        total_channels: C, divisible by the heads.
        num_heads: h; heads are consecutive groups of channels.

    Shape:
        context (B, P, C) and tokens (B, P, C_i) to (B, P, C_i).
    """

    def __init__(self, *, channels: int, total_channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = DepthwiseProjection(total_channels)
        self.key = DepthwiseProjection(total_channels)
        self.value = DepthwiseProjection(channels)
        self.out = DepthwiseProjection(channels)

    def forward(self, context: Tensor, tokens: Tensor) -> Tensor:
        query, key, value = self.query(context)[None], self.key(context)[None], self.value(tokens)
        return self.out(_attend_across_positions(query, key, [value], self.num_heads)[0])


def _attend_across_positions(query: Tensor, key: Tensor, values: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    """Attend in all stages at once.

    Shape:
        query and key (stages, B, P, C) and for each stage a value (B, P, C_i) to the shapes of the values.
    """
    stages = len(values)
    query, key = (x.flatten(0, 1).unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (query, key))
    # Fused kernels, which never hold the (P, P) attention, want values as wide as the keys: zeros are added.
    size = query.shape[-1]
    value = torch.cat(
        [F.pad(x.unflatten(2, (num_heads, -1)), (0, size - x.shape[2] // num_heads)) for x in values]
    ).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)  # (stages B, P, h, C / h)
    return [
        mine[..., : own.shape[2] // num_heads].flatten(2) for mine, own in zip(mixed.chunk(stages), values, strict=True)
    ]


class DualAttentionBlock(nn.Module):
    """One block: CCA and SCA of all stages, with residuals.

    Every attention reads tokens that its own layer norm has normalised, and all stages of one attention read the same
    tokens: their updates do not see each other. T is the list of all stages' tokens, F merges channel by channel:

        cca-sca:  T' = T + CCA(T),   T' + SCA(T')
        sca-cca:  T' = T + SCA(T),   T' + CCA(T')
        sum:      T + CCA(T) + SCA(T)
        concat:   T + F(CCA(T), SCA(T))

    Args:
        channels: C_i of each stage.
        channel_heads: heads of CCA per stage.
        spatial_heads: heads of SCA per stage.
        layout: how the two are put together.
        channel_attention: build CCA.
        spatial_attention: build SCA.
        channel_scale: see `ChannelCrossAttention`.

    Shape:
        n tensors (B, P, C_i) to n of the same shapes.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        channel_heads: Sequence[int],
        spatial_heads: Sequence[int],
        layout: str = "cca-sca",
        channel_attention: bool = True,
        spatial_attention: bool = True,
        channel_scale: str = "paper",
    ) -> None:
        super().__init__()
        self.layout = layout
        total = sum(channels)
        self.channel_norms = nn.ModuleList()
        self.channel_attentions = nn.ModuleList()
        self.spatial_norms = nn.ModuleList()
        self.spatial_attentions = nn.ModuleList()
        if channel_attention:
            for width, heads in zip(channels, channel_heads, strict=True):
                self.channel_norms.append(nn.LayerNorm(width, eps=TOKEN_NORM_EPS))
                self.channel_attentions.append(
                    ChannelCrossAttention(channels=width, total_channels=total, num_heads=heads, scale=channel_scale)
                )
        if spatial_attention:
            for width, heads in zip(channels, spatial_heads, strict=True):
                self.spatial_norms.append(nn.LayerNorm(width, eps=TOKEN_NORM_EPS))
                self.spatial_attentions.append(
                    SpatialCrossAttention(channels=width, total_channels=total, num_heads=heads)
                )
        self.merges = nn.ModuleList(DepthwiseMerge(width) for width in channels if layout == "concat")

        self.widths = tuple(channels)

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        return list(self.update(torch.cat(list(tokens), dim=2)).split(self.widths, dim=2))

    def update(self, joined: Tensor) -> Tensor:
        """Update the stages side by side, (B, P, C): what concerns each channel alone is done once for all of them."""
        updates = self._updates()
        if self.merges:
            merges: list[Any] = list(self.merges)
            weight = torch.cat([merge.weight for merge in merges])
            first, second = (recompute(update, joined) for update in updates)
            joined = joined + first * weight[:, 0] + second * weight[:, 1] + torch.cat([merge.bias for merge in merges])
        elif self.layout == "sum":
            joined = joined + sum(recompute(update, joined) for update in updates)
        else:
            for update in reversed(updates) if self.layout == "sca-cca" else updates:
                joined = joined + recompute(update, joined)
        return joined

    def _updates(self) -> list[Callable[[Tensor], Tensor]]:
        updates: list[Callable[[Tensor], Tensor]] = []
        if self.channel_attentions:
            updates.append(self._across_channels)
        if self.spatial_attentions:
            updates.append(self._across_positions)
        return updates

    def _across_channels(self, tokens: Tensor) -> Tensor:
        stages: list[Any] = list(self.channel_attentions)
        query, *context = _project(
            self._normalise(self.channel_norms, tokens),
            [stage.query for stage in stages],
            *([stage.key] for stage in stages),
            *([stage.value] for stage in stages),
        ).unbind()
        query = query * stages[0].scale_for(tokens.shape[1])
        keys, values = context[: len(stages)], context[len(stages) :]
        mixed = [
            stage.attend(*inputs)
            for stage, *inputs in zip(stages, query.split(self.widths, dim=2), keys, values, strict=True)
        ]
        return _project(torch.cat(mixed, dim=2), [stage.out for stage in stages]).squeeze(0)

    def _across_positions(self, tokens: Tensor) -> Tensor:
        stages: list[Any] = list(self.spatial_attentions)
        projected = _project(
            self._normalise(self.spatial_norms, tokens),
            *([stage.query] for stage in stages),
            *([stage.key] for stage in stages),
            [stage.value for stage in stages],
        )
        query, key, value = projected.split((len(stages), len(stages), 1))
        values = value.squeeze(0).split(self.widths, dim=2)
        mixed: dict[int, Tensor] = {}
        for heads in {stage.num_heads for stage in stages}:
            # Stages of as many heads attend at once.
            mine = [number for number, stage in enumerate(stages) if stage.num_heads == heads]
            same = (query, key) if len(mine) == len(stages) else (query[mine], key[mine])
            attended = _attend_across_positions(*same, [values[number] for number in mine], heads)
            mixed.update(zip(mine, attended, strict=True))
        together = torch.cat([mixed[number] for number in range(len(stages))], dim=2)
        return _project(together, [stage.out for stage in stages]).squeeze(0)

    def _normalise(self, norms: nn.ModuleList, tokens: Tensor) -> Tensor:
        return torch.cat([norm(x) for norm, x in zip(norms, tokens.split(self.widths, dim=2), strict=True)], dim=2)


class MapUpdate(nn.Module):
    """From the tokens of a stage back to its map: act(norm(E + up(mix(tokens)))).

    The 1-wide convolution `mix` comes before the interpolation; in exact arithmetic their order is free, as
    interpolation weights sum to one, and on the grid it costs a fraction.

    Args:
        channels: C_i.
        spatial_dims: 2 or 3.
        norm: the output's norm.
        activation: the output's activation.
        interpolation: matrices from the grid to the map's size, where both are known.

    Shape:
        map E (B, C_i, *size) and tokens (B, P, C_i) to (B, C_i, *size).
    """

    def __init__(
        self,
        channels: int,
        spatial_dims: int,
        norm: nn.Module,
        activation: nn.Module,
        interpolation: Interpolation | None = None,
    ) -> None:
        super().__init__()
        self.interpolation = interpolation
        self.mix = nd.conv(spatial_dims)(channels, channels, 1)
        self.norm = norm
        self.activation = activation

    def forward(self, feature: Tensor, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        coarse = self.mix(tokens.transpose(1, 2).unflatten(2, tuple(grid)))
        norm: Any = self.norm
        kind = type(norm)
        if not (norm.training and getattr(norm, "track_running_stats", False)):
            return recompute(self._update, feature, coarse)
        if kind is not nd.batch_norm(feature.ndim - 2) or norm.momentum is None:
            # A norm with a state of its own kind, as distributed training may put here, cannot be applied twice.
            return self._update(feature, coarse)
        output, mean, variance = recompute(self._update_with_statistics, feature, coarse)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance, norm.momentum)
        norm.num_batches_tracked.add_(1)
        return output

    def _add_interpolated(self, feature: Tensor, coarse: Tensor) -> Tensor:
        known, sizes = self.interpolation, (tuple(coarse.shape[2:]), tuple(feature.shape[2:]))
        if known is not None and (known.grid, known.size) == sizes:
            return known(coarse, plus=feature)
        return interpolate_to(coarse, feature.shape[2:], plus=feature)

    def _update(self, feature: Tensor, coarse: Tensor) -> Tensor:
        x = self._add_interpolated(feature, coarse)
        norm: Any = self.norm
        kind = type(norm)
        if kind is not nd.instance_norm(x.ndim - 2) or norm.track_running_stats:
            return self.activation(norm(x))
        if is_captured():
            # The shortest graph: layer norm over the positions, and an affine map of each channel.
            y = x.to(torch.promote_types(x.dtype, torch.float32))
            y = F.layer_norm(y, y.shape[2:], eps=norm.eps)
            if norm.affine:
                per_channel = (-1,) + (1,) * (x.ndim - 2)
                y = y * norm.weight.view(per_channel) + norm.bias.view(per_channel)
            return self.activation(y).to(x.dtype)
        # Instance norm is batch norm of one sample with B C channels. torch's own gives a view of that, and in-place
        # activation of a view costs two more copies of the map in the backward pass.
        batch, shape = x.shape[0], x.shape
        weight, bias = (None if table is None else table.repeat(batch) for table in (norm.weight, norm.bias))
        x = F.batch_norm(x.reshape(1, -1, *shape[2:]), None, None, weight, bias, training=True, eps=norm.eps)
        return self.activation(x).reshape(shape)

    def _update_with_statistics(self, feature: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the batch's statistics too, and leave the norm's state: a momentum of 1 hands them out whole."""
        norm: Any = self.norm
        mean, variance = torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_var)
        x = self._add_interpolated(feature, coarse)
        x = F.batch_norm(x, mean, variance, norm.weight, norm.bias, training=True, momentum=1.0, eps=norm.eps)
        return self.activation(x), mean, variance


def _fitting_heads(name: str, wanted: int | Sequence[int], channels: Sequence[int]) -> tuple[int, ...]:
    """Return the heads per stage: one number is lowered where it does not divide, one for each stage must divide."""
    total = sum(channels)
    if isinstance(wanted, int):
        if wanted < 1:
            raise ValueError(f"{name} is {wanted}; attention needs at least one head.")
        return tuple(
            next(heads for heads in range(wanted, 0, -1) if width % heads == 0 and total % heads == 0)
            for width in channels
        )
    heads = tuple(int(number) for number in wanted)
    if len(heads) != len(channels):
        raise ValueError(f"{name} {heads} has {len(heads)} entries for {len(channels)} stages: give one per stage.")
    for number, width in zip(heads, channels, strict=True):
        if number < 1 or width % number or total % number:
            raise ValueError(
                f"{name} {heads}: {number} heads must divide the stage's {width} channels and all {total} channels; "
                "give one number to have it lowered where it does not fit."
            )
    return heads


class DCA(nn.Module):
    """Dual cross-attention over the maps of n encoder stages.

    Args:
        channels: C_i of each stage, full resolution first.
        spatial_dims: 2 or 3.
        token_grid: G; None: the size of the last map, as it comes in.
        map_sizes: positions per axis of each map, where they are known: the grid is checked against them, and
            convolutional patch embedding needs them.
        channel_heads: heads of CCA, in every stage or per stage. One number for all is lowered, stage by stage, to the
            next that divides C_i and C.
        spatial_heads: the same of SCA.
        n_blocks: N, attention blocks.
        layout: order of the two attentions, see `DualAttentionBlock`.
        channel_attention: build CCA.
        spatial_attention: build SCA.
        patch_embedding: "pool", averages over windows, or "conv", a convolution with stride = kernel = window.
        channel_scale: "paper", or "tokens" for grids of far more than 784 tokens, see `ChannelCrossAttention`.
        norm: class of the output's norm, called with the channels; None: batch norm.
        norm_kwargs: its further arguments.
        activation: class of the output's activation.
        activation_kwargs: its arguments.
        checkpointing: recompute the attention blocks in the backward pass too.

    Raises:
        ValueError: for settings that do not fit together; one sentence says how.

    Shape:
        n maps (B, C_i, *size_i) to n maps of the same shapes.

    Example:
        >>> dca = DCA(channels=(8, 16), spatial_dims=2)
        >>> fine, coarse = dca([torch.randn(1, 8, 28, 20), torch.randn(1, 16, 14, 10)])
        >>> fine.shape
        torch.Size([1, 8, 28, 20])
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        spatial_dims: int,
        token_grid: Sequence[int] | None = None,
        map_sizes: Sequence[Sequence[int]] | None = None,
        channel_heads: int | Sequence[int] = 1,
        spatial_heads: int | Sequence[int] = 4,
        n_blocks: int = 1,
        layout: str = "cca-sca",
        channel_attention: bool = True,
        spatial_attention: bool = True,
        patch_embedding: str = "pool",
        channel_scale: str = "paper",
        norm: type[nn.Module] | None = None,
        norm_kwargs: Mapping[str, Any] | None = None,
        activation: type[nn.Module] = nn.ReLU,
        activation_kwargs: Mapping[str, Any] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        channels = tuple(int(width) for width in channels)
        if not channels:
            raise ValueError("DCA needs the channels of at least one stage.")
        for name, value, known in (
            ("layout", layout, LAYOUTS),
            ("patch_embedding", patch_embedding, ("pool", "conv")),
            ("channel_scale", channel_scale, ("paper", "tokens")),
        ):
            if value not in known:
                raise ValueError(f"DCA has no {name} {value!r}; there are {', '.join(known)}.")
        if n_blocks < 1:
            raise ValueError(f"n_blocks is {n_blocks}; DCA needs at least one block.")
        if not (channel_attention or spatial_attention):
            raise ValueError("DCA needs channel attention, spatial attention, or both.")
        if layout == "concat" and not (channel_attention and spatial_attention):
            raise ValueError("The layout concat merges channel and spatial attention: leave both on.")
        self.channels = channels
        self.token_grid = None if token_grid is None else tuple(int(size) for size in token_grid)
        self.checkpointing = checkpointing
        windows = self._windows(map_sizes, whole=patch_embedding == "conv")

        conv = nd.conv(spatial_dims)
        self.patch_convs = nn.ModuleList(
            conv(width, width, window, stride=window)
            for width, window in zip(channels, windows, strict=True)
            if patch_embedding == "conv"
        )
        self.token_projections = nn.ModuleList(DepthwiseProjection(width) for width in channels)
        self.blocks = nn.ModuleList(
            DualAttentionBlock(
                channels=channels,
                channel_heads=_fitting_heads("channel_heads", channel_heads, channels),
                spatial_heads=_fitting_heads("spatial_heads", spatial_heads, channels),
                layout=layout,
                channel_attention=channel_attention,
                spatial_attention=spatial_attention,
                channel_scale=channel_scale,
            )
            for _ in range(n_blocks)
        )
        norm = norm or nd.batch_norm(spatial_dims)
        activation_kwargs = (
            {"inplace": True} if activation_kwargs is None and activation is nn.ReLU else activation_kwargs
        )
        interpolations = (
            [None] * len(channels)
            if map_sizes is None
            else [Interpolation(self.token_grid or map_sizes[-1], size) for size in map_sizes]
        )
        self.updates = nn.ModuleList(
            MapUpdate(
                width,
                spatial_dims,
                norm(width, **norm_kwargs or {}),
                activation(**activation_kwargs or {}),
                interpolation,
            )
            for width, interpolation in zip(channels, interpolations, strict=True)
        )

    def _windows(self, map_sizes: Sequence[Sequence[int]] | None, *, whole: bool) -> list[tuple[int, ...] | None]:
        """Check the token grid against the maps, and give each map's window as far as it is known."""
        if map_sizes is None:
            if whole:
                raise ValueError(
                    "Convolutional patch embedding needs map_sizes: its kernels are map size / token grid."
                )
            return [None] * len(self.channels)
        if len(map_sizes) != len(self.channels):
            raise ValueError(
                f"map_sizes has {len(map_sizes)} entries for {len(self.channels)} stages: give one per stage."
            )
        grid = self.token_grid or tuple(map_sizes[-1])
        windows: list[tuple[int, ...] | None] = []
        for stage, size in enumerate(map_sizes):
            size = tuple(size)
            if len(size) != len(grid) or any(have < want for have, want in zip(size, grid, strict=True)):
                raise ValueError(
                    f"Token grid {grid} does not fit into the map of stage {stage}, of size {size}: choose a smaller "
                    "grid, or fewer stages."
                )
            if whole and any(have % want for have, want in zip(size, grid, strict=True)):
                raise ValueError(
                    f"Convolutional patch embedding needs maps of a whole multiple of the token grid {grid}, and stage "
                    f"{stage} has size {size}: use the patch embedding pool."
                )
            windows.append(tuple(have // want for have, want in zip(size, grid, strict=True)))
        return windows

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        grid = self.token_grid or tuple(maps[-1].shape[2:])
        patches = [
            self.patch_convs[stage](feature) if self.patch_convs else average_to(feature, grid)
            for stage, feature in enumerate(maps)
        ]
        joined = torch.cat([x.flatten(2) for x in patches], dim=1).transpose(1, 2)  # (B, P, C)
        joined = _project(joined, self.token_projections).squeeze(0)
        joined = checkpoint(self._attend, joined) if self.checkpointing else self._attend(joined)
        tokens = as_factor(joined).split(self.channels, dim=2)
        return [update(feature, x, grid) for update, feature, x in zip(self.updates, maps, tokens, strict=True)]

    def _attend(self, joined: Tensor) -> Tensor:
        block: Any
        for block in self.blocks:
            joined = block.update(joined)
        return joined
