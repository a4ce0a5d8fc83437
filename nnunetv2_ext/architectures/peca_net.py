"""PECA-Net: paired external attention and paired convolutional attention in a four-stage U-shaped network.

Paper: Chen, Xie, Lu, "PECA-Net: A Hybrid Framework Integrating Paired External and Convolutional Attention for 3D
Medical Image Segmentation". The network follows the authors' public implementation where it says more than the paper;
docs/networks/peca_net.md has the equations, the sources and every deviation.

Idea: each stage is a strided convolution and a chain of parallel interaction modules (PIM). A PIM attends, with queries
from the tokens and with keys and values from learned memory units that all samples and heads share (external
attention), across channels and across positions at once, beside two convolutional gates, and then mixes the result by a
residual convolution block. Decoder stages add the encoder's feature of the same resolution.

Shape legend: B batch, C channels of a stage, h heads, d = C / h, N tokens (positions of the grid in C order, last axis
fastest), P memory units of the spatial branch.

Memory: what is large and cheap is recomputed in the backward pass: the attention's maps of P x N per head, and norms
and activations at full resolution. `checkpointing=True` recomputes the attention layers and the two full-resolution
blocks whole. Nothing with batch norm is recomputed: its running statistics would be updated twice a step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.geometry import Geometry, stage_grids
from nnunetv2_ext.architectures.layers import nd
from nnunetv2_ext.architectures.layers.dropout import apply_rate, draw_mask, drop
from nnunetv2_ext.architectures.layers.precision import as_factor
from nnunetv2_ext.architectures.layers.rates import check_rate
from nnunetv2_ext.architectures.layers.recompute import checkpoint, is_captured, recompute
from nnunetv2_ext.architectures.network import SegmentationNetwork

__all__ = ["PRESETS", "PECANet", "PairedAttention", "ParallelInteraction"]

MAX_STAGES = 4
MAX_HEADS = 2
UNIT_LENGTH_EPS = 1e-12


class PairedAttention(nn.Module):
    """Paired external attention and paired convolutional attention over the tokens of one grid.

    Four quarters of the output channels, in this order: external attention across positions, convolutional gate across
    positions, external attention across channels, convolutional gate across channels. Queries Q = tokens Wq; the key
    memory is one d x N table for both external branches; both are scaled to unit length along the tokens.

    Args:
        tokens: N, the positions of the grid.
        channels: C, divisible by 8 and by the number of heads.
        num_heads: h.
        proj_size: P, memory units of the branch across positions.
        dropout: rate on both attention maps, in training.
        aligned_heads: put each head's result back at its own channels, instead of the authors' order, which reads the
            (d, h, N) values of the branch across positions as (N, C).

    Shape:
        tokens (B, N, C) to (B, N, C), float32.
    """

    no_bias: Tensor

    def __init__(
        self,
        *,
        tokens: int,
        channels: int,
        num_heads: int,
        proj_size: int,
        dropout: float,
        aligned_heads: bool = False,
    ) -> None:
        super().__init__()
        if channels % num_heads or channels % 8:
            raise ValueError(f"{channels} channels must be divisible by 8 and by the number of heads, {num_heads}.")
        head_size, quarter = channels // num_heads, channels // 4
        self.num_heads = num_heads
        self.aligned_heads = aligned_heads

        self.key_memory = nn.Parameter(0.01 * torch.randn(head_size, tokens))
        self.channel_memory = nn.Parameter(0.01 * torch.randn(head_size, tokens))
        self.spatial_memory = nn.Parameter(0.01 * torch.randn(head_size, proj_size))
        self.channel_temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.spatial_temperature = nn.Parameter(torch.ones(num_heads, 1, 1))

        self.query = nn.Linear(channels, channels, bias=False)
        self.register_buffer("no_bias", torch.zeros(channels), persistent=False)
        self.key_projection = nn.Linear(tokens, proj_size)
        self.spatial_out = nn.Linear(channels, quarter)
        self.channel_out = nn.Linear(channels, quarter)
        self.spatial_gate_in = nn.Linear(channels, quarter)
        self.channel_gate_in = nn.Linear(channels, quarter)
        self.dropout = nn.Dropout(dropout)

        self.spatial_gate = nn.Linear(quarter, 1, bias=False)
        self.channel_squeeze = nn.Linear(quarter, quarter // 2, bias=False)
        self.channel_excite = nn.Linear(quarter // 2, quarter, bias=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)
        # Not in the state dict: zero also after `to_empty`.
        self.no_bias.zero_()
        return moved

    def initialise_as_encoder(self) -> None:
        """Draw the linear maps as the authors' encoder does; their decoder keeps torch's own initialisation."""
        for layer in (
            self.query,
            self.key_projection,
            self.spatial_out,
            self.channel_out,
            self.spatial_gate_in,
            self.channel_gate_in,
        ):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend with all maps as (channels, B N): no product needs a copy of its factors, or one factor per sample."""
        batch, n_tokens, channels = tokens.shape
        quarter = channels // 4
        linear = (self.query, self.spatial_gate_in, self.channel_gate_in)
        weight = torch.cat([_precise(layer.weight) for layer in linear])
        bias = torch.cat([_precise(table) for table in (self.no_bias, *(layer.bias for layer in linear[1:]))])
        maps = torch.addmm(bias[:, None], weight, tokens.flatten(0, 1).t())  # (C + C / 4 + C / 4, B N)
        query, spatial, channel = maps.unflatten(1, (batch, n_tokens)).split((channels, quarter, quarter))
        # The rows of Q and of the key memory are scaled to unit length at once.
        rows = torch.cat((query.flatten(0, 1), _precise(self.key_memory)))
        query, keys = _scale_to_unit_length(rows).split((channels * batch, len(self.key_memory)))
        query = query.view(self.num_heads, -1, batch, n_tokens)
        attended_positions, attended_channels = self._attend_positions(query), self._attend_channels(query, keys)
        # Both gates at once: the first half times the sigmoid of the second.
        gates = (self._weigh_positions(spatial).expand_as(spatial), self._weigh_channels(channel).expand_as(channel))
        gated_positions, gated_channels = F.glu(torch.cat((spatial, channel, *gates)), dim=0).split(quarter)
        mixed = torch.cat((attended_positions, gated_positions, attended_channels, gated_channels))
        return mixed.permute(1, 2, 0)

    def _attend_positions(self, query: Tensor) -> Tensor:
        """Attend over P memory units: softmax over the tokens, then each token's weights divided by their sum."""
        n_heads, head_size, batch, n_tokens = query.shape
        dropout = self.dropout
        # From the key memory as it is, not at unit length.
        keys = _map_rows(self.key_projection, _precise(self.key_memory).t())  # (P, d)
        keys = (_precise(self.spatial_temperature).flatten(1) @ keys.view(1, -1)).view(n_heads, -1, head_size)
        memory = apply_rate(_precise(self.spatial_memory), dropout)
        mask = draw_mask(dropout, (n_heads, keys.shape[1], batch, n_tokens), query.device)
        values = recompute(_attend_over_units, query, keys, memory, mask)  # (h, d, B, N)
        if self.aligned_heads:
            values = values.reshape(n_heads * head_size, batch * n_tokens)
        else:
            # The authors' order: the (d, h, N) values of a sample are read as (N, C).
            values = values.permute(2, 1, 0, 3).reshape(batch * n_tokens, n_heads * head_size).t()
        return _map_rows(self.spatial_out, values).view(-1, batch, n_tokens)  # (C / 4, B, N)

    def _attend_channels(self, query: Tensor, keys: Tensor) -> Tensor:
        """Attend over d memory channels: softmax over the query channels, then division by the sum over the memory."""
        n_heads, head_size, batch, n_tokens = query.shape
        scores = (query.flatten(0, 2) @ keys.t()).view(n_heads, 1, -1)
        scores = torch.bmm(_precise(self.channel_temperature), scores).view(n_heads, head_size, batch, head_size)
        weights = drop(_normalise_twice(scores, first=1, second=3), self.dropout)
        values = (weights.flatten(0, 2) @ _precise(self.channel_memory)).view(n_heads * head_size, -1)
        return _map_rows(self.channel_out, values).view(-1, batch, n_tokens)  # (C / 4, B, N)

    def _weigh_positions(self, features: Tensor) -> Tensor:
        return (_precise(self.spatial_gate.weight) @ features.flatten(1)).view(1, *features.shape[1:])  # (1, B, N)

    def _weigh_channels(self, features: Tensor) -> Tensor:
        # The authors put nothing between squeeze and excitation.
        squeezed = _precise(self.channel_squeeze.weight) @ features.mean(dim=2)  # (C / 8, B)
        return (_precise(self.channel_excite.weight) @ squeezed)[..., None]  # (C / 4, B, 1)


def _precise(table: Tensor) -> Tensor:
    """Return a parameter of a network in half precision as float32, and any other as it is."""
    return table.float() if table.dtype in (torch.float16, torch.bfloat16) else table


def _map_rows(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to features that are rows: (in, positions) to (out, positions)."""
    return torch.addmm(_precise(layer.bias)[:, None], _precise(layer.weight), x)


class _UnitLength(torch.autograd.Function):
    """`F.normalize` of rows with a backward pass of three operators, where autograd takes ten."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(UNIT_LENGTH_EPS)
        unit = x / length
        ctx.save_for_backward(unit, length)
        return unit

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        unit, length = ctx.saved_tensors
        along = torch.bmm(gradient[:, None], unit[..., None]).squeeze(-1)
        return torch.addcmul(gradient, along, unit, value=-1) / length


def _scale_to_unit_length(x: Tensor) -> Tensor:
    """Scale rows to unit length; one of no length stays at zero."""
    return F.normalize(x, dim=-1, eps=UNIT_LENGTH_EPS) if is_captured() else _UnitLength.apply(x)


def _normalise_twice(scores: Tensor, *, first: int, second: int) -> Tensor:
    """Apply a softmax over one axis, then divide by the sum over another.

    In one formula that is a softmax over the second axis of the logarithms of the first. The authors add 1e-9 to the
    sum, which is near P / N; all values are smaller by that part then, about one in two million.
    """
    return torch.softmax(torch.log_softmax(scores, dim=first), dim=second)


def _attend_over_units(query: Tensor, keys: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the values of the attention across positions; what is recomputed, for its maps of P x N per head.

    Shape:
        query (h, d, B, N), keys (h, P, d), memory (d, P) and mask (h, P, B, N) to (h, d, B, N).
    """
    n_heads, _, batch, n_tokens = query.shape
    scores = torch.bmm(keys, query.flatten(2)).unflatten(2, (batch, n_tokens))
    weights = _normalise_twice(scores, first=3, second=1)
    if mask is not None:
        weights = weights * mask
    return torch.bmm(memory.expand(n_heads, -1, -1), weights.flatten(2)).unflatten(2, (batch, n_tokens))


class ResidualConvBlock(nn.Module):
    """Two normalised 3-wide convolutions beside the identity, or beside a 1-wide convolution where widths differ.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        spatial_dims: 2 or 3.
        norm: class of the norm layers. Where they keep no statistics, norms and activations are recomputed in the
            backward pass.

    Shape:
        (B, in_channels, *grid) to (B, out_channels, *grid).
    """

    def __init__(self, in_channels: int, out_channels: int, *, spatial_dims: int, norm: type[nn.Module]) -> None:
        super().__init__()
        conv = nd.conv(spatial_dims)
        self.conv1 = conv(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = norm(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = norm(out_channels)
        self.projects = in_channels != out_channels
        if self.projects:
            self.conv3 = conv(in_channels, out_channels, 1, bias=False)
            self.norm3 = norm(out_channels)

        keeps_statistics = getattr(self.norm1, "track_running_stats", False)
        self.run = _apply if keeps_statistics else recompute
        # Without statistics the norm gives a view, and in-place activation of a view costs two copies of the map in the
        # backward pass.
        self.in_place = bool(keeps_statistics)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.join, self.convolve(x), x)

    def convolve(self, x: Tensor) -> Tensor:
        """Apply both convolutions, and what is between them."""
        return self.run(self._second, self.conv1(x))

    def _second(self, x: Tensor) -> Tensor:
        return self.conv2(F.leaky_relu(self.norm1(x), 0.01, inplace=self.in_place))

    def join(self, convolved: Tensor, x: Tensor) -> Tensor:
        """Add the block's input to what `convolve` made of it."""
        residual = self.norm3(self.conv3(x)) if self.projects else x
        return F.leaky_relu(self.norm2(convolved) + residual, 0.01, inplace=True)


def _apply(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return function(*inputs)


class ParallelInteraction(nn.Module):
    """Parallel interaction module (PIM): attention on position-coded tokens, then convolutions, both residual.

    T = tokens(X) + p;  A = T + g * PairedAttention(LayerNorm(T));  Y = grid(A);  output = Y + G(drop(R(Y))), where p
    is a learned table of positions, g a learned scale per channel, R residual convolution blocks with batch norm, and
    G a 1-wide convolution.

    Args:
        grid: positions per axis; the module accepts no other.
        channels: C.
        num_heads: heads of the attention.
        proj_size: memory units of the attention across positions.
        conv_blocks: residual convolution blocks in R.
        attention_dropout: rate on the attention maps.
        conv_dropout: rate at which whole channels are zeroed before G.
        aligned_heads: see `PairedAttention`.
        checkpointing: recompute all of the attention.

    Shape:
        (B, C, *grid) to (B, C, *grid).
    """

    def __init__(
        self,
        *,
        grid: Sequence[int],
        channels: int,
        num_heads: int,
        proj_size: int,
        conv_blocks: int,
        attention_dropout: float,
        conv_dropout: float,
        aligned_heads: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        spatial_dims, tokens = len(grid), math.prod(grid)
        self.position = nn.Parameter(torch.zeros(1, tokens, channels))
        self.norm = nn.LayerNorm(channels)
        self.attention = PairedAttention(
            tokens=tokens,
            channels=channels,
            num_heads=num_heads,
            proj_size=proj_size,
            dropout=attention_dropout,
            aligned_heads=aligned_heads,
        )
        self.layer_scale = nn.Parameter(torch.full((channels,), 1e-6))
        self.convs = nn.Sequential(
            *(
                ResidualConvBlock(channels, channels, spatial_dims=spatial_dims, norm=nd.batch_norm(spatial_dims))
                for _ in range(conv_blocks)
            )
        )
        self.dropout = nd.channel_dropout(spatial_dims)(conv_dropout)
        self.mix = nd.conv(spatial_dims)(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self._attend, x) if self.checkpointing else self._attend(x)
        # In the precision of products from here on: both convolutions, the sum, and what `mix` reads.
        return x + self.mix(self.dropout(self.convs(as_factor(x))))

    def _attend(self, x: Tensor) -> Tensor:
        # In half precision the attention would learn nothing: softmax values over N tokens are near 1 / N, below fp16's
        # normal range, and what g = 1e-6 leaves of the gradient is exactly zero.
        with torch.autocast(device_type=x.device.type, enabled=False):
            tokens = _precise(self.position) + x.flatten(2).transpose(1, 2)  # (B, N, C)
            normed = F.layer_norm(
                tokens, tokens.shape[-1:], _precise(self.norm.weight), _precise(self.norm.bias), self.norm.eps
            )
            tokens = tokens + _precise(self.layer_scale) * self.attention(normed)
            # float32, also under autocast; in a network whose weights are in half precision, those of its convolutions.
            return tokens.transpose(1, 2).unflatten(2, x.shape[2:]).to(self.mix.weight.dtype)


class EncoderStage(nn.Module):
    """Strided convolution with group norm, then a chain of PIMs."""

    def __init__(self, in_channels: int, stride: Sequence[int], depth: int, *, norm_groups: int, **pim: Any) -> None:
        super().__init__()
        channels = pim["channels"]
        self.downsample = nn.Sequential(
            nd.conv(len(stride))(in_channels, channels, tuple(stride), stride=tuple(stride), bias=False),
            nn.GroupNorm(norm_groups, channels),
        )
        blocks = [ParallelInteraction(**pim) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        for block in blocks:
            block.attention.initialise_as_encoder()

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        # float32 in every block, and channels that lie together, in the first one too: a compiler takes blocks of one
        # precision and layout for equal.
        precise = torch.promote_types(x.dtype, torch.float32)
        return self.blocks(x.to(precise, memory_format=nd.channels_last_format(x.ndim - 2)))


class DecoderStage(nn.Module):
    """Transposed convolution, addition of the encoder's feature, then a chain of PIMs."""

    def __init__(self, in_channels: int, stride: Sequence[int], depth: int, **pim: Any) -> None:
        super().__init__()
        self.upsample = nd.conv_transpose(len(stride))(
            in_channels, pim["channels"], tuple(stride), stride=tuple(stride), bias=False
        )
        self.blocks = nn.Sequential(*(ParallelInteraction(**pim) for _ in range(depth)))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.blocks(self.upsample(x) + skip)


class Encoder(nn.Module):
    """The encoder stages; gives their outputs, highest resolution first."""

    def __init__(self, stages: Sequence[EncoderStage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class Decoder(nn.Module):
    """The decoder stages, the full-resolution blocks and the segmentation layers.

    `seg_layers[0]` gives the logits; `seg_layers[j]`, where it exists, predicts from the j-th finest decoder feature.
    """

    def __init__(
        self,
        stages: Sequence[DecoderStage],
        *,
        upsample: nn.Module,
        input_skip: ResidualConvBlock,
        output_block: ResidualConvBlock,
        seg_layers: Sequence[nn.Module],
        checkpointing: bool,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.upsample = upsample
        self.input_skip = input_skip
        self.output_block = output_block
        self.seg_layers = nn.ModuleList(seg_layers)
        self.checkpointing = checkpointing
        self.deep_supervision = deep_supervision

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor | list[Tensor]:
        features = [skips[-1]]
        for stage, skip in zip(self.stages, reversed(skips[:-1]), strict=True):
            features.append(stage(features[-1], skip))
        skip = checkpoint(self.input_skip, x) if self.checkpointing else self.input_skip(x)
        # Channels first at full resolution: instance norm would copy any other layout.
        full = self.upsample(features[-1].contiguous()) + skip
        logits = checkpoint(self._predict, full) if self.checkpointing else self._predict(full)
        if not self.deep_supervision or len(self.seg_layers) == 1:
            return logits
        finest_first = reversed(features)
        heads = self.seg_layers[1:]
        return [logits, *(head(feature) for head, feature in zip(heads, finest_first, strict=False))]

    def _predict(self, full: Tensor) -> Tensor:
        return recompute(self._map_to_classes, self.output_block.convolve(full), full)

    def _map_to_classes(self, convolved: Tensor, full: Tensor) -> Tensor:
        return self.seg_layers[0](self.output_block.join(convolved, full))


class PECANet(SegmentationNetwork):
    """PECA-Net, in 2D and 3D.

    Defaults are the settings that the tumor, Synapse and ACDC variants of the authors agree on, and the tumor variant's
    where they differ; `PRESETS` holds the three variants in full. A network accepts exactly one patch size.

    Args:
        input_channels: channels of the input.
        num_classes: channels of the logits.
        patch_size: voxels per axis; each must be divisible by the product of its strides.
        stem_stride: stride of the first stage, per axis.
        stage_strides: strides of the second to last stage; their number makes the number of stages.
        feature_size: f; stage i (from 1) has f * 2^i channels.
        depths: PIMs per encoder stage; None: 3 in each.
        decoder_depth: PIMs per decoder stage.
        num_heads: attention heads everywhere.
        proj_size: memory units of the attention across positions, per encoder stage; None: 64, and 32 in the deepest of
            several stages.
        decoder_proj_size: the same for all decoder stages.
        conv_blocks: residual convolution blocks in a PIM.
        attention_dropout: rate on the attention maps.
        conv_dropout: rate at which a PIM zeroes whole channels.
        head_kernels: kernel = stride of each auxiliary head, finest first; the first reads the finest decoder feature.
        auxiliary_heads: build those heads, for deep supervision.
        aligned_heads: put each head's result at its own channels; not what the authors ran.
        checkpointing: recompute the full-resolution blocks and the attention layers in the backward pass: same numbers,
            less memory.
        deep_supervision: initial state of `decoder.deep_supervision`. Heads that it leaves unused are frozen.

    Raises:
        ValueError: for sizes that do not fit together, in the constructor, and for an input of another size.
    """

    served_dims: ClassVar[tuple[int, ...]] = (2, 3)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        patch_size: Sequence[int],
        stem_stride: Sequence[int],
        stage_strides: Sequence[Sequence[int]],
        feature_size: int = 16,
        depths: Sequence[int] | None = None,
        decoder_depth: int = 3,
        num_heads: int = 4,
        proj_size: Sequence[int] | None = None,
        decoder_proj_size: int = 64,
        conv_blocks: int = 1,
        attention_dropout: float = 0.1,
        conv_dropout: float = 0.1,
        head_kernels: Sequence[Sequence[int]] = (),
        auxiliary_heads: bool = False,
        aligned_heads: bool = False,
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_rate("attention_dropout", attention_dropout)
        check_rate("conv_dropout", conv_dropout)
        strides = [tuple(stem_stride), *(tuple(stride) for stride in stage_strides)]
        n_stages = len(strides)
        depths = (3,) * n_stages if depths is None else tuple(depths)
        if proj_size is None:
            proj_size = (64,) * (n_stages - 1) + (32 if n_stages > 1 else 64,)
        if len(depths) != n_stages or len(proj_size) != n_stages:
            raise ValueError(
                f"depths {depths} and proj_size {tuple(proj_size)} need one entry for each of {n_stages} stages."
            )
        self.input_channels = input_channels
        self.patch_size = tuple(patch_size)
        grids = stage_grids(self.patch_size, strides)
        spatial_dims = len(self.patch_size)
        channels = [feature_size * 2 ** (stage + 1) for stage in range(n_stages)]

        def pim(stage: int, projection: int) -> dict[str, Any]:
            return {
                "grid": grids[stage],
                "channels": channels[stage],
                "num_heads": num_heads,
                "proj_size": projection,
                "conv_blocks": conv_blocks,
                "attention_dropout": attention_dropout,
                "conv_dropout": conv_dropout,
                "aligned_heads": aligned_heads,
                "checkpointing": checkpointing,
            }

        self.encoder = Encoder(
            [
                EncoderStage(
                    channels[stage - 1] if stage else input_channels,
                    strides[stage],
                    depths[stage],
                    # The authors' rule, groups = channels that come in, where it is legal.
                    norm_groups=math.gcd(channels[stage - 1] if stage else input_channels, channels[stage]),
                    **pim(stage, proj_size[stage]),
                )
                for stage in range(n_stages)
            ]
        )

        if not auxiliary_heads:
            head_kernels = ()
        if len(head_kernels) > n_stages - 1:
            raise ValueError(f"{len(head_kernels)} auxiliary heads need as many decoder stages, not {n_stages - 1}.")
        conv, conv_transpose = nd.conv(spatial_dims), nd.conv_transpose(spatial_dims)
        heads = [
            conv_transpose(channels[stage], num_classes, tuple(kernel), stride=tuple(kernel))
            for stage, kernel in enumerate(head_kernels)
        ]
        full_resolution: dict[str, Any] = {"spatial_dims": spatial_dims, "norm": nd.instance_norm(spatial_dims)}
        self.decoder = Decoder(
            [
                DecoderStage(channels[stage + 1], strides[stage + 1], decoder_depth, **pim(stage, decoder_proj_size))
                for stage in reversed(range(n_stages - 1))
            ],
            upsample=conv_transpose(channels[0], feature_size, strides[0], stride=strides[0], bias=False),
            input_skip=ResidualConvBlock(input_channels, feature_size, **full_resolution),
            output_block=ResidualConvBlock(feature_size, feature_size, **full_resolution),
            seg_layers=[conv(feature_size, num_classes, 1), *heads],
            checkpointing=checkpointing,
            deep_supervision=deep_supervision,
        )
        # Tokens give maps whose channels lie together; weights that lie like that take their gradients as they come.
        for part in (self.encoder.stages[0].blocks, *self.encoder.stages[1:], *self.decoder.stages):
            nd.put_channels_last(part)
        if not deep_supervision:
            # Distributed training stops on a trainable parameter that takes no part in a step.
            self.decoder.seg_layers[1:].requires_grad_(False)

        self.output_strides = ((1,) * spatial_dims, *self._head_strides(strides, head_kernels))

    @staticmethod
    def _head_strides(strides: Sequence[Sequence[int]], head_kernels: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        head_strides = []
        for stage, kernel in enumerate(head_kernels):
            feature_stride = [math.prod(axis) for axis in zip(*strides[: stage + 1], strict=True)]
            if any(stride % size for stride, size in zip(feature_stride, kernel, strict=True)):
                raise ValueError(
                    f"Head kernel {tuple(kernel)} must divide its feature's stride, {tuple(feature_stride)}."
                )
            head_strides.append(tuple(stride // size for stride, size in zip(feature_stride, kernel, strict=True)))
        return head_strides

    @classmethod
    def settings_from_plan(cls, geometry: Geometry) -> dict[str, Any]:
        """Turn a plan into constructor arguments.

        The stem's stride is the product of the plan's first two poolings (of the only one, where there is one). Each
        later stage takes the next pooling, up to four stages; poolings beyond that are not used. An auxiliary head
        predicts at the plan's resolution level j = 1, 2 from the decoder feature one level below it, so its kernel is
        the pooling between the two.
        """
        poolings = geometry.strides[1:]
        axes = range(geometry.spatial_dims)
        stem_stride = tuple(math.prod(pooling[axis] for pooling in poolings[:2]) for axis in axes)
        stage_strides = poolings[2 : MAX_STAGES + 1]
        return {
            "patch_size": geometry.patch_size,
            "stem_stride": stem_stride,
            "stage_strides": stage_strides,
            "head_kernels": poolings[1 : 1 + min(MAX_HEADS, len(stage_strides))],
        }

    def parameters_without_weight_decay(self) -> set[str]:
        """Name the memory units, layer scales, position tables, temperatures and norms.

        Their gradients start near 1e-12, so weight decay would decide what becomes of them.
        """
        learned_tables = re.compile(r"\.(position|layer_scale|\w+_memory|\w+_temperature)$")
        norms = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.BatchNorm3d)
        names = {name for name, _ in self.named_parameters() if learned_tables.search(name)}
        for prefix, module in self.named_modules():
            if isinstance(module, norms):
                names |= {f"{prefix}.{name}" for name, _ in module.named_parameters()}
        return names

    def parts_to_compile(self) -> Sequence[Callable[..., Any]]:
        """Return the PIMs, of which those of one resolution are equal, and what runs at full resolution."""
        stages = (*self.encoder.stages, *self.decoder.stages)
        return (
            *(block.forward for stage in stages for block in stage.blocks),
            self.decoder.input_skip.forward,
            self.decoder._predict,
        )

    def describe_stages(self) -> list[dict[str, Any]]:
        """Return one row for each encoder stage."""
        rows: list[dict[str, Any]] = []
        stage: Any
        for number, stage in enumerate(self.encoder.stages, start=1):
            down, attention = stage.downsample[0], stage.blocks[0].attention
            previous = rows[-1]["grid"] if rows else self.patch_size
            rows.append(
                {
                    "stage": number,
                    "stride": tuple(down.stride),
                    "grid": tuple(size // stride for size, stride in zip(previous, down.stride, strict=True)),
                    "tokens": attention.key_memory.shape[1],
                    "channels": down.out_channels,
                    "heads": attention.num_heads,
                    "memory units": attention.spatial_memory.shape[1],
                    "blocks": len(stage.blocks),
                }
            )
        return rows

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map an image (B, input_channels, *patch_size) to logits (B, num_classes, *patch_size), or a list of them."""
        self.check_size(x)
        return self.decoder(x, self.encoder(x))


_SYNAPSE: dict[str, Any] = {
    "input_channels": 1,
    "num_classes": 14,
    "patch_size": (64, 128, 128),
    "stem_stride": (2, 4, 4),
    "stage_strides": ((2, 2, 2),) * 3,
    "feature_size": 16,
    "depths": (3, 3, 3, 3),
    "decoder_depth": 3,
    "num_heads": 4,
    "proj_size": (64, 64, 64, 32),
    "decoder_proj_size": 64,
    "conv_blocks": 1,
    "attention_dropout": 0.15,
    "conv_dropout": 0.1,
    "head_kernels": ((1, 2, 2), (1, 2, 2)),
}

# Constructor arguments of the authors' variants; beside each, its trainable parameters without / with auxiliary heads.
PRESETS: dict[str, dict[str, Any]] = {
    "synapse": _SYNAPSE,  # 46,176,454 / 46,181,858
    "acdc": {  # 91,677,244 / 91,679,812
        **_SYNAPSE,
        "num_classes": 4,
        "patch_size": (16, 160, 160),
        "stem_stride": (1, 4, 4),
        "proj_size": (256, 256, 256, 256),
        "decoder_proj_size": 256,
        "conv_blocks": 2,
        "attention_dropout": 0.1,
        "head_kernels": ((1, 2, 2), (2, 2, 2)),
    },
    "tumor": {  # 46,201,180 / 46,204,260
        **_SYNAPSE,
        "input_channels": 4,
        "num_classes": 4,
        "patch_size": (128, 128, 128),
        "stem_stride": (4, 4, 4),
        "attention_dropout": 0.1,
        "head_kernels": ((2, 2, 2), (2, 2, 2)),
    },
}
