"""Lists of tensors' names, short enough to be read."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["group_names", "list_some"]

_MOST_NAMED = 8


def list_some(names: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def group_names(names: Iterable[str]) -> list[str]:
    """Sum tensors up by the first two parts of their names, which are too many to be listed."""
    counts: dict[str, int] = {}
    for name in names:
        group = ".".join(name.split(".")[:2])
        counts[group] = counts.get(group, 0) + 1
    return [f"{group} ({count})" for group, count in counts.items()]
