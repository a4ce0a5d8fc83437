"""Whether trainings were alike in all but the method: what a reader has to know of them, each in a plain sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from nnunetv2_ext.comparison.facts import Costs, Finding, Setup
from nnunetv2_ext.comparison.findings import list_names, list_values
from nnunetv2_ext.comparison.training import TrainingRecord

__all__ = ["find_general_findings", "find_record_findings", "find_setup_findings"]

# Memory of a training step, against the reference's, from which on the reference's plans are those of another budget.
_MEMORY_RATIO = 1.25
# Epochs and iterations of nnU-Net's own training, and the share of them below which a training is called short.
_FULL = (1000, 250)
_SHORT = 0.1


def _length(setup: Setup) -> str | None:
    """Return the length of a training in epochs x iterations; None where it is not known."""
    if setup.epochs is None:
        return None
    return f"{setup.epochs} x {'?' if setup.iterations is None else setup.iterations}"


_SETTINGS: tuple[tuple[str, str, Callable[[Setup], Any]], ...] = (
    ("plans", "The plans differ", lambda setup: setup.plans),
    ("epochs", "The lengths of training differ, in epochs x iterations", _length),
    ("batch", "The batch sizes differ", lambda setup: setup.batch_size),
    (
        "patch",
        "The patch sizes differ",
        lambda setup: None if setup.patch_size is None else " x ".join(map(str, setup.patch_size)),
    ),
    ("mirroring", "The axes of mirroring differ", lambda setup: setup.mirroring),
    ("folds", "The folds differ", lambda setup: ", ".join(map(str, setup.folds)) or None),
    ("versions", "The versions of torch differ", lambda setup: setup.torch),
)


# Settings that only the training itself writes down.
_UNKNOWN = {"epochs": "the length of training", "mirroring": "the axes of mirroring"}


def find_setup_findings(setups: Sequence[Setup], costs: Sequence[Costs], reference: str) -> list[Finding]:
    """Compare how trainers were trained on one dataset.

    Args:
        setups: one per trainer of which something was found.
        costs: one per trainer of which something was found.
        reference: name of a trainer.
    """
    findings = []
    for kind, words, read in _SETTINGS:
        values = {setup.trainer: value for setup in setups if (value := read(setup)) is not None}
        if len(set(values.values())) > 1:
            findings.append(Finding(kind, f"{words} on {setups[0].dataset}: {list_values(values)}."))
        unknown = [setup.trainer for setup in setups if setup.trainer not in values]
        if unknown and kind in _UNKNOWN:
            findings.append(
                Finding(
                    kind,
                    f"{words.partition(' differ')[0]} of {list_names(unknown)} on {setups[0].dataset} are not "
                    "known: there is no debug.json.",
                )
            )
    short = {
        setup.trainer: _length(setup)
        for setup in setups
        if setup.epochs and setup.iterations and setup.epochs * setup.iterations < _SHORT * math.prod(_FULL)
    }
    if short:
        findings.append(
            Finding(
                "short",
                f"Trainings on {setups[0].dataset} were short, in epochs x iterations: {list_values(short)}; nnU-Net's "
                f"own is {' x '.join(map(str, _FULL))}. So short a training decides nothing: it shows who is ahead "
                "early, which may turn.",
            )
        )
    if {len(setup.folds) for setup in setups} == {1}:
        findings.append(
            Finding(
                "folds",
                f"One fold alone is compared on {setups[0].dataset}: its cases are a part of the data, and what "
                "another split would give is in no interval. Train all folds.",
            )
        )
    pretrained = [setup.trainer for setup in setups if setup.pretrained]
    if pretrained:
        findings.append(
            Finding("pretrained", f"{list_names(pretrained)} started from ImageNet weights, that is from more data.")
        )
    cards = {cost.trainer: cost.card for cost in costs if cost.card}
    if len(set(cards.values())) > 1 or any(" and " in card for card in cards.values()):
        findings.append(Finding("cards", f"Times are of different cards and cannot be compared: {list_values(cards)}."))
    return findings + _memory(costs, reference)


def _memory(costs: Sequence[Costs], reference: str) -> list[Finding]:
    for word, read in (
        ("took", lambda cost: cost.memory_measured_mib),
        ("are estimated to take", lambda cost: cost.memory_predicted_mib),
    ):
        memory: dict[str, float] = {cost.trainer: value for cost in costs if (value := read(cost)) is not None}
        if reference in memory and len(memory) > 1:
            base = memory[reference]
            off = {name: f"{mib:,.0f} MiB" for name, mib in memory.items() if mib > _MEMORY_RATIO * base}
            if not off:
                return []
            return [
                Finding(
                    "memory",
                    f"Training steps of {reference} {word} {base:,.0f} MiB, others more: "
                    f"{list_values(off)}; a baseline that nnU-Net plans for that memory "
                    "(nnUNetv2_plan_experiment with a ResEnc planner and -gpu_memory_target) may be stronger.",
                )
            ]
    return []


def find_record_findings(
    trainer: str, dataset: str, folds: Sequence[int], records: Sequence[TrainingRecord]
) -> list[Finding]:
    """Describe what the records of one training leave open.

    Args:
        trainer: its name.
        dataset: name of the dataset.
        folds: numbers of its folds.
        records: records of these runs.
    """
    findings = []
    early = [fold for fold, record in zip(folds, records, strict=True) if record.validated_early]
    if early:
        findings.append(
            Finding(
                "checkpoint",
                f"{trainer} on {dataset}: the validation of {list_names(early, 'fold')} is older than "
                "checkpoint_final.pth, so it was made by another checkpoint: validate again with --val.",
            )
        )
    open_ended = [fold for fold, record in zip(folds, records, strict=True) if not record.complete]
    if open_ended:
        findings.append(
            Finding(
                "checkpoint",
                f"{trainer} on {dataset}: whether {list_names(open_ended, 'fold')} came to the training's end is not "
                "known, for lack of a checkpoint_final.pth.",
            )
        )
    for kind, words, read in (
        ("epochs", "lengths of training", lambda r: None if r.epochs is None else f"{r.epochs} x {r.iterations}"),
        ("batch", "batch sizes", lambda r: r.batch_size),
        ("mirroring", "axes of mirroring", lambda r: r.mirroring),
        ("versions", "versions of torch", lambda r: r.torch),
    ):
        values = {f"fold {fold}": read(record) for fold, record in zip(folds, records, strict=True)}
        if len({value for value in values.values() if value is not None}) > 1:
            known = {fold: value for fold, value in values.items() if value is not None}
            findings.append(
                Finding(kind, f"{trainer} on {dataset} was trained with several {words}: {list_values(known)}.")
            )
    return findings


def find_general_findings() -> list[Finding]:
    """Describe what holds for every comparison of trainings that nnU-Net made."""
    return [
        Finding(
            "seed",
            "Each fold was trained once, so how much another random start changes is in no interval: train again with "
            "other names or folders before calling a small difference a method's.",
        ),
        Finding(
            "checkpoint",
            "nnU-Net does not write down whether a validation used the final or the best checkpoint (--val_best writes "
            "the same folder), nor whether -pretrained_weights was given: make sure that it was the same for all.",
        ),
    ]
