"""The demo: makes a phantom data set and takes it through nnU-Net's stock commands with PECA-Net.

Everything happens in one folder, which holds nnU-Net's three folders too, so that the user's own are never touched.
"""

import os
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_ext.demo.phantom import write_dataset
from nnunetv2_ext.demo.process import DemoError, DiskFullError, clock, is_disk_full, run_command, say
from nnunetv2_ext.io.files import whole_folder
from nnunetv2_ext.io.workers import available_cores

__all__ = ["DEFAULT_FOLDER", "DemoError", "run_demo"]

DEFAULT_FOLDER = Path("nnunetv2_ext_demo")
DATASET_ID, DATASET_NAME = 998, "Dataset998_PhantomCT"
CONFIGURATION, FOLD = "3d_fullres", "0"
# An odd number of training cases: the median of their sizes, for which nnU-Net plans, is then the size of a case.
N_TRAIN, N_TEST, SEED = 25, 2, 0
DEFAULT_EPOCHS, DEFAULT_ITERATIONS = 12, 30
# For a training this short, nnU-Net's learning rate of 1e-2 is too careful: its default training is 690 times longer.
LEARNING_RATE = "1en1"
NEEDED_BYTES = 300 * 1024**2  # about three times what a run leaves behind
MARKER = ".nnunetv2_ext_demo"
MARKER_TEXT = "Made by `nnUNetv2_ext demo`, which replaces its folders in here when it runs.\n"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "predictions", "result")


@dataclass(frozen=True)
class _Step:
    """One command of the demo.

    Attributes:
        title: What it does, for the user.
        command: The console script and its arguments.
        leaves: A file that is there once the command has done its work.
        removes: What is removed if it fails, so that nothing half-written stays.
        settings: Environment variables of this command alone.
    """

    title: str
    command: tuple[str, ...]
    leaves: Path
    removes: Path
    settings: dict[str, str] = field(default_factory=dict)


def run_demo(
    folder: Path | str = DEFAULT_FOLDER,
    *,
    epochs: int = DEFAULT_EPOCHS,
    iterations: int = DEFAULT_ITERATIONS,
    device: str | None = None,
) -> Path:
    """Make a phantom data set, then plan, preprocess, train, predict and evaluate with nnU-Net's commands.

    Prints each command before it runs and its output while it runs.

    Args:
        folder: Where everything goes. It is made if it is missing; an earlier demo in it is replaced.
        epochs: Epochs of training.
        iterations: Training steps per epoch.
        device: `cpu`, `cuda` or `mps`; by default the GPU if there is one.

    Returns:
        The folder with `dice.md`, `dice.csv` and `overlay.png`.

    Raises:
        DemoError: Something is in the way; the message says what, and what to do.
    """
    begin = time.monotonic()
    if epochs < 1 or iterations < 1:
        raise DemoError(f"The demo cannot train for {epochs} epochs of {iterations} steps: give at least one of each.")
    device = _pick_device(device)
    folder = Path(folder).expanduser().absolute()
    try:
        _claim(folder)
        return _run(folder, epochs, iterations, device, begin)
    except DiskFullError as error:
        _clear(folder)
        raise DemoError(f"{error} {_room_sentence(folder)}") from error
    except OSError as error:
        if is_disk_full(error):
            _clear(folder)
            raise DemoError(f"The disk of {folder} ran full. {_room_sentence(folder)}") from error
        raise DemoError(f"The demo cannot use {folder}: {error.strerror or error}; choose another folder.") from error


def _run(folder: Path, epochs: int, iterations: int, device: str, begin: float) -> Path:
    settings = _settings(folder, device)
    _introduce(folder, settings)
    raw, predictions = folder / "nnUNet_raw" / DATASET_NAME, folder / "predictions"
    # Mirrored patients have their organs on the other side, so mirroring would only make this training longer.
    trainer = f"nnUNetTrainerPECANet_{epochs}epochs_{iterations}iters_lr{LEARNING_RATE}_NoMirroring"
    steps = _plan(folder, trainer, device)
    total = len(steps) + 2

    with _Stage(1, total, f"make {N_TRAIN + N_TEST} phantom CTs", begin):
        write_dataset(raw.parent, DATASET_NAME, N_TRAIN, N_TEST, SEED, on_case=lambda done, of: say(".", end=""))
        say(f" in {raw}")
    for number, step in enumerate(steps, start=2):
        with _Stage(number, total, step.title, begin):
            own = "".join(f"{name}={shlex.quote(value)} " for name, value in step.settings.items())
            say(f"$ {own}{shlex.join(step.command)}")
            try:
                run_command(step.command, {**settings, **step.settings}, folder)
                if not step.leaves.exists():
                    raise DemoError(f"`{shlex.join(step.command)}` ended well but left no {step.leaves}; see above.")
            except BaseException:
                shutil.rmtree(step.removes, ignore_errors=True)
                raise
    with _Stage(total, total, "write the report", begin):
        table = _report(folder, raw, predictions)
    say(f"\n{table}\n")
    say(f"The picture and the tables are in {folder / 'result'}, the training curves in")
    say(f"{_model_folder(folder, steps[1].command) / 'progress.png'}.")
    return folder / "result"


def _plan(folder: Path, trainer: str, device: str) -> list[_Step]:
    """Write down the stock commands."""
    raw, predictions = folder / "nnUNet_raw" / DATASET_NAME, folder / "predictions"
    preprocessed = folder / "nnUNet_preprocessed" / DATASET_NAME
    model = ("-d", str(DATASET_ID), "-c", CONFIGURATION, "-f", FOLD, "-tr", trainer, "-device", device)
    train = ("nnUNetv2_train", str(DATASET_ID), CONFIGURATION, FOLD, "-tr", trainer, "-device", device)
    plan = ("nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "--verify_dataset_integrity", "-c", CONFIGURATION)
    files = ("-djfile", str(raw / "dataset.json"), "-pfile", str(preprocessed / "nnUNetPlans.json"))
    return [
        _Step(
            "plan and preprocess",
            (*plan, "-np", "2", "-npfp", "2"),
            leaves=preprocessed / "nnUNetPlans.json",
            removes=preprocessed,
        ),
        _Step(
            "train PECA-Net",
            train,
            leaves=_model_folder(folder, train) / "checkpoint_final.pth",
            removes=_model_folder(folder, train).parent,
            settings=_training_settings(device),
        ),
        _Step(
            "predict the test cases",
            ("nnUNetv2_predict", "-i", str(raw / "imagesTs"), "-o", str(predictions), *model, "-npp", "0", "-nps", "0"),
            leaves=predictions / f"phantom_{N_TRAIN + N_TEST - 1:03d}.nii.gz",
            removes=predictions,
        ),
        _Step(
            "evaluate the predictions",
            ("nnUNetv2_evaluate_folder", str(raw / "labelsTs"), str(predictions), *files, "-np", "1"),
            leaves=predictions / "summary.json",
            removes=predictions / "summary.json",
        ),
    ]


def _model_folder(folder: Path, train: tuple[str, ...]) -> Path:
    """Name the folder in which nnU-Net keeps the fold that a training command trains."""
    trainer = train[train.index("-tr") + 1]
    results = folder / "nnUNet_results" / DATASET_NAME
    return results / f"{trainer}__nnUNetPlans__{CONFIGURATION}" / f"fold_{FOLD}"


def _settings(folder: Path, device: str) -> dict[str, str]:
    """Collect the environment variables under which every command runs."""
    settings = {name: str(folder / name) for name in FOLDERS[:3]}
    settings |= {
        "nnUNet_def_n_proc": "2",  # every worker process takes three seconds to start
        "OMP_NUM_THREADS": "1",  # for worker processes; the commands set their own number
        # Threads that wait do not take the core from those that work; but a wait as short as between two operations of
        # a network costs less than being woken up (a third of a training step on two idle cores).
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "30000",
    }
    if device != "cpu":
        settings["nnUNet_compile"] = "f"  # compiling takes longer than this training
    return settings


def _training_settings(device: str) -> dict[str, str]:
    """Collect the environment variables of the training alone."""
    settings = {"nnUNet_ext_seed": str(SEED)}
    if device == "cpu":
        # Half of the cores: where others are busy, each operation would wait for the thread that has to wait itself.
        settings["nnUNet_ext_threads"] = str(max(1, available_cores() // 2))
        # Augmentation in the training process: on two cores a worker would only take time from the training, and
        # workers seed themselves. Not for all commands, because planning wants at least one worker.
        settings["nnUNet_n_proc_DA"] = "0"
    return settings


def _introduce(folder: Path, settings: dict[str, str]) -> None:
    ours = [name for name in settings if name in FOLDERS]
    theirs = "are left alone" if any(os.environ.get(name) for name in ours) else "need not be set"
    say(f"The demo works in {folder}. It has nnU-Net folders of its own in there; yours ({', '.join(ours)}) {theirs}.")
    say("To repeat a command by hand, set what the demo sets:\n")
    for name, value in settings.items():
        say(f"export {name}={shlex.quote(value)}")


def _report(folder: Path, raw: Path, predictions: Path) -> str:
    """Write the result folder, complete or not at all, and return the table."""
    from nnunetv2_ext.demo.report import read_scores, scores_table, write_report  # matplotlib is slow to import

    scores = read_scores(predictions / "summary.json", raw / "dataset.json")
    with whole_folder(folder / "result") as partial:
        write_report(scores, raw / "imagesTs", raw / "labelsTs", predictions, partial)
    return scores_table(scores)


class _Stage:
    """Prints a heading before a part of the demo and the time that it took after it."""

    def __init__(self, number: int, total: int, title: str, begin: float) -> None:
        self.heading, self.begin, self.total_begin = f"[{number}/{total}] {title}", time.monotonic(), begin

    def __enter__(self) -> None:
        say(f"\n{self.heading}")

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            now = time.monotonic()
            say(f"{self.heading}: done in {clock(now - self.begin)}, {clock(now - self.total_begin)} in all")


def _pick_device(device: str | None) -> str:
    import torch  # slow to import: not before it is needed

    available: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in available:
        raise DemoError(f"There is no device '{device}': choose one of {', '.join(available)}.")
    if not available[device]():
        raise DemoError(f"PyTorch finds no device '{device}' here: leave the option out, or choose cpu.")
    return device


def _claim(folder: Path) -> None:
    """Make the demo's folder, or take over the one of an earlier run; refuse every other one."""
    if folder.exists() and not folder.is_dir():
        raise DemoError(f"{folder} is a file: choose another folder for the demo.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise DemoError(f"{folder} has files that are not the demo's: choose another folder, or an empty one.")
    _clear(folder)
    disk = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(disk).free
    if free < NEEDED_BYTES:
        raise DemoError(f"{_room_sentence(folder)} There are {free // 1024**2} MB on its disk.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(MARKER_TEXT, encoding="utf-8")
    for name in FOLDERS[:3]:
        (folder / name).mkdir()


def _clear(folder: Path) -> None:
    """Remove what the demo has made in its folder, and the folder itself if that leaves nothing but the marker."""
    if not (folder / MARKER).is_file():
        return
    unfinished = folder.glob(".result*.partial")  # of a run that was killed
    for made in (*(folder / name for name in FOLDERS), *unfinished):
        shutil.rmtree(made, ignore_errors=True)
    if [item.name for item in folder.iterdir()] == [MARKER]:
        shutil.rmtree(folder)


def _room_sentence(folder: Path) -> str:
    return (
        f"The demo needs {NEEDED_BYTES // 1024**2} MB of free space for {folder}: make room or choose another folder."
    )
