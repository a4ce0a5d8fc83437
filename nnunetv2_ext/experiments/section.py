"""Mappings of a YAML file whose keys and values are checked, each with a sentence that says what is wrong where."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from nnunetv2_ext.errors import UserError

__all__ = ["Section", "UniqueKeyLoader"]

T = TypeVar("T")


class UniqueKeyLoader(yaml.SafeLoader):
    """A loader that refuses a key that stands twice: YAML takes the last without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


class Section:
    """A mapping of the file whose keys are taken one by one, each checked."""

    def __init__(self, file: Path, content: object, allowed: Sequence[str], name: str = "") -> None:
        self.file = file
        self.name = name
        if not isinstance(content, dict):
            raise self.error("", f"must have keys: {', '.join(allowed)}")
        for key in content:
            if key not in allowed:
                place = f"in {name} " if name else ""
                raise UserError(f"{file}: {place}there is no key {key!r}; the keys are {', '.join(allowed)}.")
        self.content: dict[str, Any] = content

    def error(self, key: str, problem: str) -> UserError:
        """Return the error of a key."""
        where = ".".join(part for part in (self.name, key) if part) or "it"
        return UserError(f"{self.file}: {where} {problem}.")

    def take(self, key: str, default: T, check: Callable[[Any], T | None], wanted: str) -> T:
        """Return a value that `check` took, or the default if the key is missing.

        Args:
            key: name of the value.
            default: value where the file has none.
            check: returns the value to use, or None for a wrong one.
            wanted: what the value must be, in words.
        """
        if key not in self.content:
            return default
        found = check(self.content[key])
        if found is None:
            raise self.error(key, f"is {self.content[key]!r}, and must be {wanted}")
        return found

    def number(self, key: str, default: int, least: int = 1) -> int:
        """Return a whole number."""
        wanted = f"a whole number from {least} on"
        return self.take(key, default, lambda value: value if type(value) is int and value >= least else None, wanted)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        return self.take(key, default, lambda value: value if isinstance(value, bool) else None, "true or false")

    def words(self, key: str, pattern: str, wanted: str, *, required: bool = False) -> tuple[str, ...]:
        """Return a list of texts or numbers that fit a pattern, none of them twice."""
        if required and key not in self.content:
            raise self.error(key, f"is missing: it must be {wanted}")

        def check(value: Any) -> tuple[str, ...] | None:
            if not isinstance(value, list) or (required and not value):
                return None
            words = tuple(str(word) for word in value if type(word) in (str, int))
            fits = len(words) == len(value) and all(re.fullmatch(pattern, word) for word in words)
            return words if fits and (not required or len(set(words)) == len(words)) else None

        return self.take(key, (), check, wanted)

    def part(self, key: str, allowed: Sequence[str]) -> Section:
        """Return a mapping below a key, an empty one where it is missing."""
        content = self.content.get(key, {})
        return Section(self.file, {} if content is None else content, allowed, key)

    def switched_off(self, key: str) -> bool:
        """Return whether a step is left out by `KEY: false`."""
        return self.content.get(key) is False
