"""Candidates of nnU-Net's planner, read as the plans that they may become."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunetv2_ext.architectures.geometry import Geometry, PlannedNetwork

__all__ = ["find_data", "geometry_of", "geometry_of_plan", "size_text"]

# Keys in which two configurations must agree to share preprocessed data.
_DATA_KEYS = (
    *("preprocessor_name", "spacing", "normalization_schemes", "use_mask_for_norm"),
    *("resampling_fn_data", "resampling_fn_seg", "resampling_fn_data_kwargs", "resampling_fn_seg_kwargs"),
)


def geometry_of(
    patch_size: Sequence[int], class_name: str, arguments: dict[str, Any], imports: Iterable[str]
) -> Geometry:
    """Return the geometry of a candidate of nnU-Net's planner, as a plan with it would be read."""
    per_stage = arguments.get("n_conv_per_stage", arguments.get("n_blocks_per_stage"))
    stages = len(arguments["strides"])
    return Geometry(
        patch_size=tuple(int(size) for size in patch_size),
        strides=arguments["strides"],
        kernel_sizes=arguments["kernel_sizes"],
        features=arguments["features_per_stage"],
        n_conv_per_stage=(per_stage,) * stages if isinstance(per_stage, int) else tuple(per_stage or ()),
        network=PlannedNetwork(class_name, dict(arguments), tuple(imports)),
    )


def geometry_of_plan(plan: dict[str, Any]) -> Geometry:
    """Return the geometry of a configuration that nnU-Net's planner made."""
    network = plan["architecture"]
    return geometry_of(
        plan["patch_size"], network["network_class_name"], network["arch_kwargs"], network["_kw_requires_import"]
    )


def find_data(plan: dict[str, Any], transpose: Sequence[int], base: dict[str, Any] | None) -> str | None:
    """Return where base plans have the same data preprocessed, or None.

    Args:
        plan: a configuration of nnU-Net's planner.
        transpose: order of its axes.
        base: plans, or None.
    """
    if base is None or base["transpose_forward"] != list(transpose):
        return None
    mine = {key: plan[key] for key in _DATA_KEYS}
    recursive_fix_for_json_export(mine)
    for configuration in base["configurations"].values():
        if all(key in configuration for key in _DATA_KEYS) and "data_identifier" in configuration:
            theirs = {key: configuration[key] for key in _DATA_KEYS}
            if json.loads(json.dumps(mine)) == theirs:
                return configuration["data_identifier"]
    return None


def size_text(values: Sequence[int]) -> str:
    """Write a size for people."""
    return " x ".join(str(int(value)) for value in values)
