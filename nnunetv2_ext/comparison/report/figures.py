"""The figures of a report, each in two widths: names stand left of the rows in the wide one, above them in the narrow.

All coordinates are pixels of the page, counted from the upper left corner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.ticker import MaxNLocator

from nnunetv2_ext.comparison.model import Metric, Pair, Ranking, Result, Summary
from nnunetv2_ext.comparison.report.numbers import format_number, format_signed
from nnunetv2_ext.comparison.report.svg import fit_text, new_figure, visible_text, wrap_text
from nnunetv2_ext.comparison.report.theme import LIGHT, N_SERIES

__all__ = [
    "NARROW",
    "WIDE",
    "describe_differences",
    "describe_means",
    "draw_cases",
    "draw_differences",
    "draw_ranks",
    "series_colour",
]

WIDE, NARROW = 760, 340
_SIZE, _SMALL, _LINE = 12.0, 11.0, 16
_BESIDE = 500  # from this width on names stand beside the rows
_EDGE = 18  # right and left of an axis, for half of its last number
_SIGNIFICANT = 0.05


def series_colour(index: int) -> str:
    """Return the colour of the trainer with this number."""
    return LIGHT[f"series-{index % N_SERIES + 1}"]


@dataclass(frozen=True)
class _Rows:
    """A figure with one band per row, and an axis below them.

    Attributes:
        figure: figure of this width.
        axes: its y are pixels from the top.
        centres: y of each band.
        band: height of the part of a row in which nothing but marks is.
        left: x at which the axis begins.
        bottom: y at which the axis is.
        width: width of the figure.
    """

    figure: Figure
    axes: Axes
    centres: list[float]
    band: int
    left: float
    bottom: float
    width: int

    def write(self, x: float, y: float, text: str, *, colour: str = "ink", size: float = _SMALL, **style: Any) -> None:
        """Write a text at a position of the figure."""
        height = self.figure.get_figheight() * self.figure.dpi
        self.figure.text(x / self.width, 1 - y / height, text, color=LIGHT[colour], fontsize=size, **style)

    def draw_upright(self, x: float, *, colour: str, lw: float, zorder: float) -> None:
        """Draw a line from top to bottom that spares the names."""
        beside = self.width > _BESIDE
        spans = [(centre - self.band / 2, centre + self.band / 2) for centre in self.centres]
        for top, bottom in [(spans[0][0], self.bottom)] if beside else spans:
            self.axes.plot([x, x], [top, bottom], color=LIGHT[colour], lw=lw, zorder=zorder, solid_capstyle="butt")


def _make_rows(labels: Sequence[Sequence[str]], width: int, *, band: int, top: int, axis: str) -> _Rows:
    """Lay out the rows, and write their names, whose parts begin new lines."""
    beside = width > _BESIDE
    left = 0.36 * width if beside else _EDGE
    room = left - 24 if beside else width - 8
    texts = [[line for part in label for line in wrap_text(visible_text(part), room, _SIZE)] for label in labels]
    centres, y, starts = [], float(top), []
    for lines in texts:
        tall = len(lines) * _LINE
        if beside:
            height = max(band, tall + 8)
            starts.append(y + (height - tall) / 2)
            centres.append(y + height / 2)
        else:
            height = tall + band
            starts.append(y)
            centres.append(y + tall + band / 2)
        y += height
    figure = new_figure(width, y + 44)
    axes = figure.add_axes((left / width, 0, (width - left - _EDGE) / width, 1))
    axes.set_ylim(y + 44, 0)
    axes.set_axis_off()
    rows = _Rows(figure, axes, centres, band, left, y, width)
    for number, (lines, start) in enumerate(zip(texts, starts, strict=True)):
        for i, line in enumerate(lines):
            rows.write(
                left - 14 if beside else 4, start + i * _LINE + 12, line, size=_SIZE,
                ha="right" if beside else "left", zorder=5,
            )  # fmt: skip
        if beside and number % 2 == 0:
            high = max(band, len(lines) * _LINE + 8)
            stripe = (0, centres[number] - high / 2)
            across = axes.get_yaxis_transform()
            axes.add_patch(Rectangle(stripe, 1, high, transform=across, color=LIGHT["raised"], lw=0, zorder=0))
    middle = left + (width - left - _EDGE) / 2 if beside else width / 2
    rows.write(middle, y + 38, fit_text(axis, width - 2 * _EDGE, _SMALL), colour="soft", ha="center")
    return rows


def _draw_axis(rows: _Rows, low: float, high: float, write: Callable[[float], str] | None = None) -> None:
    """Set the range of the axis and draw it below the rows, with its numbers."""
    axes = rows.axes
    room = rows.width - rows.left - _EDGE
    ticks = MaxNLocator(max(2, min(7, int(room // 70)))).tick_values(low, high)
    axes.set_xlim(low, high)
    step = ticks[1] - ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if digits and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    axes.plot([low, high], [rows.bottom, rows.bottom], color=LIGHT["axis"], lw=1, clip_on=False)
    for value in ticks:
        if low - 1e-12 <= value <= high + 1e-12:
            axes.plot([value, value], [rows.bottom, rows.bottom + 4], color=LIGHT["axis"], lw=1, clip_on=False)
            rows.draw_upright(value, colour="edge", lw=0.6, zorder=0.5)
            text = write(value) if write else f"{value + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")
            axes.text(value, rows.bottom + 17, text, color=LIGHT["soft"], fontsize=_SMALL, ha="center")


def draw_differences(pairs: Sequence[Pair], metric: Metric, width: int) -> Figure:
    """Draw the paired differences with their intervals, one row per pair: a forest plot.

    Filled marks are of pairs whose p is below 0.05 after Holm's correction.
    """
    labels = [(pair.a, f"\N{MINUS SIGN} {pair.b}") for pair in pairs]
    unit = f" in {metric.unit}" if metric.unit else ""
    rows = _make_rows(labels, width, band=34, top=30, axis=f"difference of {metric.name}{unit}, mean and 95 % interval")
    known = [pair for pair in pairs if pair.difference is not None and pair.ci95 is not None]
    reach = (
        max([abs(end) for pair in known for end in (*(pair.ci95 or ()), pair.difference or 0.0)], default=0.0) or 0.01
    )
    _draw_axis(rows, -1.12 * reach, 1.12 * reach)
    axes = rows.axes
    rows.draw_upright(0, colour="axis", lw=1.2, zorder=1)
    right, left = ("first is better", "second is better")[:: 1 if metric.higher_is_better else -1]
    half = (rows.width - rows.left - _EDGE) / 2
    rows.write(rows.left + half - 10, 16, f"\N{LEFTWARDS ARROW} {left}", colour="soft", ha="right")
    rows.write(rows.left + half + 10, 16, f"{right} \N{RIGHTWARDS ARROW}", colour="soft", ha="left")
    for pair, y in zip(pairs, rows.centres, strict=True):
        if pair.difference is None or pair.ci95 is None:
            axes.text(0, y, "no common case", color=LIGHT["soft"], fontsize=_SMALL, ha="center", va="center")
            continue
        significant = pair.p_holm is not None and pair.p_holm < _SIGNIFICANT
        better = (pair.difference > 0) == metric.higher_is_better
        colour = LIGHT[("good" if better else "bad") if significant else "soft"]
        axes.plot(pair.ci95, [y, y], color=colour, lw=2.2, solid_capstyle="butt", zorder=3)
        for end in pair.ci95:
            axes.plot([end, end], [y - 4, y + 4], color=colour, lw=1.6, zorder=3)
        face = colour if significant else LIGHT["ground"]
        axes.plot([pair.difference], [y], ls="none", marker="D", ms=8, mfc=face, mec=colour, mew=1.8, zorder=4)
    return rows.figure


def draw_cases(result: Result, trainers: Sequence[str], metric: Metric, width: int) -> Figure:
    """Draw each case as a dot per trainer, joined by lines; diamonds are the means with their intervals."""
    shown = [name for name in trainers if name in result.values]
    unit = f" in {metric.unit}" if metric.unit else ""
    units = "case" if result.dataset is not None else "dataset"
    rows = _make_rows(
        [[name] for name in shown], width, band=52, top=8, axis=f"{metric.name}{unit}, one dot per {units}"
    )
    values = [result.values[name] for name in shown]
    known = [value for row in values for value in row if math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.02
    _draw_axis(rows, low - margin, high + margin)
    axes, many = rows.axes, len(result.units) > 60
    lines: list[tuple[float, float]] = []
    codes: list[int] = []
    for unit_values in zip(*values, strict=True):
        joined = [(value, y) for value, y in zip(unit_values, rows.centres, strict=True) if math.isfinite(value)]
        lines += joined
        codes += [int(Outline.MOVETO), *[int(Outline.LINETO)] * (len(joined) - 1)] if joined else []
    if lines:
        _draw_path(axes, lines, codes, color=LIGHT["axis"], lw=0.7, alpha=0.3 if many else 0.55, zorder=1)
    summaries = {summary.trainer: summary for summary in result.summaries}
    for name, row, y in zip(shown, values, rows.centres, strict=True):
        colour = series_colour(trainers.index(name))
        dots = [value for value in row if math.isfinite(value)]
        if dots:
            # A line without length has round ends: one short path in place of many marks.
            points = [(value, y) for value in dots for _ in range(2)]
            codes = [int(Outline.MOVETO), int(Outline.LINETO)] * len(dots)
            width_of_dot, alpha = (4.5, 0.55) if many else (6.5, 0.75)
            _draw_path(axes, points, codes, color=colour, lw=width_of_dot, capstyle="round", alpha=alpha, zorder=2)
        _draw_mean(axes, summaries[name], y + 17)
    return rows.figure


def _draw_path(axes: Axes, points: list[tuple[float, float]], codes: list[int], **style: Any) -> None:
    outline = Outline(points, codes)
    outline.should_simplify = False  # lines without length are dots
    axes.add_patch(PathPatch(outline, fill=False, **style))


def _draw_mean(axes: Axes, summary: Summary, y: float) -> None:
    if summary.mean is None:
        return
    if summary.ci95 is not None:
        axes.plot(summary.ci95, [y, y], color=LIGHT["ink"], lw=2, solid_capstyle="butt", zorder=4)
    axes.plot(
        [summary.mean], [y], ls="none", marker="D", ms=6.5, mfc=LIGHT["ground"], mec=LIGHT["ink"], mew=1.6, zorder=5
    )


def draw_ranks(ranking: Ranking, trainers: Sequence[str], width: int) -> Figure:
    """Draw how often each trainer came first, second, ...: the areas of the discs are the shares of the samples."""
    shown = [name for name in trainers if name in ranking.frequencies]
    names = [[name] for name in shown]
    rows = _make_rows(names, width, band=48, top=8, axis="rank in the samples drawn again (1 is best)")
    count = len(shown)
    _draw_axis_of_ranks(rows, count)
    room = (rows.width - rows.left - _EDGE) / count
    largest = min(14.0, room / 2 - 1)
    for name, y in zip(shown, rows.centres, strict=True):
        colour = series_colour(trainers.index(name))
        for place, share in enumerate(ranking.frequencies[name], start=1):
            if share <= 0:
                continue
            rows.axes.plot(
                [place],
                [y - 5],
                ls="none",
                marker="o",
                ms=max(2 * largest * math.sqrt(share), 1.5),
                color=colour,
                mew=0,
                zorder=3,
            )
            if share >= 0.005:
                rows.axes.text(
                    place, y + 20, f"{100 * share:.0f} %", color=LIGHT["ink"], fontsize=min(_SMALL, room / 3.2),
                    ha="center",
                )  # fmt: skip
    return rows.figure


def _draw_axis_of_ranks(rows: _Rows, count: int) -> None:
    axes = rows.axes
    axes.set_xlim(0.5, count + 0.5)
    axes.plot([0.5, count + 0.5], [rows.bottom, rows.bottom], color=LIGHT["axis"], lw=1, clip_on=False)
    for place in range(1, count + 1):
        axes.plot([place, place], [rows.bottom, rows.bottom + 4], color=LIGHT["axis"], lw=1, clip_on=False)
        axes.text(place, rows.bottom + 17, str(place), color=LIGHT["soft"], fontsize=_SMALL, ha="center")


def describe_differences(pairs: Sequence[Pair], metric: Metric) -> str:
    """Describe in words what `draw_differences` shows."""
    shown = [
        f"{pair.a} minus {pair.b}: {format_signed(pair.difference, metric)}"
        f" (95 % interval {format_signed(pair.ci95[0], metric)} to {format_signed(pair.ci95[1], metric)})"
        for pair in pairs
        if pair.difference is not None and pair.ci95 is not None
    ]
    return f"Mean paired differences of {metric.name}. {'; '.join(shown)}."


def describe_means(result: Result, metric: Metric) -> str:
    """Describe in words what the means and the ranges of the cases are."""
    parts = []
    for summary in result.summaries:
        values = [value for value in result.values.get(summary.trainer, ()) if math.isfinite(value)]
        if summary.mean is not None and values:
            parts.append(
                f"{summary.trainer}: mean {format_number(summary.mean, metric)}, from "
                f"{format_number(min(values), metric)} to {format_number(max(values), metric)}"
            )
    return f"{metric.name}. {'; '.join(parts)}."
