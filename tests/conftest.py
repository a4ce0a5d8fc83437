"""What all tests share: one thread a worker, and small datasets that nnU-Net has planned and preprocessed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.narrow import narrow_networks, write_published_weights
from tests.planned_data import PlannedData, prepare

# matplotlib reads this when it is first imported, here and in the processes that tests start.
os.environ["MATPLOTLIBRC"] = str(Path(__file__).with_name("matplotlibrc"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


@pytest.fixture(scope="session")
def planned_data(tmp_path_factory: pytest.TempPathFactory) -> PlannedData:
    """Return small phantom datasets, planned and preprocessed once for all workers of a test run."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    return prepare(root / "planned_data")


@pytest.fixture
def nnunet_folders(planned_data: PlannedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlannedData:
    """Set nnU-Net's three folders: the shared data, and results of this test's own."""
    data = planned_data.with_results(tmp_path / "results")
    for name, value in data.folder_variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return data


@pytest.fixture(scope="session")
def published_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with stand-ins for the published ImageNet weights, of the narrow networks' sizes."""
    folder = tmp_path_factory.mktemp("published_weights")
    write_published_weights(folder)
    return folder


@pytest.fixture
def narrow(request: pytest.FixtureRequest, published_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Build networks narrow whose widths no plan sets, and find published weights of these widths.

    Not in tests that are marked `full_width`.
    """
    if request.node.get_closest_marker("full_width"):
        yield
        return
    monkeypatch.setenv("nnUNet_ext_weights", str(published_weights))
    with narrow_networks():
        yield
