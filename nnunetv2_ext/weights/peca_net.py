"""The authors' PECA-Net: their settings and the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from nnunetv2_ext.architectures.peca_net import PairedAttention, ParallelInteraction, PECANet
from nnunetv2_ext.weights.authors import AuthorsSystem
from nnunetv2_ext.weights.renaming import compile_rules, rename

__all__ = ["SYSTEM", "authors_name", "build"]


# Each rule is tried once, in this order: places in the network first, then names inside a module.
_RENAMED = compile_rules(
    (
        (r"^encoder\.stages\.(\d+)\.downsample\.0\.", r"unetr_pp_encoder.downsample_layers.\1.0.conv."),
        (r"^encoder\.stages\.(\d+)\.downsample\.1\.", r"unetr_pp_encoder.downsample_layers.\1.1."),
        (r"^encoder\.stages\.(\d+)\.blocks\.(\d+)\.", r"unetr_pp_encoder.stages.\1.\2."),
        (r"^decoder\.stages\.(\d+)\.upsample\.", lambda match: f"decoder{5 - int(match[1])}.transp_conv.conv."),
        (r"^decoder\.stages\.(\d+)\.blocks\.", lambda match: f"decoder{5 - int(match[1])}.decoder_block.0."),
        (r"^decoder\.upsample\.", "decoder2.transp_conv.conv."),
        (r"^decoder\.output_block\.", "decoder2.decoder_block.0."),
        (r"^decoder\.input_skip\.", "encoder1."),
        (r"^decoder\.seg_layers\.0\.", "out1.conv.conv."),
        (r"^decoder\.seg_layers\.(\d+)\.", lambda match: f"out{int(match[1]) + 1}."),
        (r"(^|\.)layer_scale$", r"\1gamma"),
        (r"(^|\.)position$", r"\1pos_embed"),
        (r"(^|\.)convs\.(\d+)\.", lambda match: f"{match[1]}conv5{int(match[2]) + 1}."),
        (r"\.(conv[123])\.weight$", r".\1.conv.weight"),
        (r"(^|\.)mix\.", r"\1conv8.1."),
        (r"(^|\.)attention\.", r"\1PEA_PCA."),
        (r"(^|\.)key_memory$", r"\1M_k"),
        (r"(^|\.)channel_memory$", r"\1M_v_CA"),
        (r"(^|\.)spatial_memory$", r"\1M_v_SA"),
        (r"(^|\.)channel_temperature$", r"\1temperature"),
        (r"(^|\.)spatial_temperature$", r"\1temperature2"),
        (r"(^|\.)query\.", r"\1qkvv."),
        (r"(^|\.)key_projection\.", r"\1E."),
        (r"(^|\.)spatial_out\.", r"\1out_proj."),
        (r"(^|\.)channel_out\.", r"\1out_proj2."),
        (r"(^|\.)spatial_gate_in\.", r"\1out_proj3."),
        (r"(^|\.)channel_gate_in\.", r"\1out_proj4."),
        (r"(^|\.)spatial_gate\.", r"\1sSE.Conv1x1."),
        (r"(^|\.)channel_squeeze\.", r"\1cSE.Conv_Squeeze."),
        (r"(^|\.)channel_excite\.", r"\1cSE.Conv_Excitation."),
    )
)


def authors_name(name: str) -> str:
    """Return the name that the authors' code has for a tensor of `PECANet` or of one of its modules."""
    return rename(name, _RENAMED)


def build(config: Mapping[str, Any]) -> nn.Module:
    """Build the module that an authors' configuration describes: the network, one PIM, or the attention layer alone.

    Raises:
        ValueError: if `config["kind"]` is none of these.
        KeyError: if a setting is missing.
    """

    def pick(*keys: str) -> dict[str, Any]:
        return {key: config[key] for key in keys}

    kind = config.get("kind", "network")
    if kind == "network":
        return PECANet(
            **pick("input_channels", "num_classes", "patch_size", "stem_stride", "stage_strides", "feature_size"),
            **pick("depths", "decoder_depth", "num_heads", "proj_size", "decoder_proj_size", "conv_blocks"),
            **pick("attention_dropout", "conv_dropout"),
            head_kernels=config.get("ds_head_kernels") or (),
            auxiliary_heads=bool(config.get("ds_head_kernels")),
            deep_supervision=config.get("deep_supervision", False),
        )
    if kind == "pim":
        return ParallelInteraction(
            channels=config["hidden_size"],
            **pick("grid", "num_heads", "proj_size", "conv_blocks", "attention_dropout", "conv_dropout"),
        )
    if kind == "pea":
        return PairedAttention(
            channels=config["hidden_size"],
            dropout=config["attention_dropout"],
            **pick("tokens", "num_heads", "proj_size"),
        )
    raise ValueError(f"PECA-Net has no part of kind {kind!r}; there are network, pim and pea.")


SYSTEM = AuthorsSystem(
    build=build,
    naming=lambda _network: authors_name,
    segmentation_layers=re.compile(r"^out\d+\."),
)
