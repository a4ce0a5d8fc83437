"""nnU-Net's planner with the memory of the networks that will be trained, instead of that of its own U-Net."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_ext.architectures.geometry import Geometry
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.files import whole_file
from nnunetv2_ext.planning.candidates import find_data, geometry_of, geometry_of_plan, size_text
from nnunetv2_ext.planning.memory import GIBIBYTE
from nnunetv2_ext.planning.search import MOST_WASTE, Affordable, Refused

__all__ = ["CASCADE", "LEAST_BATCH", "MemoryPlanner"]

CASCADE = "3d_cascade_fullres"
LEAST_BATCH = 2
# nnU-Net's loop has no end of its own: below this edge a patch is too small for any network.
SMALLEST_EDGE = 8
# A patch that wastes less is taken if it has at least this share of the largest one's voxels.
LEAST_SHARE = 0.5


class MemoryPlanner(ExperimentPlanner):
    """nnU-Net's planning rules, with a test of each patch against a memory target.

    nnU-Net shrinks a patch until its estimate meets a reference. Here the estimate is 0 for a patch that fits and
    infinite for one that does not; spacing, aspect ratio, poolings and the largest batch are nnU-Net's.

    Args:
        dataset: name or number, as nnU-Net takes it.
        affordable: networks, and the target.
        plans_name: name of the plans to write.
        base: plans whose preprocessed data are used where they agree; None if there are none.
        configurations: to plan; all that the networks serve if empty.
    """

    def __init__(
        self,
        dataset: str,
        affordable: Affordable,
        plans_name: str,
        base: dict[str, Any] | None = None,
        configurations: Sequence[str] = (),
    ) -> None:
        super().__init__(int(dataset) if dataset.isdigit() else dataset, affordable.target, plans_name=plans_name)
        labels = LabelManager(self.dataset_json["labels"], self.dataset_json.get("regions_class_order"))
        affordable.num_classes, affordable.regions = labels.num_segmentation_heads, labels.has_regions
        self.affordable = affordable
        self.base = base
        self.wanted = tuple(configurations)
        self.notes: list[str] = []
        self.one_hot_channels = len(labels.foreground_labels)
        # The reference is 1 for each dimension, so that an estimate of 0 fits and an infinite one does not.
        self.UNet_reference_val_3d = self.UNet_reference_val_2d = 1
        self.UNet_vram_target_GB = self.UNet_reference_val_corresp_GB
        self.UNet_min_batch_size = LEAST_BATCH
        self._accepts: Callable[[Geometry, int], bool] = lambda geometry, channels: True
        self._first: Geometry | None = None
        self._extra_channels = 0
        # nnU-Net plans the low resolution many times, at one spacing after another; the last one is planned again.
        self._lowres = self.generate_data_identifier("3d_lowres")
        self._last = False

    def plan_experiment(self) -> dict[str, Any]:
        """Plan, without nnU-Net's reports."""
        with contextlib.redirect_stdout(io.StringIO()):
            return super().plan_experiment()

    def serves(self, dims: int) -> bool:
        """Return whether all networks serve a dimension."""
        return all(dims in network.dims for network in self.affordable.networks)

    def _wants(self, dims: int) -> bool:
        return any((name == "2d") == (dims == 2) for name in self.wanted)

    def static_estimate_VRAM_usage(  # noqa: N802
        self,
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict[str, Any],
        arch_kwargs_req_import: Iterable[str],
    ) -> float:
        """Return next to nothing for a patch that fits and infinity for one that does not."""
        geometry = geometry_of(patch_size, arch_class_name, arch_kwargs, arch_kwargs_req_import)
        if self._first is None:
            self._first = geometry
        # Near 0 and not 0: nnU-Net divides by it, and its largest batch comes out.
        return 1e-12 if self._accepts(geometry, input_channels + self._extra_channels) else math.inf

    def _super_plan(
        self, arguments: tuple, accepts: Callable[[Geometry, int], bool], shape: Sequence[float] | None = None
    ) -> tuple[dict[str, Any], Geometry]:
        """Let nnU-Net plan with a test of its patches; return the plan and the first patch that it tried."""
        spacing, median_shape, identifier, voxels, _ = arguments
        self._accepts, self._first = accepts, None
        plan = super().get_plans_for_configuration(
            spacing, median_shape if shape is None else np.array(shape), identifier, voxels, {}
        )
        plan["median_image_size_in_voxels"] = median_shape
        first = self._first
        assert first is not None  # nnU-Net has estimated one patch at least.
        return plan, first

    def get_plans_for_configuration(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Plan a configuration: the largest patch that fits, then the largest batch."""
        spacing, median_shape, identifier, voxels, cache = (*arguments, *named.values())
        given = (spacing, median_shape, identifier, voxels, cache)
        dims = len(spacing)
        self.affordable.exact = identifier != self._lowres or self._last
        if not self.serves(dims) or (self.wanted and not self._wants(dims)):
            # It is taken out of the plans afterwards.
            return self._super_plan(given, lambda geometry, channels: True)[0]
        channels = len(self.dataset_json.get("channel_names", self.dataset_json.get("modality", {})))
        channels += self._extra_channels

        def fits(geometry: Geometry, of_channels: int) -> bool:
            if self.affordable.fits(geometry, of_channels, LEAST_BATCH):
                return True
            if max(geometry.patch_size) <= SMALLEST_EDGE:
                raise UserError(self._describe_failure(geometry, of_channels, identifier))
            return False

        plan, first = self._super_plan(given, fits)
        plan = self._grow(given, plan, first, fits, channels)
        plan = self._fill(given, plan, fits, channels)
        geometry = geometry_of_plan(plan)
        plan["batch_size"] = self.affordable.largest_batch(geometry, channels, LEAST_BATCH, int(plan["batch_size"]))
        transpose = [int(axis) for axis in self.determine_transpose()[0]]
        plan["data_identifier"] = find_data(plan, transpose, self.base) or identifier
        return plan

    def _grow(
        self,
        given: tuple,
        plan: dict[str, Any],
        first: Geometry,
        fits: Callable[[Geometry, int], bool],
        channels: int,
    ) -> dict[str, Any]:
        """Enlarge the longest axis that may grow, step by step, as long as the patch fits."""
        while True:
            geometry = geometry_of_plan(plan)
            larger = self._larger(given, geometry, first)
            if larger is None or not fits(geometry_of_plan(larger), channels):
                return plan
            plan = larger

    def _larger(self, given: tuple, geometry: Geometry, first: Geometry) -> dict[str, Any] | None:
        """Return nnU-Net's plan for the next patch: one step more along the longest axis that may grow."""
        for axis in sorted(range(geometry.spatial_dims), key=lambda index: -geometry.patch_size[index]):
            size, limit = geometry.patch_size[axis], first.patch_size[axis]
            step = geometry.cumulative_strides[-1][axis]
            while size + step <= limit:
                shape = list(geometry.patch_size)
                shape[axis] = size + step
                plan, _ = self._super_plan(given, lambda *_: True, shape)
                grown = tuple(plan["patch_size"])
                # With more poolings nnU-Net rounds all axes anew.
                if grown[axis] > geometry.patch_size[axis] and math.prod(grown) > math.prod(geometry.patch_size):
                    return plan
                step += geometry.cumulative_strides[-1][axis]
        return None

    def _fill(
        self, given: tuple, plan: dict[str, Any], fits: Callable[[Geometry, int], bool], channels: int
    ) -> dict[str, Any]:
        """Take a smaller patch that the networks fill, if there is one and padding would be a large share."""
        geometry = geometry_of_plan(plan)
        waste = self.affordable.waste(geometry, channels)
        if waste <= MOST_WASTE:
            return plan
        least = LEAST_SHARE * math.prod(geometry.patch_size)

        def fills(candidate: Geometry, of_channels: int) -> bool:
            if math.prod(candidate.patch_size) < least:
                return True
            if (
                candidate.patch_size == geometry.patch_size
                or self.affordable.waste(candidate, of_channels) > MOST_WASTE
            ):
                return False
            return fits(candidate, of_channels)

        other, _ = self._super_plan(given, fills, geometry.patch_size)
        found = geometry_of_plan(other)
        old, new = size_text(geometry.patch_size), size_text(found.patch_size)
        if math.prod(found.patch_size) < least or self.affordable.waste(found, channels) > MOST_WASTE:
            self.notes.append(f"{given[2]}: windows pad patch {old} by {waste:.0%}; no smaller patch is better.")
            return plan
        self.notes.append(f"{given[2]}: patch {old} fits too, but windows pad it by {waste:.0%}; {new} is taken.")
        return other

    def _describe_failure(self, geometry: Geometry, channels: int, identifier: str) -> str:
        try:
            needed = self.affordable.total(geometry, channels, LEAST_BATCH) / GIBIBYTE
        except Refused as refused:
            return f"No patch serves {identifier}: {refused}"
        names = ", ".join(network.name for network in self.affordable.networks)
        return (
            f"No patch of {identifier.removeprefix(self.plans_identifier + '_')} meets {self.affordable.target:g} GB "
            f"with {names}: even patch {size_text(geometry.patch_size)} with a batch of {LEAST_BATCH} takes "
            f"{needed:.1f} GB; give a larger -gpu_memory_target."
        )

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Drop what the networks do not serve or nobody asked for, fit the cascade, and write the plans whole."""
        configurations = plans["configurations"]
        for name in list(configurations):
            dims = 2 if name == "2d" else 3
            if not self.serves(dims):
                del configurations[name]
        missing = [name for name in self.wanted if name not in configurations]
        if missing:
            raise UserError(
                f"{self.dataset_name} gets no configuration {missing[0]!r} with this target; there are "
                f"{', '.join(configurations)}."
            )
        kept = set(self.wanted or configurations)
        if CASCADE in kept:
            kept |= {"3d_fullres", "3d_lowres"}
        for name in set(configurations) - kept:
            del configurations[name]
        self._last = True
        if "3d_lowres" in configurations:
            self._plan_lowres(configurations["3d_lowres"])
        if CASCADE in configurations:
            self._fit_cascade(plans)
        elif "3d_lowres" in configurations:
            configurations["3d_lowres"].pop("next_stage", None)
        plans["experiment_planner_used"] = self.base_planner
        plans["planned_for"] = {
            "trainers": [network.name for network in self.affordable.networks],
            "gpu_memory_target_in_gb": self.affordable.target,
        }
        recursive_fix_for_json_export(plans)
        with whole_file(self.path) as partial:
            partial.write_text(json.dumps(plans, indent=4), encoding="utf-8")

    base_planner = ExperimentPlanner.__name__

    @property
    def path(self) -> Path:
        """File of the plans."""
        from nnunetv2.paths import nnUNet_preprocessed

        return Path(str(nnUNet_preprocessed)) / self.dataset_name / f"{self.plans_identifier}.json"

    def _voxels(self, plan: dict[str, Any]) -> float:
        return float(np.prod(plan["median_image_size_in_voxels"], dtype=np.float64) * self.dataset_json["numTraining"])

    def _plan_lowres(self, plan: dict[str, Any]) -> None:
        """Plan the spacing on which nnU-Net settled with whole predictions."""
        shape = plan["median_image_size_in_voxels"]
        plan.update(self.get_plans_for_configuration(plan["spacing"], shape, self._lowres, self._voxels(plan), {}))

    def _fit_cascade(self, plans: dict[str, Any]) -> None:
        """Plan sizes of its own for the cascade, whose input has more channels, if it needs them."""
        full = plans["configurations"]["3d_fullres"]
        channels = len(full["normalization_schemes"]) + self.one_hot_channels
        geometry = geometry_of_plan(full)
        if self.affordable.fits(geometry, channels, int(full["batch_size"])):
            return
        self._extra_channels = self.one_hot_channels
        shape = full["median_image_size_in_voxels"]
        own = self.get_plans_for_configuration(full["spacing"], shape, full["data_identifier"], self._voxels(full), {})
        self._extra_channels = 0
        cascade = plans["configurations"][CASCADE]
        cascade.update({key: own[key] for key in ("patch_size", "batch_size", "architecture")})
