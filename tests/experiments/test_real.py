"""An experiment with nnU-Net's own commands on small data: its cascade, one of its trainers, and one of ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from nnunetv2_ext.commands import COMMANDS
from tests.planned_data import LABELS, PlannedData, clean_environment, run

pytestmark = [
    pytest.mark.commands,
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="Snakemake needs Python 3.11"),
]

NNUNETS, OURS = "nnUNetTrainer_1epoch_1iters", "nnUNetTrainerPECANet_1epoch_1iters"


def plan_a_cascade(data: PlannedData) -> None:
    """Add the two stages that nnU-Net plans for large images alone, and make folds of one case."""
    folder = data.preprocessed / LABELS
    plans = data.plans(LABELS)
    full = plans["configurations"]["3d_fullres"]
    spacing = [2 * size for size in full["spacing"]]
    lowres = {
        **full,
        "data_identifier": "nnUNetPlans_3d_lowres",
        "spacing": spacing,
        "next_stage": "3d_cascade_fullres",
    }
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans["configurations"] |= {"3d_lowres": lowres, "3d_cascade_fullres": cascade}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (data.raw / LABELS / "labelsTr").iterdir())
    folds = [{"train": cases[1:], "val": cases[:1]}, {"train": cases[:1], "val": cases[1:]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))


def test_a_cascade_of_two_trainers_from_the_file_to_the_comparison(planned_data: PlannedData, tmp_path: Path) -> None:
    data = planned_data.copy(tmp_path / "Ann's data")
    plan_a_cascade(data)
    content = {
        "datasets": [801],
        "configurations": ["3d_lowres", "3d_cascade_fullres"],
        "trainers": [NNUNETS, OURS],
        "folds": [1],
        "training": {"device": "cpu"},
        "resources": {"gpus": ["0", "1"], "cores": 1},
        "compare": None if "compare" in COMMANDS else False,
    }
    file = tmp_path / "Ann's study" / "study.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(content))
    environment = clean_environment(**data.folder_variables(), nnUNet_n_proc_DA="0")
    environment["nnUNet_ext_gpu_locks"] = str(tmp_path / "gpus")
    output = run("nnUNetv2_ext", "run", str(file), environment=environment, cwd=tmp_path)
    done = 2 + 1 + 6 + 2 + (2 if "compare" in COMMANDS else 0)
    assert f"study: {done} of {done} jobs done" in output
    journal = (file.parent / "study" / "journal.log").read_text()
    for trainer in (NNUNETS, OURS):
        start = journal.index(f"{trainer}__nnUNetPlans__3d_cascade_fullres fold_1 starts")
        for fold in (0, 1):
            assert journal.index(f"{trainer}__nnUNetPlans__3d_lowres fold_{fold} is finished") < start
        model = data.results / LABELS / f"{trainer}__nnUNetPlans__3d_lowres"
        assert len(list((model / "predicted_next_stage" / "3d_cascade_fullres").iterdir())) >= 5
        best = file.parent / "study" / "report" / "find_best" / LABELS / trainer / "inference_information.json"
        assert json.loads(best.read_text())["considered_models"][0]["trainer"] == trainer
    assert "Building DAG" not in run("nnUNetv2_ext", "run", str(file), environment=environment, cwd=tmp_path)
