"""Stand-ins for nnU-Net's commands, started by name: `fake_nnunet.py nnUNetv2_train 901 2d 0 ...`.

A training lasts a moment, stops and resumes as the trainers of this package do, has a data loader that outlives it when
it is killed, and writes into `runs.log` what it does. Files in the folder `faults` make it fail. Only the standard
library, so that one starts in a moment.
"""

import errno
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(os.environ["nnUNet_results"]).parent
EPOCH_SECONDS = float(os.environ.get("FAKE_EPOCH_SECONDS", "0.05"))
START_SECONDS = float(os.environ.get("FAKE_START_SECONDS", "0.05"))
SAME_REQUEST_SECONDS = 2.0
VALIDATION_SECONDS = float(os.environ.get("FAKE_VALIDATION_SECONDS", "0.1"))


def log(*words: object) -> None:
    line = " ".join(map(str, (f"{time.monotonic():.3f}", os.getpid(), *words)))
    with open(ROOT / "runs.log", "ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def option(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def fault(kind: str, name: str) -> bool:
    """Return whether a fault is asked for; `KIND/NAME` may hold how many times."""
    file = ROOT / "faults" / kind / name
    if not file.is_file():
        return False
    left = file.read_text().strip()
    if left:
        if int(left) <= 1:
            file.unlink()
        else:
            file.write_text(str(int(left) - 1))
    return True


def alone(name: str) -> None:
    """Log if another training, or a data loader of one, uses the same fold or GPU at this moment."""
    (ROOT / "alone").mkdir(exist_ok=True)
    descriptor = os.open(ROOT / "alone" / name.replace("/", "."), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log("TWICE", name)


def wait_while_held(epoch: int) -> None:
    """Wait before an epoch as long as the test wants."""
    hold = ROOT / "hold"
    while hold.is_file() and hold.read_text() == str(epoch):
        time.sleep(0.01)


def data_loader() -> int:
    """Start a process that waits for the training, and goes on waiting when that is killed."""
    pid = os.fork()
    if pid == 0:
        # As the workers of this package's trainers do.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        while True:
            time.sleep(60)
    return pid


def train(dataset: str, configuration: str, fold: str) -> None:
    name = f"{option('-tr')}__{option('-p')}__{configuration}"
    folder = ROOT / "results" / dataset / name / f"fold_{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    job, asked = f"{name}/fold_{fold}", []
    log("start", job, f"gpu={os.environ.get('CUDA_VISIBLE_DEVICES', '')}", *sys.argv[5:])
    alone(job)
    alone(f"gpu_{os.environ.get('CUDA_VISIBLE_DEVICES', job)}")
    print("training", job, flush=True)
    if fault("fail", f"{name}.fold_{fold}"):
        print("RuntimeError: planned failure")
        sys.exit(1)
    time.sleep(START_SECONDS)

    def stop(_number: int, _frame: object) -> None:
        # One request may arrive several times, as in `trainers/safe_stop.py`.
        if (asked and time.monotonic() - asked[0] > SAME_REQUEST_SECONDS) or phase == "validation":
            log("stop", job)
            os.kill(loader, signal.SIGKILL)
            os._exit(75)
        asked.append(time.monotonic())
        log("asked", job)

    phase = "training"
    loader = data_loader()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
    epochs = int(option("-tr").split("_")[1].removesuffix("epochs"))
    latest = folder / "checkpoint_latest.pth"
    final = folder / "checkpoint_final.pth"
    begin = int(latest.read_text()) if "--c" in sys.argv and latest.is_file() else 0
    log("ready", job)
    (folder / "debug.json").write_text(json.dumps({"num_epochs": str(epochs)}))
    for epoch in range(begin, 0 if final.is_file() else epochs):
        wait_while_held(epoch)
        time.sleep(EPOCH_SECONDS)
        if os.waitpid(loader, os.WNOHANG) != (0, 0):
            sys.exit("RuntimeError: One or more background workers are no longer alive.")
        with open(folder / "epochs.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "seconds": EPOCH_SECONDS}) + "\n")
        if fault("disk_full", f"{name}.fold_{fold}"):
            os.kill(loader, signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        draft = folder / ".partial-checkpoint"
        draft.write_text(str(epoch + 1))
        draft.replace(latest)
        log("epoch", job, epoch)
        if asked and epoch + 1 < epochs:
            log("stop", job)
            os.kill(loader, signal.SIGKILL)
            os._exit(75)
    final.write_text("x")
    phase = "validation"
    log("validation", job)
    time.sleep(VALIDATION_SECONDS)
    if configuration == "3d_cascade_fullres":
        before = ROOT / "results" / dataset / name.replace(configuration, "3d_lowres")
        assert len(list(before.glob("fold_*/validation/summary.json"))) == 2, "the lowres folds are not all there"
    (folder / "validation").mkdir(exist_ok=True)
    (folder / "validation" / "summary.json").write_text("{}")
    os.kill(loader, signal.SIGKILL)
    log("end", job)


def preprocess(_: object = None) -> None:
    dataset = next((ROOT / "preprocessed").glob(f"Dataset{option('-d')}_*"))
    log("preprocess", option("-c"))
    plans = json.loads((dataset / f"{option('-plans_name')}.json").read_text())
    target = dataset / plans["configurations"][option("-c")]["data_identifier"]
    for folder in (target, dataset / "gt_segmentations"):
        folder.mkdir(exist_ok=True)
    for label in (ROOT / "raw" / dataset.name / "labelsTr").iterdir():
        (target / f"{label.name.removesuffix('.nii.gz')}.pkl").write_text("x")
        (dataset / "gt_segmentations" / label.name).write_text("x")


def find_best(dataset: str) -> None:
    log("find_best", option("-tr"))
    for name in ("inference_information.json", "inference_instructions.txt"):
        (ROOT / "results" / dataset / name).write_text(option("-tr"))


def compare() -> None:
    log("compare", option("-c"))
    Path(option("-o")).mkdir(parents=True, exist_ok=True)
    (Path(option("-o")) / "index.html").write_text("x")


if __name__ == "__main__":
    program = sys.argv.pop(1)
    if program == "nnUNetv2_train":
        train(*sys.argv[1:4])
    elif program == "nnUNetv2_preprocess":
        preprocess()
    elif program == "nnUNetv2_find_best_configuration":
        find_best(sys.argv[1])
    elif program == "nnUNetv2_ext":
        compare()
