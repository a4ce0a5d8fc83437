"""Learning rate by epoch."""

from __future__ import annotations

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

__all__ = ["WarmUpPolyLRScheduler"]


class WarmUpPolyLRScheduler(PolyLRScheduler):
    """A linear warm-up, then nnU-Net's poly decay over the epochs that remain.

    The learning rate is a function of the epoch alone, so that a resumed training needs no state of the schedule.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, epochs: int, warm_up_epochs: int) -> None:
        """Set up for `epochs` epochs in all, the first `warm_up_epochs` of which are the warm-up."""
        self.warm_up_epochs = warm_up_epochs
        super().__init__(optimizer, initial_lr, epochs - warm_up_epochs)

    def step(self, current_step: int | None = None) -> None:
        """Set the learning rate of the epoch `current_step` (counted from 0; by default, of the next one)."""
        if current_step is None or current_step == -1:
            current_step = self.ctr
            self.ctr += 1
        if current_step >= self.warm_up_epochs:
            super().step(current_step - self.warm_up_epochs)
            return
        learning_rate = self.initial_lr * (current_step + 1) / (self.warm_up_epochs + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._last_lr = [learning_rate] * len(self.optimizer.param_groups)
