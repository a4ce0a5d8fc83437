"""The figure of quality against cost, and what it shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2_ext.comparison.model import Costs, Metric, Result, Summary
from nnunetv2_ext.comparison.report.figures import series_colour
from nnunetv2_ext.comparison.report.svg import new_figure, visible_text, wrap_text
from nnunetv2_ext.comparison.report.theme import LIGHT

__all__ = ["CostMeasure", "cost_measures", "draw_costs"]

_SIZE, _SMALL, _LINE = 12.0, 11.0, 16


@dataclass(frozen=True)
class CostMeasure:
    """One cost of all trainers of a dataset.

    Attributes:
        title: what it is, with its unit.
        values: number of each trainer for which it is known.
    """

    title: str
    values: dict[str, float]


def cost_measures(costs: Sequence[Costs]) -> list[CostMeasure]:
    """Return the costs that at least two trainers have, the most telling ones first, at most four."""
    measured = all(cost.memory_measured_mib is not None for cost in costs)
    memory = ("measured", "memory_measured_mib") if measured else ("predicted", "memory_predicted_mib")
    candidates = (
        ("GPU hours, all folds", "gpu_hours", 1.0),
        (f"memory of a training step in GiB, {memory[0]}", memory[1], 1 / 1024),
        ("seconds per case, inference", "inference_seconds", 1.0),
        ("parameters in millions", "parameters", 1e-6),
        ("multiply-adds in billions", "multiply_adds", 1e-9),
        ("seconds per epoch", "seconds_per_epoch", 1.0),
    )
    found = []
    for title, field, scale in candidates:
        values = {cost.trainer: scale * getattr(cost, field) for cost in costs if getattr(cost, field) is not None}
        if len(values) > 1:
            found.append(CostMeasure(title, values))
    return found[:4]


def draw_costs(
    measures: Sequence[CostMeasure], result: Result, trainers: Sequence[str], metric: Metric, width: int
) -> Figure:
    """Draw each trainer's mean with its interval over what it costs, one panel per measure; numbers are trainers."""
    columns = 2 if width > 500 and len(measures) > 1 else 1
    summaries = {summary.trainer: summary for summary in result.summaries if summary.mean is not None}
    shown = [name for name in trainers if name in summaries and any(name in measure.values for measure in measures)]
    keys = [wrap_text(visible_text(name), width - 40, _SIZE) for name in shown]
    panel_width, panel_height = width / columns, 250.0
    count = math.ceil(len(measures) / columns)
    height = count * panel_height + sum(len(lines) * _LINE + 4 for lines in keys) + 16
    figure = new_figure(width, height)
    ends = [end for name in shown for end in (*(summaries[name].ci95 or ()), summaries[name].mean or 0.0)]
    low, high = min(ends), max(ends)
    margin = 0.08 * (high - low) or 0.02
    for number, measure in enumerate(measures):
        x, y = number % columns * panel_width, number // columns * panel_height
        box = ((x + 52) / width, 1 - (y + 196) / height, (panel_width - 78) / width, 172 / height)
        axes = figure.add_axes(box)
        axes.patch.set_visible(False)
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlim(0, 1.12 * max(measure.values.values()))
        _style_axes(axes, int(panel_width // 75))
        unit = f" in {metric.unit}" if metric.unit else ""
        style: dict[str, Any] = {"color": LIGHT["soft"], "fontsize": _SMALL}
        figure.text(x / width + 4 / width, 1 - (y + 16) / height, f"{metric.name}{unit}", **style)
        centre = (x + 52 + (panel_width - 78) / 2) / width
        figure.text(centre, 1 - (y + 230) / height, measure.title, ha="center", **style)
        _draw_points(axes, measure, summaries, [name for name in shown if name in measure.values], trainers)
    y = count * panel_height + 8
    for name, lines in zip(shown, keys, strict=True):
        style = {"color": series_colour(trainers.index(name)), "weight": "bold", "ha": "right"}
        figure.text(24 / width, 1 - (y + 12) / height, str(trainers.index(name) + 1), fontsize=_SIZE, **style)
        for line in lines:
            figure.text(34 / width, 1 - (y + 12) / height, line, color=LIGHT["ink"], fontsize=_SIZE)
            y += _LINE
        y += 4
    return figure


def _style_axes(axes: Axes, ticks: int) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(LIGHT["axis"])
    axes.xaxis.set_major_locator(MaxNLocator(max(2, min(5, ticks))))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(colors=LIGHT["axis"], labelcolor=LIGHT["soft"], labelsize=_SMALL)
    axes.grid(color=LIGHT["edge"], lw=0.6)
    axes.set_axisbelow(True)
    axes.ticklabel_format(useOffset=False)


def _draw_points(
    axes: Axes, measure: CostMeasure, summaries: dict[str, Summary], shown: Sequence[str], trainers: Sequence[str]
) -> None:
    to_pixels = axes.transData.transform
    means = {name: summaries[name].mean or 0.0 for name in shown}  # those without one are not among the summaries
    places = {name: to_pixels((measure.values[name], means[name])) for name in shown}
    shifted = _apart({name: (float(x), float(y)) for name, (x, y) in places.items()}, 19.0)
    for name in shown:
        x, mean = measure.values[name], means[name]
        colour = series_colour(trainers.index(name))
        ci95 = summaries[name].ci95
        if ci95 is not None:
            axes.plot([x, x], ci95, color=colour, lw=1.6, zorder=2)
        axes.plot([x], [mean], ls="none", marker="o", ms=3.5, color=colour, zorder=3)
        at = axes.transData.inverted().transform(shifted[name])
        axes.plot([x, at[0]], [mean, at[1]], color=colour, lw=0.8, zorder=3, clip_on=False)
        axes.plot(
            [at[0]],
            [at[1]],
            ls="none",
            marker="o",
            ms=17,
            mfc=LIGHT["ground"],
            mec=colour,
            mew=1.8,
            zorder=4,
            clip_on=False,
        )
        axes.text(
            at[0], at[1], str(trainers.index(name) + 1), color=LIGHT["ink"], fontsize=_SMALL, ha="center",
            va="center_baseline", zorder=5,
        )  # fmt: skip


def _apart(places: dict[str, tuple[float, float]], distance: float) -> dict[str, tuple[float, float]]:
    """Move marks to the right, or up and down, until no two are nearer than a distance."""
    settled: dict[str, tuple[float, float]] = {}
    for name, (x, y) in places.items():
        spots = [(x, y)]
        spots += [
            (x + ring * distance * math.cos(angle), y + ring * distance * math.sin(angle))
            for ring in (1.05, 1.6, 2.2, 3.0, 4.0)
            for angle in (math.pi * step / 6 for step in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6))
        ]
        settled[name] = next(
            (spot for spot in spots if all(math.dist(spot, other) >= distance for other in settled.values())), spots[-1]
        )
    return settled
