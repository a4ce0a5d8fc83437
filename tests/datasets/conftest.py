"""Miniature downloads with a few cases each, and nnU-Net's pools as threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnunetv2_ext.datasets import (
    acdc,
    brain_tumour,
    cvc_clinicdb,
    flare21,
    flare22,
    flare23,
    glas,
    isic2017,
    isic2018,
    kvasir_seg,
    monuseg,
)
from tests.datasets import trees


@dataclass(frozen=True)
class Miniature:
    """A dataset with fewer cases.

    Attributes:
        make: writes its download into a folder.
        fewer: what says how many cases the dataset has, as (module, attribute, value).
        options: of the conversion.
        training, test: cases of the result.
    """

    make: Callable[[Path], Path]
    training: int
    test: int
    fewer: tuple[tuple[Any, str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> tuple[int, int]:
        return self.training, self.test


PATIENTS = (1, 2, 19, 89)  # one for training in both splits, one for the test, one for each validation
TUMOURS = (1, 11, 58)
FLARE21_CASES = (0, 1, 36)
GLAS_PARTS = {"train": 3, "testA": 2, "testB": 1}
NUCLEI = (*monuseg.TRAIN[:2], *monuseg.VALIDATION[:1], *monuseg.TEST[:1])
NUCLEI_FEWER = (
    (monuseg, "SIZE", trees.PICTURE[::-1]),
    *(
        (monuseg, part, tuple(name for name in getattr(monuseg, part) if name in NUCLEI))
        for part in ("TRAIN", "VALIDATION", "TEST")
    ),
)
ISIC_PARTS = {"Training": 3, "Validation": 1, "Test_v2": 1}
MINIATURES = {
    "FLARE21": Miniature(
        lambda folder: trees.flare21(folder, FLARE21_CASES), 2, 1, ((flare21, "CASES", FLARE21_CASES),)
    ),
    "FLARE22": Miniature(lambda folder: trees.flare22(folder, (1, 2)), 2, 1, ((flare22, "CASES", (1, 2)),)),
    "FLARE23": Miniature(
        lambda folder: trees.flare23(folder, range(1, 4), (2, 3)), 3, 1, ((flare23, "CASES", range(1, 4)),)
    ),
    "FLARE24-T3": Miniature(lambda folder: trees.flare24_t3(folder, (1, 2)), 2, 2, ((flare22, "CASES", (1, 2)),)),
    "PancancerCT": Miniature(lambda folder: trees.pancancer_ct(folder, range(3)), 3, 0),
    "Synapse": Miniature(trees.synapse, 30, 1),
    "Synapse 8": Miniature(trees.synapse, 30, 1, options={"organs": "8"}),
    "ACDC": Miniature(lambda folder: trees.acdc(folder, PATIENTS), 6, 2, ((acdc, "PATIENTS", PATIENTS),)),
    "BrainTumour": Miniature(
        lambda folder: trees.brain_tumour(folder, TUMOURS), 2, 1, ((brain_tumour, "CASES", TUMOURS),)
    ),
    "GlaS": Miniature(lambda folder: trees.glas(folder, GLAS_PARTS), 3, 3, ((glas, "PARTS", GLAS_PARTS),)),
    "MoNuSeg": Miniature(lambda folder: trees.monuseg(folder, NUCLEI, monuseg.TEST), 3, 1, NUCLEI_FEWER),
    "CVC-ClinicDB": Miniature(
        lambda folder: trees.cvc(folder, range(1, 11)), 10, 0, ((cvc_clinicdb, "FRAMES", range(1, 11)),)
    ),
    "Kvasir-SEG": Miniature(lambda folder: trees.kvasir(folder, 6), 6, 0, ((kvasir_seg, "N_PICTURES", 6),)),
    "ISIC2017": Miniature(lambda folder: trees.isic2017(folder, ISIC_PARTS), 4, 1, ((isic2017, "PARTS", ISIC_PARTS),)),
    "ISIC2018": Miniature(
        lambda folder: trees.isic2018(folder, 6),
        *(4, 2),
        ((isic2018, "N_TRAIN", 3), (isic2018, "N_VALIDATION", 1), (isic2018, "N_TEST", 2)),
    ),
}


@pytest.fixture
def make_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that writes a miniature download, and makes its converter expect no more than that."""

    def make(name: str) -> Path:
        miniature = MINIATURES[name]
        for module, attribute, value in miniature.fewer:
            monkeypatch.setattr(module, attribute, value)
        return miniature.make(tmp_path / "source" / name)

    return make


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Set nnU-Net's three folders to empty ones."""
    made = SimpleNamespace(**{kind: tmp_path / f"nnUNet_{kind}" for kind in ("raw", "preprocessed", "results")})
    for kind, path in vars(made).items():
        path.mkdir()
        monkeypatch.setenv(f"nnUNet_{kind}", str(path))
    return made


@pytest.fixture
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nnU-Net's pools be threads: processes would import torch anew, which takes most of the time of small data."""
    monkeypatch.setattr("multiprocessing.get_context", lambda *_: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr("nnunetv2.utilities.utils.Pool", ThreadPool)
    monkeypatch.setattr("nnunetv2_ext.datasets.convert.call_in_process", lambda function, *given: function(*given))


@pytest.fixture
def plan_and_preprocess(_threads: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], None]:
    """Return what `nnUNetv2_plan_and_preprocess` calls, for a dataset and a configuration, in this process."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
        preprocess_dataset,
    )

    # nnU-Net draws a hundred million voxels; the statistics of intensities do not matter here.
    collect = DatasetFingerprintExtractor.collect_foreground_intensities
    monkeypatch.setattr(
        *(DatasetFingerprintExtractor, "collect_foreground_intensities"),
        staticmethod(lambda labels, images, seed=1234, num_samples=0: collect(labels, images, seed, 100)),
    )

    def run(number: int, configuration: str) -> None:
        extract_fingerprint_dataset(number, num_processes=1, show_progress_bar=False)
        plan_experiment_dataset(number)
        preprocess_dataset(number, configurations=(configuration,), num_processes=(1,), show_progress_bar=False)

    return run
