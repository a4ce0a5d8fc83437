"""The trainers, found by name; a class is imported, or a variant of it made, when it is asked for."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from nnunetv2_ext.trainers.names import closest_name, find_entry, parse_name

if TYPE_CHECKING:
    from nnunetv2_ext.trainers.base import nnUNetTrainerExt

__all__ = ["find_own_trainer", "find_trainer"]


def find_trainer(name: str) -> type | None:
    """Return the trainer class of a name, or None if this package has none of that name.

    A variant is made once and kept in this module, so that it is one object and can be pickled by name. A near miss
    (the name of one of our trainers with another spelling or suffix) prints the closest valid name to stderr.
    """
    parsed = parse_name(name)
    if parsed is None:
        suggestion = closest_name(name)
        if suggestion is not None:
            print(f"nnunetv2_ext has no trainer {name}; did you mean {suggestion}?", file=sys.stderr)
        return None
    if name in globals():
        return globals()[name]
    entry, variant = parsed
    base = getattr(importlib.import_module(entry.module), entry.name)
    if variant is None:
        return base
    from nnunetv2_ext.trainers.variants import make_variant

    trainer = make_variant(base, name, variant)
    trainer.__module__ = __name__
    globals()[name] = trainer
    return trainer


def find_own_trainer(name: str) -> type[nnUNetTrainerExt]:
    """Return a trainer class of this package, or a variant of one, by its name.

    Raises:
        UserError: if there is none; says which name was probably meant.
    """
    find_entry(name)
    trainer: Any = find_trainer(name)
    return trainer


def __getattr__(name: str) -> type:
    """Let pickle, and anyone else, import a trainer from here by its name."""
    if name.startswith("nnUNetTrainer"):
        trainer = find_trainer(name)
        if trainer is not None:
            return trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
