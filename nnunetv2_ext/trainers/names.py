"""The grammar of trainer names: a base name of the catalog and, in fixed order, what a variant changes.

`BASE[_<N>epochs][_<N>iters][_lr<M>en<E>][_bs<N>][_NoMirroring][_noAMP]`, for example
`nnUNetTrainerPECANet_250epochs_lr3en4`. Importing this module imports nothing heavy.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from nnunetv2_ext.catalog import BASELINE, TRAINERS, TrainerEntry
from nnunetv2_ext.errors import UserError

__all__ = ["GRAMMAR", "Variant", "closest_name", "find_entry", "parse_name"]

GRAMMAR = "[_<N>epochs][_<N>iters][_lr<M>en<E>][_bs<N>][_NoMirroring][_noAMP]"

_SUFFIXES = re.compile(
    r"(?:_(?:(?P<epochs>[1-9]\d*)epochs|(?P<one_epoch>1)epoch))?"
    r"(?:_(?P<iterations>[1-9]\d*)iters)?"
    r"(?:_lr(?P<lr_factor>[1-9]\d*)en(?P<lr_exponent>0|[1-9]\d*))?"
    r"(?:_bs(?P<batch_size>[1-9]\d*))?"
    r"(?P<no_mirroring>_NoMirroring)?"
    r"(?P<no_amp>_noAMP)?"
)

# How people write a suffix when they miss it, with what they meant, in the order of the grammar.
_MISSPELT = [
    (re.compile(r"0*(\d+)ep(?:och)?s?", re.IGNORECASE), r"\1epochs"),
    (re.compile(r"0*(\d+)it(?:er)?(?:ation)?s?", re.IGNORECASE), r"\1iters"),
    (re.compile(r"lr0*(\d+)e[n-]?0*(\d+)", re.IGNORECASE), r"lr\1en\2"),
    (re.compile(r"bs0*(\d+)", re.IGNORECASE), r"bs\1"),
    (re.compile(r"no_?mirroring", re.IGNORECASE), "NoMirroring"),
    (re.compile(r"no_?amp", re.IGNORECASE), "noAMP"),
]

_PRETRAINED = "pretrained"
_LEAST_ALIKE = 0.8


@dataclass(frozen=True)
class Variant:
    """What the suffixes of a name change; None and False leave the base trainer's setting.

    Attributes:
        epochs: number of epochs.
        iterations: training iterations an epoch; validation takes a fifth of them, at least one.
        initial_lr: learning rate at the start.
        batch_size: instead of the plan's.
        no_mirroring: no mirroring in training and prediction.
        no_amp: training in float32 on a GPU too.
    """

    epochs: int | None = None
    iterations: int | None = None
    initial_lr: float | None = None
    batch_size: int | None = None
    no_mirroring: bool = False
    no_amp: bool = False


def _entries() -> list[TrainerEntry]:
    """List the base trainers, longest name first, so that no name hides one that it starts."""
    return sorted((*TRAINERS, BASELINE), key=lambda entry: -len(entry.name))


def parse_name(name: str) -> tuple[TrainerEntry, Variant | None] | None:
    """Split a trainer name into its catalog entry and its variant (None for the base itself).

    Returns:
        None if the name is none of this package.
    """
    for entry in _entries():
        if not name.startswith(entry.name):
            continue
        if name == entry.name:
            return entry, None
        match = _SUFFIXES.fullmatch(name, len(entry.name))
        if match:
            return entry, _variant(match)
    return None


def find_entry(name: str) -> TrainerEntry:
    """Return the catalog entry of a trainer of this package, or of a variant of one.

    Raises:
        UserError: if there is none; says which name was probably meant.
    """
    parsed = parse_name(name)
    if parsed is None or parsed[0] not in TRAINERS:
        suggestion = closest_name(name)
        meant = f"did you mean {suggestion}?" if suggestion else "`nnUNetv2_ext list` shows them."
        raise UserError(f"nnunetv2_ext has no trainer {name}: {meant} A variant is written BASE{GRAMMAR}.")
    return parsed[0]


def _variant(match: re.Match[str]) -> Variant:
    def number(group: str) -> int | None:
        return None if match[group] is None else int(match[group])

    learning_rate = None
    if match["lr_factor"] is not None:
        # float() of the decimal notation gives exactly the number that a person writes, 3e-4, without rounding twice.
        learning_rate = float(f"{match['lr_factor']}e-{match['lr_exponent']}")
    return Variant(
        epochs=number("epochs") or number("one_epoch"),
        iterations=number("iterations"),
        initial_lr=learning_rate,
        batch_size=number("batch_size"),
        no_mirroring=match["no_mirroring"] is not None,
        no_amp=match["no_amp"] is not None,
    )


def closest_name(name: str) -> str | None:
    """Return the valid name that was probably meant, or None if the name does not look like one of ours."""
    base, suffixes = _closest_base(name)
    if base is None:
        return None
    # The part of a name that says where training starts from belongs to the base, and people put it last.
    if difflib.get_close_matches(_PRETRAINED, suffixes.lower().split("_"), n=1, cutoff=_LEAST_ALIKE):
        pretrained = f"{base}_{_PRETRAINED}"
        base = pretrained if any(entry.name == pretrained for entry in TRAINERS) else base
    understood = []
    for pattern, meant in _MISSPELT:
        found = re.search(rf"(?:^|_)({pattern.pattern})(?=_|$)", suffixes, re.IGNORECASE)
        if found:
            understood.append(pattern.sub(meant, found[1]))
    if base == BASELINE.name and not understood:
        # A trainer of someone else that happens to be spelt nnUNetTrainer_<something>.
        return None
    suggestion = "_".join([base, *understood])
    return suggestion if parse_name(suggestion) else base


def _closest_base(name: str) -> tuple[str | None, str]:
    """Split a name into the base trainer that it starts with or resembles, and the rest."""
    by_lower_case = {entry.name.lower(): entry.name for entry in _entries()}
    for lower_case, base in by_lower_case.items():
        rest = name[len(base) :]
        if name.lower().startswith(lower_case) and rest[:1] in ("", "_"):
            return base, rest[1:]
    prefix = BASELINE.name.lower()
    if not name.lower().startswith(prefix):
        return None, name
    # All names of nnU-Net, ours and others', share the prefix: only what follows it can be alike or not. A base name
    # may have underscores of its own, so it is compared with the first words of the name, up to as many as it has.
    words = name[len(prefix) :].split("_")
    best, rest = _LEAST_ALIKE, name
    found: str | None = None
    for lower_case, candidate in by_lower_case.items():
        own = lower_case.removeprefix(prefix)
        for n_words in range(1, own.count("_") + 2) if own else ():
            alike = difflib.SequenceMatcher(None, own, "_".join(words[:n_words]).lower()).ratio()
            if alike > best or (found is None and alike == best):
                best, found, rest = alike, candidate, "_".join(words[n_words:])
    return found, rest
