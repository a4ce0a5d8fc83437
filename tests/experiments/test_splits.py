"""The folds that are written before trainings start: nnU-Net's own."""

from __future__ import annotations

import json

import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments.splits import write_splits
from tests.experiments.bench import CASES, DATASET, Bench


def add_cases(bench: Bench, number: int) -> list[str]:
    """Add cases whose names nnU-Net sorts as text, some with a dot."""
    names = [f"more.{index}" for index in range(number)]
    for name in names:
        (bench.root / "raw" / DATASET / "labelsTr" / f"{name}.nii.gz").write_text("x")
    return sorted([*CASES, *names])


def test_the_folds_are_those_that_nnunet_would_write(bench: Bench) -> None:
    file = bench.preprocessed / "splits_final.json"
    own = file.read_text()
    write_splits(DATASET)
    assert file.read_text() == own  # the user's stay
    file.unlink()
    cases = add_cases(bench, 12)
    write_splits(DATASET)
    folds = [{part: list(names) for part, names in fold.items()} for fold in generate_crossval_split(cases)]
    assert json.loads(file.read_text()) == folds


def test_fewer_cases_than_folds_are_refused(bench: Bench) -> None:
    (bench.preprocessed / "splits_final.json").unlink()
    with pytest.raises(UserError, match="has 4 training cases, fewer than 5 folds: write folds of your own"):
        write_splits(DATASET)
    assert not (bench.preprocessed / "splits_final.json").exists()
