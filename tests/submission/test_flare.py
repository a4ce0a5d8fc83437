"""The build context for FLARE: complete, linted, run for real, and refused in one sentence where it cannot be."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_ext import cli
from nnunetv2_ext.datasets import flare21, flare22, flare23
from nnunetv2_ext.submission import flare
from nnunetv2_ext.submission.flare import submit_flare
from nnunetv2_ext.submission.requirements import pinned_requirements
from tests.planned_data import LABELS, clean_environment
from tests.submission.conftest import TRAINER
from tests.test_cli import refuse

CONTEXT = {
    *("Dockerfile", ".dockerignore", "README.md", "requirements.txt", "predict.sh"),
    *("model", "nnunetv2_ext"),
}


def lint(program: str, path: Path) -> str:
    """Run a linter of the tests' environment and give what it found."""
    found = Path(sysconfig.get_path("scripts")) / program
    return subprocess.run([str(found), str(path)], capture_output=True, text=True, check=False).stdout


def zip_model(folder: Path, archive: Path, *others: Path) -> Path:
    """Pack models in the layout of nnU-Net's export."""
    with zipfile.ZipFile(archive, "w") as packed:
        for model in (folder, *others):
            for path in sorted(model.rglob("*")):
                packed.write(path, path.relative_to(model.parents[1]))
    return archive


def replace_in(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def model(make_model: Callable[..., Path]) -> Path:
    return make_model(configuration="2d", folds=("0", "1"))


def test_context(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "Ann's context"
    cli.main(["submit", "flare", "--model", str(model), "--team", "team-7", "-o", str(output), "--mirroring"])
    assert {path.name for path in output.iterdir()} == CONTEXT
    shown = capsys.readouterr().out
    assert f"Wrote {output}: {TRAINER}, nnUNetPlans, 2d, folds 0, 1." in shown
    assert "2 folds are averaged, which takes 2 times as long as one" in shown
    (command,) = [line for line in shown.splitlines() if "docker build" in line]
    assert shlex.split(command)[-4:] == ["build", "-t", "team-7:latest", str(output)]

    assert lint("hadolint", output / "Dockerfile") == ""
    assert lint("shellcheck", output / "predict.sh") == ""
    dockerfile = (output / "Dockerfile").read_text()
    assert f"python:{sys.version_info.major}.{sys.version_info.minor}-slim" in dockerfile
    assert "\nWORKDIR /workspace\n" in dockerfile
    # The challenge gives the command, and chooses the GPU.
    assert "ENTRYPOINT" not in dockerfile
    assert "CUDA_VISIBLE_DEVICES" not in dockerfile + (output / "predict.sh").read_text()
    copied = re.findall(r"^COPY (\S+) \S+$", dockerfile, re.MULTILINE)
    assert set(copied) == CONTEXT - {"Dockerfile", ".dockerignore", "README.md"}
    assert (output / "requirements.txt").read_text().splitlines() == pinned_requirements()[0]
    assert (output / "predict.sh").read_text().endswith("--outputs outputs --step-size 0.5 --mirroring\n")
    readme = (output / "README.md").read_text()
    for words in ("docker build -t team-7:latest .", "docker save team-7:latest | gzip > team-7.tar.gz", TRAINER):
        assert words in readme
    assert '--gpus "device=0"' in readme
    # The challenge starts it with docker's own 64 MB of shared memory.
    assert "--shm-size=" not in readme
    assert "docker container run" in readme
    assert "1 liver, 2 " in readme
    assert "$" not in re.sub(r"\$PWD", "", readme)
    assert not list(output.rglob("__pycache__"))


def test_model_lacks_what_only_training_needs(model: Path, tmp_path: Path) -> None:
    for fold in ("0", "1"):
        path = model / f"fold_{fold}" / "checkpoint_final.pth"
        content = torch.load(path, weights_only=False)
        content["optimizer_state"] = {"momentum": torch.zeros(10_000_000)}
        torch.save(content, path)
    submit_flare(model, "team", tmp_path / "context", folds=["1"])
    (kept,) = (tmp_path / "context" / "model").glob("fold_*/*")
    content = torch.load(kept, weights_only=False)
    assert content.keys() == {"network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes"}
    original = torch.load(model / "fold_1" / "checkpoint_final.pth", weights_only=False)
    for name, value in original["network_weights"].items():
        assert torch.equal(content["network_weights"][name], value)
    assert kept.stat().st_size < 0.5 * (model / "fold_1" / "checkpoint_final.pth").stat().st_size
    assert {path.name for path in kept.parents[1].iterdir()} == {"dataset.json", "plans.json", "fold_1"}


def test_zip_gives_the_same_as_its_folder(model: Path, tmp_path: Path) -> None:
    archive = zip_model(model, tmp_path / "model.zip")
    first, _ = submit_flare(model, "team", tmp_path / "first")
    second, _ = submit_flare(archive, "team", tmp_path / "second")
    assert first == second
    for path in (tmp_path / "first").rglob("*"):
        other = tmp_path / "second" / path.relative_to(tmp_path / "first")
        assert other.is_dir() if path.is_dir() else other.read_bytes() == path.read_bytes()


@pytest.mark.commands
@pytest.mark.slow
def test_predict_script_runs_where_the_package_is_not_installed(
    make_model: Callable[..., Path], inputs: Path, tmp_path: Path
) -> None:
    """As the challenge starts it: from elsewhere, one case first, then two; the package comes from the context."""
    folder = make_model()
    context = tmp_path / "context"
    submit_flare(folder, "team", context, not_on_device=True)
    # A broken copy of the package on the path shows that the one in the context is used.
    broken = tmp_path / "broken" / "nnunetv2_ext"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('the wrong package')\n")
    environment = clean_environment(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        PYTHONPATH=str(broken.parent),
        nnUNet_ext_NO_AUTOLOAD="1",
        https_proxy="http://127.0.0.1:9",
    )
    shutil.copytree(inputs, context / "inputs")
    second = context / "inputs" / "FLARETs_0001_0000.nii.gz"
    second.rename(tmp_path / second.name)
    command = ["/bin/bash", "-c", f"sh {context / 'predict.sh'}"]

    def run() -> str:
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "[1/1] FLARETs_0000: " in run()
    shutil.rmtree(context / "outputs")
    shutil.move(tmp_path / second.name, second)
    assert "[2/2] FLARETs_0001: " in run()
    assert sorted(path.name for path in (context / "inputs").iterdir()) == sorted(
        path.name for path in inputs.iterdir()
    )

    stock = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    stock.initialize_from_trained_model_folder(str(folder), (0,))
    (tmp_path / "stock").mkdir()
    stock.predict_from_files_sequential(str(inputs), str(tmp_path / "stock"))
    for path in (tmp_path / "stock").glob("*.nii.gz"):
        ours = nibabel.load(context / "outputs" / path.name)
        np.testing.assert_array_equal(ours.dataobj, nibabel.load(path).dataobj)
    assert len(list((context / "outputs").iterdir())) == 2


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (flare21.LABELS, "The labels are those of FLARE21."),
        (flare22.ORGANS, "The labels are those of FLARE22."),
        (flare23.LABELS, "The labels are those of FLARE23."),
        ({"spleen": 1, "kidney": 2, "liver": 3, "pancreas": 4}, "(1 spleen, 2 kidney, 3 liver, 4 pancreas) are not"),
    ],
)
def test_labels_are_compared_with_the_challenges(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: dict, words: str
) -> None:
    folder = make_model(configuration="2d")
    monkeypatch.setattr(flare, "_check_model", lambda *_: None)  # the network has other classes
    replace_in(folder / "dataset.json", labels={"background": 0, **labels})
    _, remarks = submit_flare(folder, "team", tmp_path / "context")
    assert words in remarks[0]


def test_one_fold_of_all_and_numbered_ones(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(configuration="2d", folds=("3", "all"))
    assert submit_flare(folder, "team", tmp_path / "numbered")[0].folds == ("3",)
    assert submit_flare(folder, "team", tmp_path / "all", folds=["all"])[0].folds == ("all",)
    shutil.rmtree(folder / "fold_3")
    assert submit_flare(folder, "team", tmp_path / "alone")[0].folds == ("all",)


def test_failure_leaves_nothing_and_overwriting_replaces(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(*options: str) -> list[str]:
        return ["submit", "flare", "--model", str(model), "--team", "team", "-o", str(tmp_path / "a" / "b"), *options]

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copytree", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
        refuse("No space left", *command())
    assert list((tmp_path / "a").iterdir()) == []
    # What a killed run leaves is hidden, and goes with the next one.
    (tmp_path / "a" / ".b.xyz.partial" / "new").mkdir(parents=True)
    cli.main(command())
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    refuse("exists: use it, choose another folder with -o, or write it anew with --overwrite", *command())
    (tmp_path / "a" / "b" / "stale").touch()
    cli.main(command("--overwrite", "-f", "1"))
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == CONTEXT


REFUSALS = {
    "the team 'My Team' cannot": {"team": "My Team"},
    "the team 'team_' cannot": {"team": "team_"},
    "the step size is 0.0": {"options": ["-step_size", "0"]},
    "the step size is 1.5": {"options": ["-step_size", "1.5"]},
    "fold 4 of": {"options": ["-f", "0", "4"]},
    "no fold of": {"options": ["-chk", "checkpoint_best.pth"]},
    "there is no": {"model": "missing"},
    "is neither a folder nor a zip file": {"model": "file"},
    "has no plans.json: name the folder of a trained model": {"model": "empty"},
}


@pytest.mark.parametrize("words", REFUSALS)
def test_bad_commands_are_refused(make_model: Callable[..., Path], tmp_path: Path, words: str) -> None:
    case = REFUSALS[words]
    (tmp_path / "file").write_text("no archive")
    (tmp_path / "empty").mkdir()
    model = tmp_path / case["model"] if "model" in case else make_model(configuration="2d")
    team, options = case.get("team", "team"), case.get("options", [])
    sentence = words[0].upper() + words[1:] if words.startswith(("the ", "fold", "no ", "there")) else words
    refuse(
        sentence,
        *("submit", "flare", "--model", str(model), "--team", team, "-o", str(tmp_path / "out" / "x")),
        *options,
    )
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_bad_models_are_refused(make_model: Callable[..., Path], tmp_path: Path) -> None:
    def refused(words: str, model: Path) -> None:
        refuse(words, *("submit", "flare", "--model", str(model), "--team", "team", "-o", str(tmp_path / "out" / "x")))
        assert not any((tmp_path / "out").iterdir())

    model = make_model(configuration="2d")
    checkpoint = model / "fold_0" / "checkpoint_final.pth"

    def changed(name: str, change: Callable[[Path], None]) -> Path:
        copy = tmp_path / "changed" / name / model.name
        shutil.copytree(model, copy)
        change(copy)
        return copy

    def write(folder: Path, **changes: object) -> None:
        content = {**torch.load(checkpoint, weights_only=False), **changes}
        torch.save(
            {key: value for key, value in content.items() if value is not None}, folder / "fold_0" / checkpoint.name
        )

    def cascade(folder: Path) -> None:
        plans = json.loads((folder / "plans.json").read_text())
        plans["configurations"]["2d"]["previous_stage"] = "3d_lowres"
        (folder / "plans.json").write_text(json.dumps(plans))

    refused(
        "trained on 2 channels (T1, T2)",
        changed("channels", lambda folder: replace_in(folder / "dataset.json", channel_names={"0": "T1", "1": "T2"})),
    )
    refused("needs the predictions of 3d_lowres", changed("cascade", cascade))
    refused(
        "NaturalImage2DIO, which does not read the challenge's .nii.gz files",
        changed("reader", lambda folder: replace_in(folder / "plans.json", image_reader_writer="NaturalImage2DIO")),
    )
    refused(
        "cannot be built or loaded",
        changed("labels", lambda folder: replace_in(folder / "dataset.json", labels={"background": 0, "liver": 1})),
    )
    refused(
        "Neither nnU-Net nor nnunetv2_ext has the trainer nnUNetTrainerOfMine",
        changed("trainer", lambda folder: write(folder, trainer_name="nnUNetTrainerOfMine")),
    )
    refused(
        "has no trainer_name: it is not nnU-Net's", changed("foreign", lambda folder: write(folder, trainer_name=None))
    )
    refused(
        "cannot be read as a checkpoint",
        changed(
            "cut", lambda folder: (folder / "fold_0" / checkpoint.name).write_bytes(checkpoint.read_bytes()[:1000])
        ),
    )
    two = make_model(configuration="3d_fullres")
    refused("holds 2 models (", zip_model(model, tmp_path / "two.zip", two))
    mixed = changed("mixed", lambda folder: shutil.copytree(two / "fold_0", folder / "fold_1"))
    refused("are of several trainers or configurations", mixed)
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as packed:
        packed.writestr("readme.txt", "nothing")
    refused("holds no model with plans.json and dataset.json", tmp_path / "none.zip")


def test_trainer_of_another_package_is_refused(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(configuration="2d")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "my_trainers.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerOfMine(nnUNetTrainer):\n    pass\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(mine))
    path = model / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(path, weights_only=False), "trainer_name": "nnUNetTrainerOfMine"}, path)
    refuse(
        "The trainer nnUNetTrainerOfMine is of my_trainers, and models of nnU-Net and nnunetv2_ext alone are taken",
        *("submit", "flare", "--model", str(model), "--team", "team", "-o", str(tmp_path / "out")),
    )


def test_other_folders_are_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    refuse(
        "is not an earlier build context, and is left alone",
        *("submit", "flare", "--model", str(model), "--team", "team", "-o", str(tmp_path / "thesis"), "--overwrite"),
    )
    assert (tmp_path / "thesis" / "chapter.tex").is_file()


def test_regions_are_described(make_model: Callable[..., Path], tmp_path: Path) -> None:
    exported, _ = submit_flare(make_model("Dataset802_Regions", "2d"), "team", tmp_path / "context")
    assert exported.labels == "1 any organ, 2 all but the first"
    assert exported.dataset == "Dataset802_Regions"
    assert LABELS not in (tmp_path / "context" / "README.md").read_text()
