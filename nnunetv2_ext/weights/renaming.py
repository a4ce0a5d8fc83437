"""Names of tensors by rules: from a network's names to those of its authors' code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

__all__ = ["Rule", "compile_rules", "rename"]

Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]


def compile_rules(rules: Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]) -> list[Rule]:
    """Compile rules of a pattern and what takes the place of what it matches, as `re.sub` has them."""
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


def rename(name: str, rules: Sequence[Rule]) -> str:
    """Apply each rule once, in order: a later one sees what an earlier one has made of the name."""
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name
