"""How numbers are written in a report: enough digits to compare, no more than mean something."""

from __future__ import annotations

from nnunetv2_ext.comparison.model import Interval, Metric

__all__ = ["format_amount", "format_interval", "format_number", "format_p", "format_signed", "with_unit"]

NONE = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


def format_number(value: float | None, metric: Metric) -> str:
    """Return a score: four digits of a number from 0 to 1, two of a distance; a dash for none."""
    if value is None:
        return NONE
    return f"{_nothing_below_zero(value, _digits(metric)):.{_digits(metric)}f}".replace("-", _MINUS)


def format_amount(value: float | None) -> str | None:
    """Return a cost, with three digits or all before the point; `< 0.001` for less."""
    if value is None:
        return None
    if 0 < value < 0.001:
        return "< 0.001"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def format_signed(value: float | None, metric: Metric) -> str:
    """Return a difference with its sign; zero has none."""
    if value is None:
        return NONE
    text = format_number(value, metric)
    return f"+{text}" if value > 0 and float(text.replace(_MINUS, "-")) else text


def format_interval(ci95: Interval | None, metric: Metric, *, signed: bool = False) -> str:
    """Return an interval as `0.81 to 0.85`."""
    if ci95 is None:
        return NONE
    write = format_signed if signed else format_number
    return f"{write(ci95[0], metric)} to {write(ci95[1], metric)}"


def format_p(p: float | None) -> str:
    """Return a p value with three digits; `< 0.001` for less."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def with_unit(text: str, metric: Metric) -> str:
    """Return a written number with the metric's unit."""
    return f"{text} {metric.unit}" if metric.unit else text


def _digits(metric: Metric) -> int:
    return 2 if metric.unit else 4


def _nothing_below_zero(value: float, digits: int) -> float:
    """Return 0 for what would be written as -0."""
    return 0.0 if round(value, digits) == 0 else value
