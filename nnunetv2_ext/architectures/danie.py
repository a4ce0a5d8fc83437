"""DANIE: two encoders with self-attention and with hierarchical attention, joined by Joint Preservation.

Paper: S. Li, Y. Tu, Y. Gong, B. Zhong, Z. Li, "Dual Attention Encoder with Joint Preservation for Medical Image
Segmentation", ECAI 2024, doi 10.3233/FAIA240505. The authors have published no code: this network is a reading of the
paper. Equation numbers below are the paper's. docs/networks/danie.md says what the paper leaves open, what was chosen
and on which evidence.

Idea: self-attention perception (SAP) is timm's MaxViT; hierarchical-attention perception (HAP) is a convolutional
encoder of the same widths and resolutions, gated by channel and spatial attention over maxima and means. The two meet
only in the decoder: at each stage, deepest first, Joint Preservation attends across the channels of the one (ES) and
weighs the channels of the other (EH), adds the two, and joins what comes from the stage below. Each stage predicts, and
the logits are the sum of the four predictions.

    image x ─┬─ SAP: s_1 s_2 s_3 s_4  (strides 4, 8, 16, 32)
             └─ HAP: h_1 h_2 h_3 h_4
    e_k = ES(s_k) + EH(h_k);  j_k = ConvBlock([e_k, r_k]);  y = sum over k of upsample(Conv1x1(j_k))

The paper numbers the blocks of Joint Preservation in the order of computation; here k is the encoder's stage, 1 the
finest, so its "previous block" is k + 1.

Shape legend: B batch, C channels of a stage, N positions of its map, K classes.

Memory: the gates of HAP, ES and EH are recomputed in the backward pass. `checkpointing=True` also recomputes, in SAP,
every block without batch norm and, where a block has one, its attention; and in the convolution blocks the activation
with the convolution that follows. Batch norm is never recomputed: its running statistics would be updated twice a step.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.architectures.layers.rates import check_rate
from nnunetv2_ext.architectures.layers.recompute import checkpoint, recompute
from nnunetv2_ext.architectures.network import SegmentationNetwork

__all__ = [
    "DANIE",
    "EH",
    "ES",
    "FUSIONS",
    "PRESETS",
    "ConvBlock",
    "HierarchicalAttention",
    "HierarchicalPerception",
    "JointPreservation",
]

STRIDES = (4, 8, 16, 32)
SMALLEST_SIZE = 64
EMBEDDING_WIDTH = 64
REDUCTION = 16
NORMS: Mapping[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": functools.partial(nn.InstanceNorm2d, affine=True),
}


def _apply(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply a function as it is, in the place of `checkpoint`."""
    return function(*inputs)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sum(maps: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.add, maps)


class ConvBlock(nn.Module):
    """Two 3-wide convolutions, each with norm and GELU (the paper's ConvBlock, below its equation 11).

    Shape:
        (B, in_channels, H, W) to (B, out_channels, H, W).
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, norm: str = "batch", checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = NORMS[norm](out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = NORMS[norm](out_channels)
        self._run = checkpoint if checkpointing else _apply

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x))
        return F.gelu(self.norm2(self._run(self._activate_and_convolve, x)))

    def _activate_and_convolve(self, x: Tensor) -> Tensor:
        return self.conv2(F.gelu(x))


class ConvNormActivation(nn.Sequential):
    """One 3-wide convolution with norm and GELU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: str = "batch") -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1),
            NORMS[norm](out_channels),
            nn.GELU(),
        )


class HierarchicalAttention(nn.Module):
    """Gate a map by channel and spatial attention over its maxima and its means (equations 2 to 5).

    With P^s pooling over the positions and P^c over the channels, for each branch b of maximum and mean:

        A^c_b = sigmoid(MLP(P^s_b(h))),        m_b = A^c_b * h           (2)
        A^s_b = sigmoid(Conv(P^c_b(m_b))),     O_b = A^s_b * m_b         (3)
        O_d = w_max O_max + w_mean O_mean                                (4)
        A_d = sigmoid(c * O_d);  the result is A_d * h                   (5)

    MLP and Conv are shared by the branches. At the start Conv is the identity, and w = (1, 1).

    Args:
        channels: C.
        channel_attention: whether equation 2 is used; without, m_b = h.
        spatial_attention: whether equation 3 is used; without, O_b = m_b.
        channel_first: the order of equations 2 and 3.
        calibration: whether w is learned; without, w = (1, 1).
        gate: "full" for a convolution c from C to C channels, "spatial" for one from C to 1.

    Shape:
        (B, C, H, W) to the same.
    """

    def __init__(
        self,
        channels: int,
        *,
        channel_attention: bool = True,
        spatial_attention: bool = True,
        channel_first: bool = True,
        calibration: bool = True,
        gate: str = "full",
    ) -> None:
        super().__init__()
        steps = []
        if channel_attention:
            hidden = max(channels // REDUCTION, 1)
            self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
            steps.append(self._weigh_channels)
        if spatial_attention:
            self.conv = nn.Conv2d(1, 1, 1)
            nn.init.ones_(self.conv.weight)
            nn.init.zeros_(cast(Tensor, self.conv.bias))
            steps.append(self._weigh_positions)
        self.steps = [step.__name__ for step in (steps if channel_first else reversed(steps))]
        self.calibration = nn.Parameter(torch.ones(2)) if calibration else None
        self.gate = nn.Conv2d(channels, channels if gate == "full" else 1, 1)

    def forward(self, h: Tensor) -> Tensor:
        largest, mean = self._attend(h, torch.amax), self._attend(h, torch.mean)
        if self.calibration is not None:
            largest, mean = self.calibration[0] * largest, self.calibration[1] * mean
        return torch.sigmoid(self.gate(largest + mean)) * h

    def _attend(self, h: Tensor, pool: Callable[..., Tensor]) -> Tensor:
        for step in self.steps:
            h = getattr(self, step)(h, pool)
        return h

    def _weigh_channels(self, h: Tensor, pool: Callable[..., Tensor]) -> Tensor:
        return torch.sigmoid(self.mlp(pool(h, (2, 3))))[:, :, None, None] * h

    def _weigh_positions(self, h: Tensor, pool: Callable[..., Tensor]) -> Tensor:
        return torch.sigmoid(self.conv(pool(h, 1, keepdim=True))) * h


class HierarchicalStage(nn.Module):
    """Halve the resolution (but in the first stage), gate, and convolve: h_k = ConvBlock(A_d * h)."""

    def __init__(
        self, in_channels: int | None, channels: int, *, norm: str, checkpointing: bool, **attention: Any
    ) -> None:
        super().__init__()
        self.down = (
            nn.Identity() if in_channels is None else ConvNormActivation(in_channels, channels, stride=2, norm=norm)
        )
        self.attention = HierarchicalAttention(channels, **attention)
        self.block = ConvBlock(channels, channels, norm=norm, checkpointing=checkpointing)

    def forward(self, h: Tensor) -> Tensor:
        # A dozen maps, all from one, and a hundredth of the network's work.
        return self.block(recompute(self.attention, self.down(h)))


class HierarchicalPerception(nn.Module):
    """Hierarchical-attention perception (HAP): a convolutional embedding to a quarter of the size, and four stages.

    Args:
        input_channels: channels of the image.
        widths: channels of the stages.
        norm: "batch" or "instance".
        checkpointing: recompute activations, each with the convolution that follows.
        attention: further arguments of `HierarchicalAttention`.

    Shape:
        (B, input_channels, H, W), H and W multiples of 32, to four maps (B, widths[i], H / STRIDES[i], W / STRIDES[i]).
    """

    def __init__(
        self, input_channels: int, widths: Sequence[int], *, norm: str, checkpointing: bool, **attention: Any
    ) -> None:
        super().__init__()
        self.embedding = ConvBlock(input_channels, EMBEDDING_WIDTH, norm=norm, checkpointing=checkpointing)
        self.pool = nn.MaxPool2d(2)
        self.reduction = ConvNormActivation(EMBEDDING_WIDTH, widths[0], stride=2, norm=norm)
        self.stages = nn.ModuleList(
            HierarchicalStage(narrower, width, norm=norm, checkpointing=checkpointing, **attention)
            for narrower, width in zip((None, *widths[:-1]), widths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        h = self.reduction(self.pool(self.embedding(x)))
        maps = []
        for stage in self.stages:
            h = stage(h)
            maps.append(h)
        return maps


class ES(nn.Module):
    """Attention across the channels of s (equations 6 and 7): s + lambda * w^T S, with lambda = 0 at the start.

    S is s as a C x N matrix, G = S S^T, and w_ij = exp(G_ij) / sum_i exp(G_ij): each column of w sums to one.

    Shape:
        (B, C, H, W) to the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, s: Tensor) -> Tensor:
        # G is a sum over all positions without a scale: at 256 x 256 it passes 65504, the largest number of fp16. A
        # product of float32 matrices would be done in half precision under autocast, so autocast is off.
        with torch.autocast(device_type=s.device.type, enabled=False):
            rows = _at_least_float32(s).flatten(2)  # (B, C, N)
            # G is symmetric, so the transpose of the softmax over its first index is the softmax over its last. The map
            # of C x C is smaller than its operands: a fused attention would save nothing.
            weights = torch.softmax(rows @ rows.transpose(1, 2), dim=-1)
            attended = (weights @ rows).unflatten(2, s.shape[2:])
            return (s + self.scale * attended).to(s.dtype)


class EH(nn.Module):
    """Weigh the channels of h by what an attention over its positions gathers (equations 8 and 9).

        a = softmax over positions of c1(h),    A_g = sum over positions of a_n h_n          (8)
        W_g = sigmoid(c2(GELU(LN(c1'(A_g))))),  the result is W_g * h                        (9)

    The convolutions c1' and c2 act on vectors, and are linear maps here.

    Shape:
        (B, C, H, W) to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // REDUCTION, 1)
        self.position = nn.Conv2d(channels, 1, 1)
        self.weigh = nn.Sequential(
            nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, h: Tensor) -> Tensor:
        # Weights of thousands of positions are near 1 / N each, which fp16 rounds away in the weighted sum.
        with torch.autocast(device_type=h.device.type, enabled=False):
            values = _at_least_float32(h)
            # float32, also under autocast; in a network whose weights are in half precision, these.
            dtype = self.position.weight.dtype
            scores = _at_least_float32(self.position(h.to(dtype)).flatten(2))
            attention = torch.softmax(scores, dim=-1)  # (B, 1, N)
            gathered = (values.flatten(2) @ attention.transpose(1, 2)).squeeze(2)  # (B, C)
            weights = self.weigh(gathered.to(dtype))
        return weights.to(h.dtype)[:, :, None, None] * h


# How the two streams are joined, and the row of the paper's table C: whether s goes through ES, whether h goes through
# EH, and how the result meets what comes from the stage below.
FUSIONS: dict[str, tuple[bool, bool, str]] = {
    "joint_preservation": (True, True, "concatenate"),  # C.5
    "eh_add": (False, True, "concatenate"),  # C.3
    "es_add": (True, False, "concatenate"),  # C.4
    "concat_res": (False, False, "concatenate all"),  # C.1
    "add": (False, False, "add"),  # C.2, and all of tables A and B
}


class JointPreservation(nn.Module):
    """Join the maps of one stage with the joint map of the stage below (equations 10 and 11).

        e_k = ES(s_k) + EH(h_k)                                                                      (10)
        r_k = GELU(BN(Conv3x3(nearest upsampling of j_(k+1)))), and r_4 = s_4 + h_4
        j_k = ConvBlock([e_k, r_k])                                                                  (11)

    The paper's other fusions: "add" is ConvBlock(s + h + r), without r at the deepest stage; "concat_res" is
    ConvBlock([s, h, r]) + s + h; "eh_add" and "es_add" leave out ES or EH.

    Args:
        channels: C.
        deeper_channels: channels of the stage below; None at the deepest stage.
        streams: which of "s" and "h" there are.
        fusion: a key of `FUSIONS`.
        first_previous: "sum" for r_4 = s_4 + h_4, "none" for no r_4.
        norm: "batch" or "instance".
        checkpointing: recompute the activation inside the convolution block.

    Shape:
        s, h (B, C, H, W) and the joint map of the stage below, each of which may be None, to (B, C, H, W).
    """

    def __init__(
        self,
        channels: int,
        deeper_channels: int | None,
        *,
        streams: Sequence[str],
        fusion: str,
        first_previous: str,
        norm: str,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        with_es, with_eh, self.joining = FUSIONS[fusion]
        self.es = ES() if with_es and "s" in streams else None
        self.eh = EH(channels) if with_eh and "h" in streams else None
        self.bring = None if deeper_channels is None else ConvNormActivation(deeper_channels, channels, norm=norm)
        self.sums_streams = deeper_channels is None and first_previous == "sum" and self.joining != "add"
        widths = {
            "add": 1,
            "concatenate": 1 + self.has_previous,
            "concatenate all": len(streams) + self.has_previous,
        }
        self.block = ConvBlock(widths[self.joining] * channels, channels, norm=norm, checkpointing=checkpointing)

    @property
    def has_previous(self) -> bool:
        """Whether there is an r_k."""
        return self.bring is not None or self.sums_streams

    def forward(self, s: Tensor | None, h: Tensor | None, deeper: Tensor | None) -> Tensor:
        streams = [stream for stream in (s, h) if stream is not None]
        previous = []
        if self.bring is not None and deeper is not None:
            previous = [self.bring(F.interpolate(deeper, size=streams[0].shape[2:], mode="nearest"))]
        elif self.sums_streams:
            previous = [_sum(streams)]
        if self.joining == "add":
            return self.block(_sum([*streams, *previous]))
        if self.joining == "concatenate all":
            return self.block(torch.cat([*streams, *previous], dim=1)) + _sum(streams)
        # Their float32 copies and C x C maps are most of what this stage would keep, for little work.
        return self.block(torch.cat([recompute(self._preserve, s, h), *previous], dim=1))

    def _preserve(self, s: Tensor | None, h: Tensor | None) -> Tensor:
        """Return e_k of equation 10; a stream without ES or EH goes in as it is."""
        preserved = [
            stream if step is None else step(stream)
            for stream, step in ((s, self.es), (h, self.eh))
            if stream is not None
        ]
        return _sum(preserved)


class Decoder(nn.Module):
    """Joint Preservation from the deepest stage to the finest, and a prediction at each (equation 12).

    `blocks[i]` and `seg_layers[i]` belong to stage i + 1. The logits are the sum of the predictions, each enlarged to
    the input's size.
    """

    def __init__(
        self, blocks: Sequence[JointPreservation], seg_layers: Sequence[nn.Conv2d], *, lists_maps: bool, **switch: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.seg_layers = nn.ModuleList(seg_layers)
        self.lists_maps = lists_maps
        self.deep_supervision = switch["deep_supervision"]

    def forward(
        self, s: Sequence[Tensor | None], h: Sequence[Tensor | None], padded_size: Sequence[int], size: Sequence[int]
    ) -> Tensor | list[Tensor]:
        joint: Tensor | None = None
        maps: list[Tensor] = []
        for block, head, s_k, h_k in reversed(list(zip(self.blocks, self.seg_layers, s, h, strict=True))):
            joint = block(s_k, h_k, joint)
            enlarged = F.interpolate(head(joint), size=padded_size, mode="bilinear", align_corners=False)
            maps.insert(0, enlarged[..., : size[0], : size[1]].contiguous())
        logits = _sum(maps)
        return [logits, *maps] if self.lists_maps and self.deep_supervision else logits


def _make_self_attention(
    backbone: str, settings: Mapping[str, Any], *, input_channels: int, size: Sequence[int], widths: Sequence[int]
) -> nn.Module:
    """Make timm's model without weights, as a module that gives the maps of its four stages."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            "DANIE's self-attention stream is a model of timm: install it with `pip install timm`."
        ) from error
    known = timm.list_models(["maxvit*", "maxxvit*"])
    if backbone not in known:
        raise ValueError(f"timm has no MaxViT {backbone!r}: choose one of {', '.join(known)}.")
    model = timm.create_model(
        backbone,
        pretrained=False,
        features_only=True,
        out_indices=(1, 2, 3, 4),
        img_size=tuple(size),
        in_chans=input_channels,
        **settings,
    )
    info: Any = model.feature_info
    found = tuple(zip(info.channels(), info.reduction(), strict=True))
    if found != tuple(zip(widths, STRIDES, strict=True)):
        raise ValueError(
            f"The backbone {backbone} has stages of (channels, stride) {found}, and widths {tuple(widths)} at strides "
            f"{STRIDES} are asked for: give the backbone's widths, or another backbone."
        )
    return model


def _recompute_in_backbone(model: nn.Module) -> None:
    """Recompute timm's blocks in the backward pass; where a block holds batch norm, its parts without it."""
    for stage in model.children():
        for block in getattr(stage, "blocks", ()):
            for module in (block, *block.children()):
                if not any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
                    module.forward = functools.partial(checkpoint, module.forward)
                    if module is block:
                        break


class DANIE(SegmentationNetwork):
    """Dual attention encoder with Joint Preservation; the defaults are DANIE-S, `PRESETS` has DANIE-L.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        patch_size: pixels per axis. Sizes that are no multiple of 32, or below 64, are padded with zeros at the end,
            and the logits cut back: MaxViT's windows are a 32nd of the size, and attention needs more than one position
            in a window.
        widths: C of the four stages.
        backbone: timm's name of a MaxViT model with these widths. With an `rmlp` model the parameters do not depend on
            the patch size.
        backbone_settings: further arguments for timm's model, for example {"drop_path_rate": 0.2}.
        self_attention: whether the stream SAP is there (row A.1 of the paper's ablation has SAP alone, A.2 has HAP
            alone).
        hierarchical_attention: whether the stream HAP is there.
        channel_attention: whether equation 2 is used (without: row A.4).
        spatial_attention: whether equation 3 is used (without: row A.3).
        channel_first: order of the two (rows B.3 and B.4; otherwise B.1 and B.2).
        calibration: whether weights are learned in equation 4 (without: rows B.1 and B.3).
        gate: "full" or "spatial", the convolution of equation 5.
        fusion: a key of `FUSIONS` (rows C.1 to C.5).
        first_previous: "sum" or "none", what the deepest joint block gets in the place of a stage below.
        norm: "batch" or "instance", in HAP and the decoder; the backbone keeps its own.
        auxiliary_heads: give the four predictions to the loss too. They always exist, as the logits are their sum.
        checkpointing: recompute more in the backward pass; see the head of this file.
        deep_supervision: initial state of the switch.

    Shape:
        (B, input_channels, *patch_size) to (B, num_classes, *patch_size), or with the switch and `auxiliary_heads` to a
        list of five of these: the logits and the predictions of stages 1 to 4, which sum to them.

    Raises:
        ValueError: for a patch that is not 2D, both streams switched off, or an option that does not exist.
    """

    served_dims: ClassVar[tuple[int, ...]] = (2,)
    narrow_settings: ClassVar[Mapping[str, Any]] = {
        "widths": [32, 32, 32, 32],
        "backbone_settings": {"embed_dim": [32, 32, 32, 32], "depths": [1, 1, 1, 1], "stem_width": [16, 32]},
    }

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        patch_size: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512),
        backbone: str = "maxvit_rmlp_tiny_rw_256",
        backbone_settings: Mapping[str, Any] | None = None,
        self_attention: bool = True,
        hierarchical_attention: bool = True,
        channel_attention: bool = True,
        spatial_attention: bool = True,
        channel_first: bool = True,
        calibration: bool = True,
        gate: str = "full",
        fusion: str = "joint_preservation",
        first_previous: str = "sum",
        norm: str = "batch",
        auxiliary_heads: bool = False,
        checkpointing: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("gate", gate, ("full", "spatial")),
            ("fusion", fusion, tuple(FUSIONS)),
            ("first_previous", first_previous, ("sum", "none")),
            ("norm", norm, tuple(NORMS)),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}: choose one of {', '.join(known)}.")
        if len(patch_size) != 2:
            raise ValueError(
                f"DANIE is a 2D network (its backbone is MaxViT), and the patch size {tuple(patch_size)} has "
                f"{len(patch_size)} axes: train the 2d configuration."
            )
        if len(widths) != len(STRIDES):
            raise ValueError(f"DANIE has {len(STRIDES)} stages, and {tuple(widths)} are {len(widths)} widths.")
        streams = [name for name, there in (("s", self_attention), ("h", hierarchical_attention)) if there]
        if not streams:
            raise ValueError("self_attention and hierarchical_attention are both off: DANIE needs one of them.")
        self.input_channels, self.patch_size = input_channels, tuple(int(size) for size in patch_size)
        self.backbone, self.backbone_settings = backbone, dict(backbone_settings or {})
        for name in ("drop_rate", "drop_path_rate"):
            check_rate(name, self.backbone_settings.get(name, 0))
        self.widths = tuple(widths)
        self.checkpointing = checkpointing
        if self_attention:
            self.sap = _make_self_attention(
                backbone,
                self.backbone_settings,
                input_channels=input_channels,
                size=self.padded_size,
                widths=self.widths,
            )
            if checkpointing:
                _recompute_in_backbone(self.sap)
        if hierarchical_attention:
            self.hap = HierarchicalPerception(
                input_channels,
                self.widths,
                norm=norm,
                checkpointing=checkpointing,
                channel_attention=channel_attention,
                spatial_attention=spatial_attention,
                channel_first=channel_first,
                calibration=calibration,
                gate=gate,
            )
        self.decoder = Decoder(
            [
                JointPreservation(
                    width,
                    deeper,
                    streams=streams,
                    fusion=fusion,
                    first_previous=first_previous,
                    norm=norm,
                    checkpointing=checkpointing,
                )
                for width, deeper in zip(self.widths, (*self.widths[1:], None), strict=True)
            ],
            [nn.Conv2d(width, num_classes, 1) for width in self.widths],
            lists_maps=auxiliary_heads,
            deep_supervision=deep_supervision,
        )
        self.output_strides = ((1, 1),) * (1 + len(STRIDES) if auxiliary_heads else 1)

    @property
    def padded_size(self) -> tuple[int, ...]:
        """Pixels per axis that the network computes on: the next multiple of 32, and at least 64."""
        return tuple(max(SMALLEST_SIZE, -(-size // STRIDES[-1]) * STRIDES[-1]) for size in self.patch_size)

    @classmethod
    def settings_from_plan(cls, geometry: Geometry) -> dict[str, Any]:
        """Take the patch size, and nothing else: strides and widths are those of the backbone's published weights."""
        return {"patch_size": geometry.patch_size}

    def parameters_without_weight_decay(self) -> set[str]:
        """Name ES's lambda, the calibration, and the backbone's layer scales and tables or maps of positions."""
        learned = re.compile(r"\.(es\.scale|calibration|gamma|rel_pos\.mlp\..*|relative_position_bias_table)$")
        return {name for name, _ in self.named_parameters() if learned.search(name)}

    def parts_to_compile(self) -> Sequence[Callable[..., Any]]:
        """Return timm's convolutions and attentions, those of a stage equal, and the stages of HAP and the decoder.

        With checkpointing, whose regions are timm's whole blocks, the network is one part.
        """
        if self.checkpointing:
            return (self.forward,)
        modules: list[nn.Module] = list(self.decoder.blocks)
        if hasattr(self, "hap"):
            modules += [self.hap.embedding, *self.hap.stages]
        if hasattr(self, "sap"):
            stages = (getattr(self.sap, f"stages_{number}") for number in range(len(STRIDES)))
            modules += [
                cast(nn.Module, self.sap.stem),
                *(part for stage in stages for block in stage.blocks for part in block.children()),
            ]
        return tuple(module.forward for module in modules)

    def describe_stages(self) -> list[dict[str, Any]]:
        """Return one row for each stage of the two encoders."""
        window = tuple(size // STRIDES[-1] for size in self.padded_size)
        return [
            {
                "stage": number,
                "stride": stride,
                "grid": tuple(size // stride for size in self.padded_size),
                "channels": width,
                "window": window if hasattr(self, "sap") else "none",
            }
            for number, (stride, width) in enumerate(zip(STRIDES, self.widths, strict=True), start=1)
        ]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map an image (B, input_channels, *patch_size) to logits (B, num_classes, *patch_size), or a list of them."""
        self.check_size(x)
        height, width = (to - size for to, size in zip(self.padded_size, self.patch_size, strict=True))
        if height or width:
            x = F.pad(x, (0, width, 0, height))
        nothing = (None,) * len(STRIDES)
        s = self.sap(x) if hasattr(self, "sap") else nothing
        h = self.hap(x) if hasattr(self, "hap") else nothing
        return self.decoder(s, h, self.padded_size, self.patch_size)


# Constructor arguments of the paper's two networks.
PRESETS: dict[str, dict[str, Any]] = {
    "S": {"widths": (64, 128, 256, 512), "backbone": "maxvit_rmlp_tiny_rw_256"},
    "L": {"widths": (96, 192, 384, 768), "backbone": "maxxvit_rmlp_small_rw_256"},
}
