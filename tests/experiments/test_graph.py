"""Which jobs an experiment has, in which order, and how done ones are known."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments.jobs import Graph
from nnunetv2_ext.experiments.state import write_stamp
from tests.experiments.bench import DATASET, NNUNETS, OURS, Bench

LOWRES, CASCADE = f"{OURS}__nnUNetPlans__3d_lowres", f"{OURS}__nnUNetPlans__3d_cascade_fullres"


def kinds(graph: Graph) -> list[str]:
    return [job.kind for job in graph.needed]


def finish_everything(bench: Bench, graph: Graph) -> None:
    bench.preprocess("nnUNetPlans_2d", "nnUNetPlans_3d_lowres", "nnUNetPlans_3d_fullres")
    for trainer in (NNUNETS, OURS):
        for configuration in ("2d", "3d_lowres", "3d_cascade_fullres"):
            bench.finish(f"{trainer}__nnUNetPlans__{configuration}", [0, 1])
    for job in graph:
        if job.kind in ("find_best", "compare"):
            write_stamp(job.output, job.command)


def test_every_job_comes_after_those_that_it_waits_for(bench: Bench) -> None:
    graph = bench.graph()
    seen: set[str] = set()
    for job in graph:
        assert seen.issuperset(job.after)
        seen.add(job.key)
    # 3 data folders, 1 split, 2 x 3 x 2 trainings, 2 searches, 3 comparisons; the split is there already.
    assert len(graph.jobs) == 3 + 1 + 12 + 2 + 3
    assert len(graph.needed) == len(graph.jobs) - 1


def test_a_cascade_waits_for_all_lowres_folds_and_these_for_the_fullres_data(bench: Bench) -> None:
    graph = bench.graph()
    cascade = graph.jobs[f"train/{DATASET}/{CASCADE}/fold_0"]
    lowres = [f"train/{DATASET}/{LOWRES}/fold_{fold}" for fold in (0, 1)]
    assert set(lowres) <= set(cascade.after)
    assert f"preprocess/{DATASET}/nnUNetPlans_3d_fullres" in graph.jobs[lowres[0]].after


def test_lowres_folds_that_a_cascade_needs_are_added(bench: Bench) -> None:
    graph = bench.graph(folds=[1])
    assert f"train/{DATASET}/{LOWRES}/fold_0" in graph.jobs
    assert f"train/{DATASET}/{CASCADE}/fold_0" not in graph.jobs
    assert any("3d_lowres is trained for fold 0 too" in note for note in graph.notes)
    # What the experiment did not ask for is not compared.
    assert graph.jobs["compare/nnUNetPlans__3d_lowres"].command[-5:-2] == ("-f", "1", "-o")


def test_nothing_is_needed_when_all_is_done_whatever_happens_to_plans_and_data(bench: Bench) -> None:
    finish_everything(bench, bench.graph())
    assert kinds(bench.graph()) == []
    os.utime(bench.preprocessed / "nnUNetPlans.json")
    shutil.rmtree(bench.preprocessed / "nnUNetPlans_2d")
    assert kinds(bench.graph()) == []


def test_another_trainer_adds_its_jobs_alone(bench: Bench) -> None:
    finish_everything(bench, bench.graph())
    third = "nnUNetTrainerDCA_4epochs"
    graph = bench.graph(trainers=[NNUNETS, OURS, third])
    assert kinds(graph) == ["train"] * 6 + ["find_best"] + ["compare"] * 3
    assert all(third in " ".join(job.command) for job in graph.needed)


def test_an_interrupted_preprocessing_is_not_done(bench: Bench) -> None:
    bench.preprocess("nnUNetPlans_2d")
    key = f"preprocess/{DATASET}/nnUNetPlans_2d"
    assert key in bench.graph().done
    (bench.preprocessed / "nnUNetPlans_2d" / "case_3.pkl").unlink()
    assert key not in bench.graph().done


def test_configurations_that_cannot_be_are_left_out_or_refused(bench: Bench) -> None:
    graph = bench.graph(configurations=["2d", "3d_fullres"], trainers=[NNUNETS, "nnUNetTrainerSwinUNet_4epochs"])
    assert not any("SwinUNet" in key and "3d_fullres" in key for key in graph.jobs)
    assert any("no network of 3 dimensions: 3d_fullres is left out" in note for note in graph.notes)
    with pytest.raises(UserError, match="3d_cascade_fullres needs 3d_lowres"):
        bench.graph(configurations=["3d_cascade_fullres"])
    with pytest.raises(UserError, match="have none of the configurations 4d"):
        bench.graph(configurations=["4d"])
    with pytest.raises(UserError, match="no fold 2 of Dataset901_Fake, whose 2 folds"):
        bench.graph(folds=[2])
    (bench.preprocessed / "splits_final.json").unlink()
    assert f"train/{DATASET}/{OURS}__nnUNetPlans__2d/fold_4" in bench.graph(folds=[4]).jobs


def test_datasets_that_share_data_preprocess_it_once(bench: Bench) -> None:
    plans = json.loads((bench.preprocessed / "nnUNetPlans.json").read_text())
    (bench.preprocessed / "nnUNetPlans_Other.json").write_text(json.dumps(plans))
    graph = bench.graph(plans=["nnUNetPlans", "nnUNetPlans_Other"], configurations=["2d"])
    assert [job.kind for job in graph].count("preprocess") == 1
    assert [job.kind for job in graph].count("train") == 8
