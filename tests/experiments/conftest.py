"""The dataset without images of `bench.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments.bench import Bench, make_bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return make_bench(tmp_path / "Ann's study", monkeypatch)
