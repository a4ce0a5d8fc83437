"""The authors' DCA: their settings and the names of their tensors.

On the planned network, a checkpoint of the authors can mean the module's tensors alone: none of their networks is one
that nnU-Net plans. They are taken from a checkpoint of the module, or out of one of a network with DCA.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from nnunetv2_ext.architectures.dca import DCA, ChannelCrossAttention, DualAttentionBlock, SpatialCrossAttention
from nnunetv2_ext.architectures.dca_planned import DCAPlannedNetwork
from nnunetv2_ext.weights.authors import AuthorsSystem
from nnunetv2_ext.weights.renaming import compile_rules, rename

__all__ = ["MODULE", "STATISTICS", "SYSTEM", "authors_name", "build", "find_other_stages"]

# Where the authors' networks hold the module.
MODULE = "DCA."
# Norms of a planned network keep no statistics.
STATISTICS = r"\.(running_mean|running_var|num_batches_tracked)$"

_RENAMED = compile_rules(
    (
        (r"^token_projections\.(\d+)\.", r"avg_map.\1.proj.depthwise."),
        (r"^blocks\.(\d+)\.", r"attention.\1."),
        (r"(^|\.)channel_norms\.", r"\1channel_norm."),
        (r"(^|\.)channel_attentions\.", r"\1c_attention."),
        (r"(^|\.)spatial_norms\.", r"\1spatial_norm."),
        (r"(^|\.)spatial_attentions\.", r"\1s_attention."),
        (r"(^|\.)query\.", r"\1q_map.proj.depthwise."),
        (r"(^|\.)key\.", r"\1k_map.proj.depthwise."),
        (r"(^|\.)value\.", r"\1v_map.proj.depthwise."),
        (r"(^|\.)out\.", r"\1projection.proj.depthwise."),
        (r"^updates\.(\d+)\.mix\.", r"upconvs.\1.conv.conv."),
        (r"^updates\.(\d+)\.norm\.", r"bn_relu.\1.0."),
    )
)


def authors_name(name: str) -> str:
    """Return the name that the authors' code has for a tensor of `DCA` or of one of its modules."""
    return rename(name, _RENAMED)


def build(config: Mapping[str, Any]) -> nn.Module:
    """Build the module that an authors' configuration describes: DCA, one block, or one attention of one stage.

    DCA and the block take and return a list, one entry per stage; CCA takes tokens and context, SCA context and tokens.

    Raises:
        ValueError: if `config["module"]` is none of these.
        KeyError: if a setting is missing.
    """
    module = config["module"]
    if module == "cca":
        return ChannelCrossAttention(
            channels=config["features"][0],
            total_channels=config["total_features"],
            num_heads=config["channel_heads"][0],
        )
    if module == "sca":
        return SpatialCrossAttention(
            channels=config["features"][0],
            total_channels=config["total_features"],
            num_heads=config["spatial_heads"][0],
        )
    if module not in ("block", "dca"):
        raise ValueError(f"DCA has no part of kind {module!r}; there are dca, block, cca and sca.")
    settings = {
        key: config[key] for key in ("channel_heads", "spatial_heads", "channel_attention", "spatial_attention")
    }
    if module == "block":
        return DualAttentionBlock(channels=config["features"], **settings)
    return DCA(
        channels=config["features"],
        spatial_dims=config["dim"],
        token_grid=config["token_grid"],
        n_blocks=config["n_blocks"],
        **settings,
    )


def find_other_stages(stages: int, tensors: Mapping[str, Tensor]) -> str | None:
    """Return the reason why a module for so many stages cannot take the authors' tensors, if that is the reason."""
    given = len(
        {name for name in tensors if re.match(re.escape(MODULE) + r"avg_map\.\d+\.proj\.depthwise\.weight$", name)}
    )
    if given in (0, stages):
        return None
    return (
        f"its DCA reads {given} stages, and that of this configuration {stages}, because of its patch size and poolings"
    )


def _naming(network: nn.Module) -> Callable[[str], str]:
    if not isinstance(network, DCAPlannedNetwork):
        return authors_name
    prefix = "dca."
    return lambda name: MODULE + authors_name(name.removeprefix(prefix)) if name.startswith(prefix) else name


def _misfit(network: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    return find_other_stages(len(network.dca.channels), tensors) if isinstance(network, DCAPlannedNetwork) else None


SYSTEM = AuthorsSystem(
    build=build,
    naming=_naming,
    module=MODULE,
    # All that is not the module, and its statistics.
    replaced=re.compile(rf"^(?!{re.escape(MODULE)})|{STATISTICS}"),
    added=re.compile(r"^(?!dca\.)"),
    misfit=_misfit,
)
