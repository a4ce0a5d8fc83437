"""The experiment file: what is read, what is refused, and the template."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_ext import cli
from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments.experiment import read_experiment, write_template
from nnunetv2_ext.experiments.report import format_duration
from nnunetv2_ext.experiments.state import last_epoch, read_progress
from tests.experiments.bench import DATASET, OURS, Bench

GOOD = "datasets: [901]\nconfigurations: [2d]\ntrainers: [nnUNetTrainerDCA]\nfolds: [0]\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it must have keys: name, datasets, configurations"),
        (GOOD + "trainer: [x]", "there is no key 'trainer'; the keys are name, datasets"),
        (
            GOOD + "resources: {gpu: 1}",
            "in resources there is no key 'gpu'; the keys are gpus, cores",
        ),
        (GOOD + "resources: {cores: many}", "resources.cores is 'many', and must be a whole number from 1 on"),
        (GOOD + "resources: {cores: true}", "resources.cores is True"),
        (GOOD + "resources: {gpus: [0, 0]}", "resources.gpus is [0, 0], and must be a number, or a list of ids"),
        (GOOD + "training: {num_gpus: 2}", "resources.gpus has 1, and training.num_gpus asks for 2"),
        (GOOD + "training: {device: gpu}", "training.device is 'gpu', and must be cuda, cpu, mps"),
        (
            GOOD + "training: {environment: {a: true}}",
            "training.environment is {'a': True}, and must be texts",
        ),
        (GOOD + "training: {pretrained_weights: {x: y}}", "names x, which is not one of the trainers"),
        (GOOD + "slurm: {lines: ['gres=gpu:1']}", "slurm.lines is ['gres=gpu:1'], and must be a list of options"),
        (GOOD + "find_best: true", "find_best must have keys: ensembling"),
        (GOOD + "datasets: [1]", "the key 'datasets' stands twice"),
        (GOOD.replace("[901]", "901"), "datasets is 901, and must be a list of different numbers or names"),
        (GOOD.replace("[901]", "[901, 901]"), "datasets is [901, 901], and must be a list of different"),
        (GOOD.replace("[0]", "[0, all]"), "folds has `all` beside others"),
        (GOOD.replace("folds: [0]\n", ""), "folds is missing: it must be a list of different fold numbers"),
        ("a: [", "cannot be read as YAML: while parsing"),
        (GOOD + "name: a b", "name is 'a b', and must be a word"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as refused:
        read_experiment(file)
    assert sentence in str(refused.value)
    assert str(refused.value).startswith(str(file))
    assert "\n" not in str(refused.value)


def test_what_is_left_out_has_a_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    file = tmp_path / "study.yaml"
    file.write_text(GOOD + "resources: {gpus: 2}\ncompare: false\nfind_best:\nreport: ../all reports\n")
    experiment = read_experiment(file)
    assert experiment.name == "study"
    assert experiment.folder == tmp_path / "study"
    assert experiment.report == tmp_path / "../all reports"
    assert experiment.plans == ("nnUNetPlans",)
    assert experiment.resources.gpus == ("0", "1")
    assert experiment.compare is None
    assert experiment.find_best is not None
    # GPUs that the user has chosen for the shell are those that are meant.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert read_experiment(file).resources.gpus == ("4", "6")


def test_the_template_is_a_good_file_in_which_every_comment_is_true(tmp_path: Path) -> None:
    file = write_template(tmp_path / "study.yaml")
    plain = read_experiment(file)
    assert plain.folds == ("0", "1", "2", "3", "4")
    lines = file.read_text().splitlines()
    # The settings that stand in comments, taken as they are.
    start = lines.index("# training:")
    file.write_text("\n".join([*lines[:start], *(_uncommented(line) for line in lines[start:])]))
    full = read_experiment(file)
    assert full.training.pretrained_weights == {"nnUNetTrainerPECANet": tmp_path / "weights" / "peca_net.pth"}
    assert full.training.environment == {"nnUNet_ext_save_every": "10"}
    assert full.slurm.setup == ("module load cuda",)
    assert (full.resources, full.find_best, full.compare) == (plain.resources, plain.find_best, plain.compare)
    with pytest.raises(UserError, match="exists, and is left as it is"):
        write_template(file)
    with pytest.raises(UserError, match=r"must end in \.yaml"):
        write_template(tmp_path / "study")


def _uncommented(line: str) -> str:
    """Take the sign away from a setting, and leave a sentence."""
    inside = line.strip().removeprefix("# ").lstrip()
    setting = inside.startswith("- ") or (inside.partition(":")[0].isidentifier() and ":" in inside)
    return line.replace("# ", "", 1) if line.strip().startswith("# ") and setting else line


def test_progress_of_a_trainer_that_logs_no_epochs_is_read_from_its_logs(tmp_path: Path) -> None:
    start = "2026-11-27 08:00:00.000000: "
    epoch = start + "Epoch {}\n" + start + "Current learning rate: 0.01\n" + start + "Epoch time: {} s\n"
    (tmp_path / "training_log_1.txt").write_text(
        epoch.format("0 ", 9.5) + epoch.format("1 ", 2.5) + start + "Epoch 2 \n"
    )
    assert last_epoch(tmp_path) == 1
    assert read_progress(tmp_path, "nnUNetTrainer").seconds == 6.0
    (tmp_path / "epochs.jsonl").write_text('{"epoch": 0, "seconds": 4}\n{"epoch": 0, "seconds": 6}\n{"epo')
    progress = read_progress(tmp_path, "nnUNetTrainer_20epochs")
    assert (progress.epochs_done, progress.epochs, progress.seconds, progress.seconds_left) == (1, 20, 6.0, 114.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(30, "30 s"), (90, "2 min"), (3599, "1 h 0 min"), (40741, "11 h 19 min"), (273600, "3 d 4 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def run(bench: Bench, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    cli.main(["run", str(bench.file), *options])
    return capsys.readouterr().out


def test_dry_run_status_and_print(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    long = "nnUNetTrainerSwinUNETRRecA_1000epochs_250iters_lr1en4_bs2_NoMirroring_noAMP"
    bench.write(trainers=[OURS, long], training={"device": "cpu", "environment": {"A": "b c"}})
    bench.preprocess("nnUNetPlans_2d")
    bench.finish(f"{OURS}__nnUNetPlans__2d", [0])
    shown = run(bench, capsys, "--dry-run")
    assert "3 of 21 jobs done, 18 to do; 18 would run" in shown
    now, waits = shown.split("Would run now")[1].split("Waits")
    assert f"preprocess {DATASET} nnUNetPlans_3d_lowres" in now
    assert f"train {DATASET} {OURS}__nnUNetPlans__2d fold_1" in now
    assert f"after train {DATASET} {OURS}__nnUNetPlans__3d_lowres (2 folds)" in " ".join(waits.split())
    status = run(bench, capsys, "--status")
    assert max(len(line) for line in status.splitlines()) <= 100
    assert "preprocess 1/3, splits 1/1" in status
    commands = run(bench, capsys, "--print")
    lines = [line for line in commands.splitlines() if not line.startswith("#")]
    assert len(lines) == 18
    assert lines[0].startswith("nnUNetv2_preprocess -d 901 -plans_name nnUNetPlans -c 3d_lowres -np 1")
    assert f"A='b c' nnUNetv2_train {DATASET} 2d 1 -tr {OURS} -p nnUNetPlans -device cpu --c" in lines
    before = lines.index(f"A='b c' nnUNetv2_train {DATASET} 3d_lowres 1 -tr {OURS} -p nnUNetPlans -device cpu --c")
    assert before < next(index for index, line in enumerate(lines) if "3d_cascade_fullres 0" in line)


def test_a_mistyped_trainer_and_one_that_does_not_stop_are_told(bench: Bench) -> None:
    with pytest.raises(UserError, match="no trainer nnUNetTrainerPECANett; did you mean nnUNetTrainerPECANet"):
        bench.graph(trainers=["nnUNetTrainerPECANett"])
    notes = bench.graph(trainers=["nnUNetTrainer"]).notes
    assert any("nnUNetTrainer_1000epochs is the same training" in note for note in notes)
