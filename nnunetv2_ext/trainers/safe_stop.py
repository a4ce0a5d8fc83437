"""Stopping and resuming without losing an epoch, for the trainers of this package and for nnU-Net's own.

nnU-Net saves every 50 epochs, and an end of the process in between loses what came after. Here a signal ends the
training after the running epoch, with everything saved, and `--c` goes on from the newest checkpoint. Nothing of this
is active in prediction: the handlers are there while `run_training` or `perform_actual_validation` runs.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.io.files import whole_file

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as _Trainer
else:
    _Trainer = object

__all__ = ["EPOCHS_FILE", "SAVE_EVERY_VARIABLE", "STOPPED", "SafeStopMixin"]

SAVE_EVERY_VARIABLE = "nnUNet_ext_save_every"
# Exit code of a training that was stopped and can be continued with `--c`: EX_TEMPFAIL, "try again", of sysexits.h.
STOPPED = 75
# One request to stop may arrive several times: Slurm sends it to all processes of a job, and those pass it on.
SAME_REQUEST_SECONDS = 2.0
EPOCHS_FILE = "epochs.jsonl"
LATEST, BEST = "checkpoint_latest.pth", "checkpoint_best.pth"


def _stop_signals() -> list[signal.Signals]:
    """List the signals that ask a training to stop; Windows has only one of them."""
    return [getattr(signal, name) for name in ("SIGUSR1", "SIGTERM") if hasattr(signal, name)]


@contextmanager
def _handled(react: Callable[[], None]) -> Iterator[None]:
    """Call `react` on each stop signal that this process gets.

    Worker processes that are forked meanwhile inherit the handler. In them both signals, which a cluster sends to all
    processes of a job, do nothing until the training is over: it needs its workers to finish the epoch. After that
    SIGTERM ends them, as `Process.terminate` expects.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread set handlers
        return
    owner = os.getpid()
    over = mmap.mmap(-1, 1)  # shared with the workers

    def handle(number: int, _frame: Any) -> None:
        if os.getpid() == owner:
            react()
        elif number == signal.SIGTERM and over[0]:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.signal(number, handle) for number in _stop_signals()}
    try:
        yield
    finally:
        over[0] = 1
        for number, handler in before.items():
            signal.signal(number, handler)


def _epoch_of(checkpoint: Path) -> int:
    """Return the epoch with which a training goes on from a checkpoint; -1 if the file is missing or damaged."""
    if not checkpoint.is_file():
        return -1
    try:
        # Memory-mapped, so that the tensors of a large network are not read for one number. nnU-Net's checkpoints hold
        # objects of numpy; this one was written by the training that goes on.
        return int(torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)["current_epoch"])
    except Exception:
        # torch raises a different type for each way in which a file can be damaged.
        return -1


class SafeStopMixin(_Trainer):
    """Change how a trainer of nnU-Net, which stands after this class in the bases, stops, saves and goes on.

    - SIGUSR1 or SIGTERM: the running epoch is finished and saved, and the process exits with code 75. A second signal,
      two seconds later or more, exits at once, and so does one during the final validation, where nothing is lost.
    - `--c` goes on from the newer of `checkpoint_latest.pth` and `checkpoint_best.pth`.
    - `nnUNet_ext_save_every=N` saves every N epochs instead of every 50.
    - A training whose loss is not finite ends with one sentence; the checkpoints of the epochs before are kept.
    - A checkpoint is there whole or not at all.
    - `epochs.jsonl` in the fold's folder gets one line per epoch: `epoch`, `seconds`, `train_loss`, `val_loss`,
      `device`, and on a GPU `max_allocated_mib` and `max_reserved_mib`. An epoch that is trained again after a crash
      has several lines; the last one counts.

    With several GPUs all ranks stop together if one of them got the signal; rank 0 saves.
    """

    save_every: int
    _asked_to_stop: bool = False
    _asked_at: float = 0.0

    def run_training(self) -> None:
        """Train, and stop at the end of an epoch when asked to."""
        self.save_every = self._read_save_every(self.save_every)
        with _handled(self._ask_to_stop):
            super().run_training()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate; a stop signal ends it at once, and `--c` or `--val` starts it anew."""
        with _handled(self._exit_at_once):
            super().perform_actual_validation(save_probabilities)

    def on_train_start(self) -> None:
        """Start, and exit before the first epoch if that was asked for meanwhile."""
        super().on_train_start()
        if self._agree_on_stopping():
            self._exit_stopped("Asked to stop before the first epoch.")

    def on_epoch_start(self) -> None:
        """Start an epoch, and measure its GPU memory from here on."""
        super().on_epoch_start()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """End the training part of an epoch; raise SystemExit if the loss is not finite."""
        super().on_train_epoch_end(train_outputs)
        loss = self.logger.get_value("train_losses", step=-1)
        if not math.isfinite(loss):
            kept = [name for name in (LATEST, BEST) if (Path(self.output_folder) / name).is_file()]
            saved = f"{' and '.join(kept)} of the epochs before are kept" if kept else "no checkpoint was saved before"
            problem = (
                f"The training loss of epoch {self.current_epoch} is {loss}, so training stops ({saved}): train with a "
                "lower learning rate (variant _lr1en3), or in float32 (variant _noAMP)."
            )
            self.print_to_log_file(problem, also_print_to_console=False)
            raise SystemExit(f"error: {problem}")

    def on_epoch_end(self) -> None:
        """End an epoch, and exit if that was asked for and epochs are left."""
        self._log_epoch()
        stop = self._agree_on_stopping()
        if stop:
            # nnU-Net saves inside the call below, where the number of the epoch is still the right one.
            self.save_every = 1
        super().on_epoch_end()
        if stop and self.current_epoch < self.num_epochs:
            self._exit_stopped(f"Asked to stop: saved after epoch {self.current_epoch - 1}.")

    def save_checkpoint(self, filename: str) -> None:
        """Save a checkpoint that takes the place of an earlier one when it is complete."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        with whole_file(Path(filename)) as partial:
            super().save_checkpoint(str(partial))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint; where nnU-Net would take the latest of this fold, the best if that is newer.

        nnU-Net asks for the latest where it exists, though the best may be up to 49 epochs newer.
        """
        latest, best = Path(self.output_folder) / LATEST, Path(self.output_folder) / BEST
        if isinstance(filename_or_checkpoint, str) and Path(filename_or_checkpoint) == latest:
            epochs = {path: _epoch_of(path) for path in (latest, best)}
            # Of two equally new ones the best: it was written later, and knows its own score.
            if epochs[best] >= max(epochs[latest], 0):
                why = f"goes on with epoch {epochs[latest]}" if epochs[latest] >= 0 else "cannot be read"
                self.print_to_log_file(f"Continuing from {BEST}, epoch {epochs[best]}: {LATEST} {why}.")
                filename_or_checkpoint = str(best)
        super().load_checkpoint(filename_or_checkpoint)

    # What the methods above share

    @staticmethod
    def _read_save_every(default: int) -> int:
        """Return the number of epochs between two checkpoints: the variable's, or nnU-Net's.

        Raises:
            UserError: if the variable is not a whole number above 0.
        """
        value = os.environ.get(SAVE_EVERY_VARIABLE, str(default))
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f"{SAVE_EVERY_VARIABLE} is {value!r}: set it to a whole number above 0, or unset it.")
        return int(value)

    def _ask_to_stop(self) -> None:
        if not self._asked_to_stop:
            self._asked_to_stop, self._asked_at = True, time.monotonic()
        elif time.monotonic() - self._asked_at > SAME_REQUEST_SECONDS:
            self._exit_at_once()

    def _exit_at_once(self) -> None:
        raise SystemExit(STOPPED)

    def _exit_stopped(self, message: str) -> None:
        self.print_to_log_file(f"{message} Continue with --c.")
        raise SystemExit(STOPPED)

    def _agree_on_stopping(self) -> bool:
        """Return whether this rank or another was asked to stop."""
        if not self.is_ddp:
            return self._asked_to_stop
        asked = torch.tensor(int(self._asked_to_stop), device=self.device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return bool(asked.item())

    def _measure_epoch(self) -> dict[str, Any]:
        """Return what the epoch took: seconds, losses, and on a GPU its memory."""
        started = self.logger.get_value("epoch_start_timestamps", step=-1)
        record: dict[str, Any] = {
            "epoch": self.current_epoch,
            "seconds": round(time.time() - started, 3),
            "train_loss": float(self.logger.get_value("train_losses", step=-1)),
            "val_loss": float(self.logger.get_value("val_losses", step=-1)),
            "device": self.device.type,
        }
        if self.device.type == "cuda":
            record["device"] = torch.cuda.get_device_name(self.device)
            record["max_allocated_mib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)
            record["max_reserved_mib"] = round(torch.cuda.max_memory_reserved(self.device) / 2**20, 1)
        return record

    def _log_epoch(self) -> None:
        """Append what the epoch took to the fold's file; rank 0 speaks for all."""
        if self.local_rank != 0:
            return
        record = self._measure_epoch()
        with (Path(self.output_folder) / EPOCHS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
