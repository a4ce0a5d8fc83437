"""The demo's runner, with small scripts in the place of nnU-Net's commands."""

import errno
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from nnunetv2_ext.demo import phantom, process, run
from nnunetv2_ext.demo.process import DemoError, DiskFullError, clock, find_script, run_command
from nnunetv2_ext.demo.run import MARKER, run_demo

SHAPE = (12, 32, 40)

# Stands in for every nnU-Net command: leaves what the command would leave, with the reference as the prediction.
STAND_IN = """
import json, os, shutil, sys
from pathlib import Path
name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
print("running", name, "with", os.environ.get("nnUNet_n_proc_DA", "default"), "workers", flush=True)
data = "Dataset998_PhantomCT"
raw, preprocessed, results = (Path(os.environ["nnUNet_" + kind]) for kind in ("raw", "preprocessed", "results"))
def after(option):
    return Path(arguments[arguments.index(option) + 1])
if name == "nnUNetv2_plan_and_preprocess":
    (preprocessed / data).mkdir()
    (preprocessed / data / "nnUNetPlans.json").write_text("{}")
elif name == "nnUNetv2_train":
    model = results / data / f"{after('-tr')}__nnUNetPlans__3d_fullres" / "fold_0"
    model.mkdir(parents=True)
    (model / "checkpoint_final.pth").write_text("weights")
elif name == "nnUNetv2_predict":
    shutil.copytree(raw / data / "labelsTs", after("-o"))
elif name == "nnUNetv2_evaluate_folder":
    predictions = Path(arguments[1])
    cases = [
        {"prediction_file": str(path), "metrics": {str(organ): {"Dice": 0.9} for organ in range(1, 7)}}
        for path in predictions.glob("*.nii.gz")
    ]
    (predictions / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
"""


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of console scripts; the runner finds nnU-Net's commands there, replaced by a stand-in."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name in ("plan_and_preprocess", "train", "predict", "evaluate_folder"):
        write_script(folder, f"nnUNetv2_{name}", STAND_IN)
    monkeypatch.setattr(process, "find_script", lambda name: str(folder / name))
    return folder


@pytest.fixture
def tiny_phantom(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(raw: Path, name: str, n_train: int, n_test: int, seed: int, on_case) -> Path:
        return phantom.write_dataset(raw, name, n_train, n_test, seed, SHAPE, on_case)

    monkeypatch.setattr(run, "write_dataset", write)
    monkeypatch.setattr(run, "N_TRAIN", 1)
    monkeypatch.setattr(run, "N_TEST", 1)


def write_script(folder: Path, name: str, code: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_demo_runs_the_stock_commands_and_leaves_a_report(tmp_path, scripts, tiny_phantom, capfd):
    result = run_demo(tmp_path / "demo", epochs=3, iterations=4, device="cpu")
    assert result == tmp_path / "demo" / "result"
    assert {path.name for path in result.iterdir()} == {"dice.md", "dice.csv", "overlay.png"}
    output = capfd.readouterr().out
    commands = [line for line in output.splitlines() if line.startswith("$ ")]
    trainer = "nnUNetTrainerPECANet_3epochs_4iters"
    assert len(commands) == 4
    assert commands[0].startswith("$ nnUNetv2_plan_and_preprocess -d 998 --verify_dataset_integrity -c 3d_fullres")
    assert re.match(
        r"\$ nnUNet_ext_seed=\d+ nnUNet_ext_threads=[1-9]\d* nnUNet_n_proc_DA=0 "
        rf"nnUNetv2_train 998 3d_fullres 0 -tr {trainer}\w* -device cpu$",
        commands[1],
    )
    assert re.match(rf"\$ nnUNetv2_predict .* -d 998 -c 3d_fullres -f 0 -tr {trainer}\w* ", commands[2])
    assert commands[3].startswith("$ nnUNetv2_evaluate_folder ")
    assert "running nnUNetv2_plan_and_preprocess with default workers" in output  # planning wants at least one
    assert "running nnUNetv2_train with 0 workers" in output
    assert output.index("running nnUNetv2_predict") > output.index(commands[2])
    assert "| **mean**" in output
    assert str(result) in output


def test_the_printed_commands_can_be_repeated_by_hand(tmp_path, scripts, tiny_phantom, capfd):
    folder = tmp_path / "with a space"
    run_demo(folder, epochs=1, iterations=1, device="cpu")
    lines = capfd.readouterr().out.splitlines()
    exports = [line for line in lines if line.startswith("export ")]
    assert {line.split("=")[0] for line in exports} >= {
        f"export nnUNet_{k}" for k in ("raw", "preprocessed", "results")
    }
    train = next(line[2:] for line in lines if line.startswith("$ ") and "nnUNetv2_train" in line)
    shutil.rmtree(folder / "nnUNet_results" / "Dataset998_PhantomCT")
    program = "\n".join([*exports, train])
    environment = {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["sh", "-e", "-c", program], env=environment, check=True)
    assert list(folder.glob("nnUNet_results/*/*/fold_0/checkpoint_final.pth"))


def test_the_users_own_folders_are_never_used(tmp_path, scripts, tiny_phantom, monkeypatch, capfd):
    mine = tmp_path / "mine"
    mine.mkdir()
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{kind}", str(mine))
    run_demo(tmp_path / "demo", epochs=1, iterations=1, device="cpu")
    assert list(mine.iterdir()) == []
    assert os.environ["nnUNet_raw"] == str(mine)
    assert "are left alone" in capfd.readouterr().out


def test_an_earlier_demo_is_replaced_and_other_files_in_its_folder_stay(tmp_path, scripts, tiny_phantom):
    folder = tmp_path / "demo"
    run_demo(folder, epochs=1, iterations=1, device="cpu")
    (folder / "result" / "old.txt").write_text("old")
    (folder / "notes.txt").write_text("mine")
    run_demo(folder, epochs=1, iterations=1, device="cpu")
    assert not (folder / "result" / "old.txt").exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_folder_that_is_not_the_demos_is_refused(tmp_path):
    (tmp_path / "precious.txt").write_text("precious")
    with pytest.raises(DemoError, match="files that are not the demo's"):
        run_demo(tmp_path, device="cpu")
    assert files_below(tmp_path) == {"precious.txt"}
    with pytest.raises(DemoError, match="is a file"):
        run_demo(tmp_path / "precious.txt", device="cpu")
    with pytest.raises(DemoError, match=r"cannot use .* choose another folder"):
        run_demo(tmp_path / "precious.txt" / "demo", device="cpu")


def test_arguments_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(DemoError, match="give at least one of each"):
        run_demo(tmp_path / "demo", epochs=0)
    with pytest.raises(DemoError, match="no device 'gpu': choose one of cpu, cuda, mps"):
        run_demo(tmp_path / "demo", device="gpu")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 5 * 1024**2))
    with pytest.raises(DemoError, match=r"needs \d+ MB of free space .* There are 5 MB"):
        run_demo(tmp_path / "demo", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_runs_full_while_the_phantom_is_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(phantom, "_write_nifti", fail)
    with pytest.raises(DemoError, match=r"ran full\. The demo needs \d+ MB"):
        run_demo(tmp_path / "demo", device="cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit('OSError: [Errno 28] No space left on device')",
        "raise RuntimeError('[enforce fail] . PytorchStreamWriter failed writing file data/3: file write failed')",
    ],
)
def test_a_disk_that_runs_full_in_a_command_leaves_nothing(tmp_path, scripts, tiny_phantom, code):
    write_script(scripts, "nnUNetv2_train", code)
    (tmp_path / "demo").mkdir()
    with pytest.raises(DemoError, match=r"ran full during nnUNetv2_train\. The demo needs"):
        run_demo(tmp_path / "demo", epochs=1, iterations=1, device="cpu")
    assert not (tmp_path / "demo").exists()


def test_a_file_that_reaches_its_limit_is_explained(tmp_path, tiny_phantom):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DemoError, match="File too large; choose another folder"):
            run_demo(tmp_path / "demo", epochs=1, iterations=1, device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "demo" / "nnUNet_raw" / "Dataset998_PhantomCT").exists()


def test_a_failing_command_is_named_with_its_exit_code_and_its_half_work_is_removed(tmp_path, scripts, tiny_phantom):
    failing = STAND_IN + "print('RuntimeError: Some background workers are no longer alive'); sys.exit(3)\n"
    write_script(scripts, "nnUNetv2_train", failing)
    with pytest.raises(DemoError, match=r"`nnUNetv2_train 998 .*` ended with exit code 3; a worker process died"):
        run_demo(tmp_path / "demo", epochs=1, iterations=1, device="cpu")
    assert not list((tmp_path / "demo" / "nnUNet_results").rglob("*.pth"))
    assert (tmp_path / "demo" / "nnUNet_preprocessed" / "Dataset998_PhantomCT").is_dir()  # the step before was complete
    assert not (tmp_path / "demo" / "result").exists()


def test_a_command_that_leaves_nothing_behind_is_not_believed(tmp_path, scripts, tiny_phantom):
    write_script(scripts, "nnUNetv2_predict", "print('done')")
    with pytest.raises(DemoError, match=r"ended well but left no .*phantom_001\.nii\.gz"):
        run_demo(tmp_path / "demo", epochs=1, iterations=1, device="cpu")


def test_a_report_that_fails_leaves_no_half_result(tmp_path, scripts, tiny_phantom, monkeypatch):
    from nnunetv2_ext.demo import report

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(report, "draw_overlay", fail)
    with pytest.raises(DemoError, match="ran full"):
        run_demo(tmp_path / "demo", epochs=1, iterations=1, device="cpu")
    assert not (tmp_path / "demo").exists()


def test_a_killed_command_is_explained(tmp_path, scripts):
    write_script(scripts, "nnUNetv2_train", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    with pytest.raises(DemoError, match="was killed; most likely the memory ran out"):
        run_command(("nnUNetv2_train", "998"), {}, tmp_path)


def test_a_disk_with_nothing_left_explains_a_failure_that_does_not_say_so(tmp_path, scripts, monkeypatch):
    write_script(scripts, "nnUNetv2_train", "import sys; sys.exit(1)")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 100))
    with pytest.raises(DiskFullError):
        run_command(("nnUNetv2_train", "998"), {}, tmp_path)


def test_output_passes_through_as_it_is_and_silence_is_filled(tmp_path, scripts, capfd):
    code = "import sys, time; sys.stderr.write('50%\\r'); sys.stdout.write('grün'); time.sleep(0.5); print(' done')"
    write_script(scripts, "nnUNetv2_train", code)
    run_command(("nnUNetv2_train",), {"PYTHONIOENCODING": "utf-8"}, tmp_path, heartbeat_s=0.2)
    output = capfd.readouterr().out
    assert re.search(r"50%\rgrün\n\.\.\. still running, 0:00\n(\.\.\. still running, 0:00\n)* done\n$", output)


def test_settings_reach_the_command(tmp_path, scripts, capfd, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", "mine")
    write_script(scripts, "nnUNetv2_train", "import os; print(os.environ['nnUNet_raw'], os.environ['HOME_OF_TEST'])")
    monkeypatch.setenv("HOME_OF_TEST", "kept")
    run_command(("nnUNetv2_train",), {"nnUNet_raw": "the demo's"}, tmp_path)
    assert capfd.readouterr().out == "the demo's kept\n"


def test_a_missing_command_is_explained():
    with pytest.raises(DemoError, match=r"nnUNetv2_no_such_command is not in .*: install nnU-Net there"):
        find_script("nnUNetv2_no_such_command")


def test_commands_are_found_beside_python_when_they_are_not_on_the_search_path(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert Path(find_script("nnUNetv2_train")).is_file()


def test_clock():
    assert [clock(s) for s in (0, 59.9, 60, 187.2, 3725)] == ["0:00", "0:59", "1:00", "3:07", "62:05"]


def test_nothing_but_the_marker_says_that_a_folder_is_the_demos(tmp_path, scripts, tiny_phantom):
    (tmp_path / "demo" / "nnUNet_raw").mkdir(parents=True)
    with pytest.raises(DemoError, match="not the demo's"):
        run_demo(tmp_path / "demo", device="cpu")
    (tmp_path / "demo" / MARKER).write_text("")
    assert run_demo(tmp_path / "demo", epochs=1, iterations=1, device="cpu").is_dir()
