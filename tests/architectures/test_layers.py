"""Layers that networks share."""

from __future__ import annotations

import pytest

from nnunetv2_ext.architectures.layers.rates import check_rate


@pytest.mark.parametrize("rate", [0, 0.0, 0.5, 0.99])
def test_rates_of_dropping(rate: float) -> None:
    assert check_rate("dropout", rate) == rate


@pytest.mark.parametrize("rate", [1, 1.0, -0.1, 2, float("nan")])
def test_rates_that_leave_nothing_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"^dropout is .*: a rate is at least 0 and less than 1\.$"):
        check_rate("dropout", rate)
