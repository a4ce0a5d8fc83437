"""Signals that trainings get in these tests must reach the trainings, and never the process that runs the tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _no_stray_signal() -> Iterator[None]:
    """Fail the test whose signal arrives when no training handles it; it would end all tests of this process."""
    strays: list[int] = []
    numbers = (signal.SIGUSR1, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _frame: strays.append(number)) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    assert not strays, f"signals {strays} came when no training handled them"
