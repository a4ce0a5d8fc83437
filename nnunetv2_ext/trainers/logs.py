"""Curves of a training for the tools that people look at them with: the variable `nnUNet_ext_log` names them.

Nothing here runs unless that variable is set. Rank 0 speaks for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nnunetv2_ext.trainers.log_sinks import Sink, chosen_sinks, open_sink
from nnunetv2_ext.trainers.safe_stop import SafeStopMixin

__all__ = ["CurvesMixin"]


class _Summaries:
    """Stand among nnU-Net's loggers, to hear what is said once: the scores of the final validation."""

    def __init__(self, trainer: CurvesMixin) -> None:
        self.trainer = trainer

    def update_config(self, config: Mapping[str, Any]) -> None:
        pass

    def log(self, key: str, value: Any, step: int) -> None:
        pass

    def log_summary(self, key: str, value: Any) -> None:
        self.trainer._tell_sinks(f"log {key}", lambda sink: sink.summarise(key, float(value)))


class CurvesMixin(SafeStopMixin):
    """Hand the numbers of each epoch to the sinks that `nnUNet_ext_log` names; stands before a trainer of nnU-Net.

    They are the losses, nnU-Net's running Dice (mean, moving average, per class or region), the learning rate, the
    seconds and on a GPU the memory of `epochs.jsonl`, the mean and the largest norm of the gradient before clipping,
    and the steps that the gradient scaler skipped.
    """

    _sinks: Mapping[str, Sink] = {}
    _norms: list[torch.Tensor]

    def run_training(self) -> None:
        """Train, and tell the sinks how it ended."""
        try:
            super().run_training()
        finally:
            finished = self.current_epoch >= self.num_epochs
            self._tell_sinks("end", lambda sink: sink.close(finished))

    def on_train_start(self) -> None:
        """Start, after a look at the variable, and open the sinks.

        Raises:
            UserError: for a sink that is unknown or not installed, before any data are read; or that cannot be opened.
        """
        names = chosen_sinks()
        super().on_train_start()
        if not names or self.local_rank != 0:
            return
        run = {
            "dataset": self.plans_manager.dataset_name,
            "trainer": type(self).__name__,
            "plans": self.plans_manager.plans_name,
            "configuration": self.configuration_name,
            "fold": str(self.fold),
            "batch_size": str(self.batch_size),
            "initial_lr": f"{self.initial_lr:g}",
            "num_epochs": str(self.num_epochs),
        }
        self._sinks = {name: open_sink(name, Path(self.output_folder), self.current_epoch, run) for name in names}
        self.logger.loggers.append(_Summaries(self))

    def on_train_epoch_start(self) -> None:
        """Start the training part of an epoch."""
        super().on_train_epoch_start()
        self._norms = []

    def train_step(self, batch: dict) -> dict:
        """Train for one step, and keep the norm of its gradient."""
        if not self._sinks:
            return super().train_step(batch)
        with _norms_kept_in(self._norms):
            return super().train_step(batch)

    def on_epoch_end(self) -> None:
        """End an epoch, after its numbers have gone to the sinks."""
        if self._sinks:
            values = self._epoch_values()
            self._tell_sinks(f"log epoch {self.current_epoch}", lambda sink: sink.record(self.current_epoch, values))
        super().on_epoch_end()

    # What the methods above share

    def _epoch_values(self) -> dict[str, float]:
        """Collect the numbers of the epoch, in the order of columns."""
        measured = self._measure_epoch()
        values = {name: measured[name] for name in ("train_loss", "val_loss")}
        for name in ("mean_fg_dice", "ema_fg_dice"):
            values[name] = float(self.logger.get_value(name, step=-1))
        dice = self.logger.get_value("dice_per_class_or_region", step=-1)
        values |= {f"dice/{name}": float(one) for name, one in zip(self._class_names(), dice, strict=True)}
        values["learning_rate"] = float(self.logger.get_value("lrs", step=-1))
        values |= {name: one for name, one in measured.items() if name == "seconds" or name.endswith("_mib")}
        norms = torch.stack(self._norms).tolist() if self._norms else []
        finite = [norm for norm in norms if math.isfinite(norm)]
        values["gradient_norm_mean"] = sum(finite) / len(finite) if finite else math.nan
        values["gradient_norm_max"] = max(finite, default=math.nan)
        # The scaler skips a step if and only if its gradient, and so the norm, is not finite.
        values["skipped_steps"] = len(norms) - len(finite) if self.grad_scaler is not None else 0
        return values

    def _class_names(self) -> list[str]:
        """Name what nnU-Net's running Dice is of: the regions, or the labels by their number; without background."""
        named = {name: value for name, value in self.dataset_json["labels"].items() if name != "ignore"}
        if self.label_manager.has_regions:
            return [name for name, value in named.items() if value not in (0, [0])]
        by_number = {value: name for name, value in named.items()}
        return [by_number[number] for number in self.label_manager.foreground_labels]

    def _tell_sinks(self, what: str, tell: Any) -> None:
        """Send something to each sink; one that fails, as a server out of reach, does not end the training."""
        for name, sink in self._sinks.items():
            try:
                tell(sink)
            except Exception as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                self.print_to_log_file(f"{name} could not {what} ({reason}); the training goes on.")


@contextmanager
def _norms_kept_in(norms: list[torch.Tensor]) -> Iterator[None]:
    """Keep what nnU-Net's step throws away: the norm that clipping has computed anyway, still on its device.

    The function is exchanged for the time of a step, instead of repeating nnU-Net's step here.
    """
    clip = torch.nn.utils.clip_grad_norm_

    def clip_and_keep(*arguments: Any, **options: Any) -> torch.Tensor:
        norm = clip(*arguments, **options)
        norms.append(norm.detach())
        return norm

    torch.nn.utils.clip_grad_norm_ = clip_and_keep
    try:
        yield
    finally:
        torch.nn.utils.clip_grad_norm_ = clip
