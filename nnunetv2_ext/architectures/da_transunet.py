"""DA-TransUNet: ResNet-50, dual attention, a vision transformer and a convolutional decoder, with or without RecA.

Papers: Sun et al., "DA-TransUNet: Integrating Spatial and Channel Dual Attention with Transformer U-Net for Medical
Image Segmentation" (arXiv 2310.12570), on top of TransUNet (Chen et al., arXiv 2102.04306) and the hybrid vision
transformer (Dosovitskiy et al., arXiv 2010.11929); with RecA as in the public implementation of Recurrent-Attention.
Where a paper and that implementation differ, the latter is followed: it made the published numbers.
docs/networks/da_transunet.md has the equations and every deviation, docs/networks/reca.md the operator.

Idea: a convolutional stem goes down to 1/16 and leaves three skips. Its output passes a dual-attention block, which
adds attention across positions (PAM) and across channels (CAM), and becomes the tokens of a transformer. The decoder
doubles the resolution four times; the two deepest skips pass a dual-attention block before they are joined. With
`reca=True` each transformer layer attends with the sum of its queries and those of all layers before it (RecA-S); this
adds no parameter.

Shape legend: B batch, C channels, (H, W) the padded patch, (h, w) = (H / 16, W / 16) the token grid, N positions or
tokens, c inner channels of a dual-attention block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.layers.dropout import apply_mask, draw_mask
from nnunetv2_ext.architectures.layers.rates import check_rate
from nnunetv2_ext.architectures.layers.recompute import checkpoint, recompute
from nnunetv2_ext.architectures.layers.window_attention import norms_biases_and_tables
from nnunetv2_ext.architectures.network import SegmentationNetwork
from nnunetv2_ext.architectures.reca import recurrent_attention, run_blocks

__all__ = ["PRESETS", "ChannelAttention", "DATransUNet", "DualAttention", "PositionAttention", "ResNetStem"]

TOTAL_STRIDE = 16
# Below this, a token grid of one position is left, over which norms have nothing to average.
SMALLEST_SIZE = 32
STEM_CHANNELS = 3
NORM_GROUPS = 32
SKIPS = 3
DUAL_ATTENTION_SKIPS = 2
INNER_FRACTION = 16
QUERY_FRACTION = 8


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose kernel is standardised over each output channel at every call, without bias.

    w' = (w - mean(w)) / sqrt(var(w) + 1e-5), with the biased variance over input channels and kernel positions.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # The recomputation ends before the convolution itself, so that it costs the kernel's standardisation alone.
        return recompute(self._convolve, x)

    def _convolve(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) / torch.sqrt(var + 1e-5)
        return F.conv2d(x, weight, None, self.stride, self.padding)


class ResidualUnit(nn.Module):
    """Bottleneck of a 1-wide, a 3-wide and a 1-wide convolution beside the identity, or beside a 1-wide convolution.

    output = ReLU(r + GN(conv1x1(ReLU(GN(conv3x3(ReLU(GN(conv1x1(x)))))))), where r is x or, in the first unit of a
    block, a strided convolution of x, normalised with one group per channel.

    Shape:
        (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride), sizes rounded up.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        width = out_channels // 4
        self.conv1 = StandardisedConv2d(in_channels, width, 1)
        self.norm1 = nn.GroupNorm(NORM_GROUPS, width, eps=1e-6)
        self.conv2 = StandardisedConv2d(width, width, 3, stride=stride)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, width, eps=1e-6)
        self.conv3 = StandardisedConv2d(width, out_channels, 1)
        self.norm3 = nn.GroupNorm(NORM_GROUPS, out_channels, eps=1e-6)
        self.projects = stride != 1 or in_channels != out_channels
        if self.projects:
            self.project = StandardisedConv2d(in_channels, out_channels, 1, stride=stride)
            self.project_norm = nn.GroupNorm(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.project_norm(self.project(x)) if self.projects else x
        x = F.relu(self.norm1(self.conv1(x)), inplace=True)
        x = F.relu(self.norm2(self.conv2(x)), inplace=True)
        return F.relu(self.norm3(self.conv3(x)) + residual, inplace=True)


class ResNetStem(nn.Module):
    """The convolutional stem: root, max pooling, three blocks of residual units.

    Max pooling has no padding, so the first block works on maps that are one position short of a quarter of the input;
    its skip is filled up with zeros at the end of each axis.

    Args:
        in_channels: channels of the input.
        width: channels of the root, a multiple of 32; the blocks give 4, 8 and 16 times as many.
        depths: residual units per block.
        checkpointing: recompute the units in the backward pass.

    Shape:
        (B, in_channels, H, W), both divisible by 16, to the output (B, 16 width, H / 16, W / 16) and three skips,
        deepest first: (B, 8 width, H / 8, W / 8), (B, 4 width, H / 4, W / 4), (B, width, H / 2, W / 2).
    """

    def __init__(self, in_channels: int, width: int, depths: Sequence[int], *, checkpointing: bool = False) -> None:
        super().__init__()
        if width % NORM_GROUPS or len(depths) != SKIPS:
            raise ValueError(
                f"stem_width {width} must be a multiple of {NORM_GROUPS}, and resnet_layers {tuple(depths)} needs one "
                f"entry for each of {SKIPS} blocks."
            )
        self.checkpointing = checkpointing
        self.root = StandardisedConv2d(in_channels, width, 7, stride=2)
        self.root_norm = nn.GroupNorm(NORM_GROUPS, width, eps=1e-6)
        self.blocks = nn.ModuleList()
        channels = width
        for number, depth in enumerate(depths):
            block = nn.ModuleList()
            for unit in range(depth):
                out_channels = 4 * width * 2**number
                block.append(ResidualUnit(channels, out_channels, stride=2 if number and not unit else 1))
                channels = out_channels
            self.blocks.append(block)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        height, width = x.shape[2:]
        x = F.relu(self.root_norm(self.root(x)), inplace=True)
        skips = [x]
        x = F.max_pool2d(x, 3, stride=2)
        block: Any
        for number, block in enumerate(self.blocks):
            for unit in block:
                x = checkpoint(unit, x) if self.checkpointing else unit(x)
            if number == 0:
                skips.insert(0, F.pad(x, (0, width // 4 - x.shape[3], 0, height // 4 - x.shape[2])))
            elif number == 1:
                skips.insert(0, x)
        return x, skips


def conv_norm_relu(in_channels: int, out_channels: int, **norm: Any) -> nn.Sequential:
    """Make a 3-wide convolution without bias, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels, **norm),
        nn.ReLU(inplace=True),
    )


class PositionAttention(nn.Module):
    """Attention across positions (PAM): one head, no scaling, added to the input by a learned factor gamma.

    output_n = x_n + gamma * sum_m softmax_m(q_n . k_m) v_m

    Shape:
        (B, c, H, W) to (B, c, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < QUERY_FRACTION:
            raise ValueError(
                f"A dual-attention block on {INNER_FRACTION * channels} channels is too narrow for queries of its own: "
                f"give it at least {INNER_FRACTION * QUERY_FRACTION}."
            )
        self.query = nn.Linear(channels, channels // QUERY_FRACTION)
        self.key = nn.Linear(channels, channels // QUERY_FRACTION)
        self.value = nn.Linear(channels, channels)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, c)
        value = self.value(tokens)
        # The fused kernels want one width for queries, keys and values; zeros do not change a product.
        missing = (0, value.shape[-1] - self.query.out_features)
        query, key = F.pad(self.query(tokens), missing), F.pad(self.key(tokens), missing)
        attended = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], scale=1.0)
        return x + self.gamma * attended[:, 0].transpose(1, 2).reshape(x.shape)


class ChannelAttention(nn.Module):
    """Attention across channels (CAM), without projections, added to the input by a learned factor gamma.

    output = x + gamma * softmax(-X X^T) X, with X the map as a matrix of c rows and a softmax over each row.

    Shape:
        (B, c, H, W) to (B, c, H, W), float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        # The products are sums over all positions, of which the softmax sees the differences: half precision rounds
        # these away, and fp16 overflows.
        with torch.autocast(device_type=x.device.type, enabled=False):
            x = x.float()
            channels = x.flatten(2)  # (B, c, N)
            weights = torch.softmax(-(channels @ channels.transpose(1, 2)), dim=-1)
            return x + self.gamma * (weights @ channels).reshape(x.shape)


class DualAttention(nn.Module):
    """Dual-attention block: PAM and CAM side by side on a sixteenth of the channels.

    output = ReLU(mix(drop(p + h))), with p and h from a convolution, the attention, and a second convolution each.

    Args:
        channels: C of input and output; at least 128.
        dropout: rate at which channels are zeroed.
        momentum: weight of the newest batch in the running statistics of the batch norms. The authors have 0.95.

    Shape:
        (B, C, H, W) to (B, C, H, W), not negative.
    """

    def __init__(self, channels: int, *, dropout: float = 0.05, momentum: float = 0.95) -> None:
        super().__init__()
        check_rate("channel_dropout", dropout)
        inner, norm = channels // INNER_FRACTION, {"eps": 1e-3, "momentum": momentum}
        self.position_in = conv_norm_relu(channels, inner, **norm)
        self.position_attention = PositionAttention(inner)
        self.position_out = conv_norm_relu(inner, inner, **norm)
        self.channel_in = conv_norm_relu(channels, inner, **norm)
        self.channel_attention = ChannelAttention()
        self.channel_out = conv_norm_relu(inner, inner, **norm)
        self.dropout = nn.Dropout2d(dropout)
        self.mix = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.position_out(self.position_attention(self.position_in(x)))
        # float32, also under autocast; in a network whose weights are in half precision, these.
        attended = self.channel_attention(self.channel_in(x)).to(self.mix.weight.dtype)
        channels = self.channel_out(attended)
        return F.relu(self.mix(self.dropout(positions + channels)), inplace=True)


class SequenceAttention(nn.Module):
    """Recurrent self-attention over a sequence: its query is added to the state.

    Shape:
        tokens (B, N, C), and a state (B, heads, N, C / heads) or None, to the same two.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{channels} channels must be divisible by the number of heads, {num_heads}.")
        self.num_heads = num_heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        query, key, value = (
            layer(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        output, state = recurrent_attention(query, key, value, state)
        return self.out(output.transpose(1, 2).flatten(2)), state


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer: x + Attention(LN(x)), then x + MLP(LN(x)).

    Shape:
        tokens (B, N, C), and a state (B, heads, N, C / heads) or None, to the same two.
    """

    def __init__(self, channels: int, *, num_heads: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels, eps=1e-6)
        self.attention = SequenceAttention(channels, num_heads)
        self.mlp_norm = nn.LayerNorm(channels, eps=1e-6)
        self.fc1 = nn.Linear(channels, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, channels)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        attended, state = self.attention(self.attention_norm(x), state)
        x = x + attended
        hidden = self.fc1(self.mlp_norm(x))
        kept = draw_mask(self.dropout, hidden.shape, hidden.device)
        # The recomputation ends before the second linear map, of which the backward pass needs only the input.
        return x + self.dropout(recompute(self._contract, hidden, kept)), state

    def _contract(self, hidden: Tensor, kept: Tensor | None) -> Tensor:
        return self.fc2(apply_mask(F.gelu(hidden), kept, self.dropout))


class Transformer(nn.Module):
    """The layers of the bottleneck, which are one run of RecA, and a layer norm.

    Shape:
        (B, N, C) to (B, N, C).
    """

    def __init__(
        self,
        channels: int,
        *,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        dropout: float,
        reca: bool,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.reca, self.checkpointing = reca, checkpointing
        self.layers = nn.ModuleList(
            TransformerLayer(channels, num_heads=num_heads, mlp_dim=mlp_dim, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(run_blocks(self.layers, tokens, reca=self.reca, checkpointing=self.checkpointing))


class DecoderLevel(nn.Module):
    """Twice the resolution, the skip beside it, two convolutions.

    Shape:
        (B, in_channels, H, W) and a skip (B, skip_channels, 2H, 2W), or none, to (B, out_channels, 2H, 2W).
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, attention: nn.Module | None) -> None:
        super().__init__()
        self.attention = nn.Identity() if attention is None else attention
        self.conv1 = conv_norm_relu(in_channels + skip_channels, out_channels)
        self.conv2 = conv_norm_relu(out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        if skip is not None:
            x = torch.cat((x, self.attention(skip)), dim=1)
        return self.conv2(self.conv1(x))


class Decoder(nn.Module):
    """From the transformer's map back to the resolution of the input, and the segmentation layer.

    Args:
        in_channels: channels of the transformer's map.
        head_channels: channels of the first convolution.
        skip_channels: channels of the skips, deepest first; the levels after them have none.
        channels: channels of the levels, deepest first.
        num_classes: channels of the logits.
        attentions: dual-attention blocks for the first skips.
        deep_supervision: initial state of the switch, which nothing reads: there is one output.
    """

    def __init__(
        self,
        in_channels: int,
        head_channels: int,
        skip_channels: Sequence[int],
        channels: Sequence[int],
        num_classes: int,
        *,
        attentions: Sequence[nn.Module],
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.head = conv_norm_relu(in_channels, head_channels)
        self.levels = nn.ModuleList(
            DecoderLevel(
                width_below,
                skip_channels[level] if level < len(skip_channels) else 0,
                width,
                attentions[level] if level < len(attentions) else None,
            )
            for level, (width_below, width) in enumerate(zip((head_channels, *channels[:-1]), channels, strict=True))
        )
        self.seg_layers = nn.ModuleList([nn.Conv2d(channels[-1], num_classes, 3, padding=1)])

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        x = self.head(x)
        for number, level in enumerate(self.levels):
            x = level(x, skips[number] if number < len(skips) else None)
        return self.seg_layers[0](x)


class Embedding(nn.Module):
    """From the stem's output to tokens: a 1-wide convolution, a dual-attention block, a learned table of positions.

    Shape:
        (B, in_channels, h, w) to (B, h w, C), tokens row by row.
    """

    def __init__(
        self, in_channels: int, channels: int, grid: Sequence[int], *, dropout: float, attention: DualAttention
    ) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, channels, 1)
        self.attention = attention
        self.position = nn.Parameter(torch.zeros(1, grid[0] * grid[1], channels))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.project(x))
        return self.dropout(x.flatten(2).transpose(1, 2) + self.position)


class DATransUNet(SegmentationNetwork):
    """DA-TransUNet, in 2D, with or without RecA.

    Defaults are the authors' settings (R50 + ViT-B/16). The network accepts exactly one patch size; it pads it at the
    end of each axis to a multiple of 16, and to 32 at least, and crops the logits.

    Args:
        input_channels: channels of the input. A single one is repeated to three.
        num_classes: channels of the logits.
        patch_size: pixels per axis.
        reca: attend with the sum of the queries of all layers so far (RecA-S), instead of the layer's own.
        stem_width: channels of the stem's first convolution, a multiple of 32.
        resnet_layers: residual units in each of the stem's three blocks.
        hidden_size: channels of a token; at least 128, divisible by the number of heads.
        mlp_dim: hidden width of the transformer's MLPs.
        num_heads: attention heads of the transformer.
        num_layers: layers of the transformer.
        decoder_head_channels: channels of the decoder's first convolution.
        decoder_channels: channels of the four decoder levels, deepest first.
        dropout: rate on the tokens and in the MLPs.
        channel_dropout: rate at which a dual-attention block zeroes channels.
        attention_momentum: weight of the newest batch in the running statistics of the dual-attention blocks.
        checkpointing: recompute the stem's units and the transformer's layers in the backward pass: same numbers, less
            memory.
        deep_supervision: initial state of `decoder.deep_supervision`, which changes nothing: there is one output.

    Raises:
        ValueError: for settings that do not fit together, in the constructor, and for an input of another size.
    """

    served_dims: ClassVar[tuple[int, ...]] = (2,)
    narrow_settings: ClassVar[Mapping[str, Any]] = {
        "stem_width": 32,
        "resnet_layers": (1, 1, 1),
        "hidden_size": 128,
        "mlp_dim": 128,
        "num_heads": 4,
        "num_layers": 2,
        "decoder_head_channels": 32,
        "decoder_channels": (16, 16, 8, 8),
    }

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        patch_size: Sequence[int] = (224, 224),
        reca: bool = True,
        stem_width: int = 64,
        resnet_layers: Sequence[int] = (3, 4, 9),
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        num_layers: int = 12,
        decoder_head_channels: int = 512,
        decoder_channels: Sequence[int] = (256, 128, 64, 16),
        dropout: float = 0.1,
        channel_dropout: float = 0.05,
        attention_momentum: float = 0.95,
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_rate("dropout", dropout)
        self.input_channels = input_channels
        self.patch_size = tuple(patch_size)
        if len(self.patch_size) != 2 or len(decoder_channels) != 4:
            raise ValueError(
                f"DA-TransUNet is a 2D network with four decoder levels, and got patch size {self.patch_size} and "
                f"decoder_channels {tuple(decoder_channels)}: give two and four numbers."
            )
        self.grid = tuple(size // TOTAL_STRIDE for size in self.padded_size)
        self.output_strides = ((1, 1),)

        def dual_attention(channels: int) -> DualAttention:
            return DualAttention(channels, dropout=channel_dropout, momentum=attention_momentum)

        stem_channels = STEM_CHANNELS if input_channels == 1 else input_channels
        self.stem = ResNetStem(stem_channels, stem_width, resnet_layers, checkpointing=checkpointing)
        self.embedding = Embedding(
            16 * stem_width, hidden_size, self.grid, dropout=dropout, attention=dual_attention(hidden_size)
        )
        self.transformer = Transformer(
            hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            dropout=dropout,
            reca=reca,
            checkpointing=checkpointing,
        )
        skip_channels = (8 * stem_width, 4 * stem_width, stem_width)
        self.decoder = Decoder(
            hidden_size,
            decoder_head_channels,
            skip_channels,
            decoder_channels,
            num_classes,
            attentions=[dual_attention(channels) for channels in skip_channels[:DUAL_ATTENTION_SKIPS]],
            deep_supervision=deep_supervision,
        )

    @property
    def padded_size(self) -> tuple[int, ...]:
        """Pixels per axis, rounded up to a multiple of 16, and to 32 at least."""
        return tuple(max(SMALLEST_SIZE, -(-size // TOTAL_STRIDE) * TOTAL_STRIDE) for size in self.patch_size)

    @classmethod
    def settings_from_plan(cls, geometry: Geometry) -> dict[str, Any]:
        """Turn a plan into constructor arguments.

        Only the patch size is the plan's. Widths and stages are the authors', to which the published parameter counts
        and ImageNet's weights belong; they do not follow the plan's poolings.
        """
        return {"patch_size": geometry.patch_size}

    def parameters_without_weight_decay(self) -> set[str]:
        """Name the position table, and the scale and shift parameters: biases, norms, factors of the attentions."""
        return norms_biases_and_tables(self) | {"embedding.position"}

    def parts_to_compile(self) -> Sequence[Callable[..., Any]]:
        """Return the residual units, the transformer's layers, of both of which most are equal, and the decoder."""
        blocks: list[Any] = list(self.stem.blocks)
        units = (unit for block in blocks for unit in block)
        modules = (*units, self.embedding, *self.transformer.layers, *self.decoder.levels)
        return tuple(module.forward for module in modules)

    def describe_stages(self) -> list[dict[str, Any]]:
        """Return one row for each resolution of the stem, and one for the transformer."""
        stem, transformer = self.stem, self.transformer
        width = stem.root.out_channels
        blocks: list[Any] = list(stem.blocks)
        attention: Any = transformer.layers[0].attention
        rows = [("root", 2, width, 1, "none")]
        rows += [
            (f"residual units {number}", 2 ** (number + 1), 2 ** (number + 1) * width, len(block), "none")
            for number, block in enumerate(blocks, start=1)
        ]
        layers = len(transformer.layers)
        rows.append(
            ("transformer", TOTAL_STRIDE, self.embedding.project.out_channels, layers, str(attention.num_heads))
        )
        return [
            {
                "stage": number,
                "part": part,
                "grid": tuple(size // stride for size in self.padded_size),
                "channels": channels,
                "blocks": blocks,
                "heads": heads,
                "queries summed": layers if transformer.reca and part == "transformer" else 1,
            }
            for number, (part, stride, channels, blocks, heads) in enumerate(rows, start=1)
        ]

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map a padded image (B, input_channels, H, W) to the transformer's tokens (B, h w, C) and the stem's skips."""
        if self.input_channels == 1:
            x = x.expand(-1, STEM_CHANNELS, -1, -1)
        x, skips = self.stem(x)
        return self.transformer(self.embedding(x)), skips

    def forward(self, x: Tensor) -> Tensor:
        """Map an image (B, input_channels, *patch_size) to logits (B, num_classes, *patch_size)."""
        self.check_size(x)
        (height, width), (padded_height, padded_width) = self.patch_size, self.padded_size
        tokens, skips = self.encode(F.pad(x, (0, padded_width - width, 0, padded_height - height)))
        logits = self.decoder(tokens.transpose(1, 2).unflatten(2, self.grid), skips)
        return logits[..., :height, :width].contiguous()


# Constructor arguments of the authors' network; beside it, its trainable parameters, the same with and without RecA.
PRESETS: dict[str, dict[str, Any]] = {
    "synapse": {  # 106,438,039
        "input_channels": 1,
        "num_classes": 9,
        "patch_size": (224, 224),
        "stem_width": 64,
        "resnet_layers": (3, 4, 9),
        "hidden_size": 768,
        "mlp_dim": 3072,
        "num_heads": 12,
        "num_layers": 12,
        "decoder_head_channels": 512,
        "decoder_channels": (256, 128, 64, 16),
    }
}
