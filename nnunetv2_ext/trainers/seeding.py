"""Trainings that repeat: a seed, and the number of threads on a CPU, for our trainers and nnU-Net's own."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as _Trainer
else:
    _Trainer = object

__all__ = ["SEED_VARIABLE", "THREADS_VARIABLE", "SeedMixin"]

SEED_VARIABLE = "nnUNet_ext_seed"
THREADS_VARIABLE = "nnUNet_ext_threads"


def _read_whole_number(variable: str, least: int) -> int | None:
    """Read a whole number from an environment variable; None where it is unset or empty.

    Raises:
        ValueError: if it holds anything else, or a smaller number.
    """
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise ValueError(f"{variable} is {text!r}: set it to a whole number from {least} on, or unset it.")
    return int(text)


def _seed_all(*numbers: int) -> None:
    """Seed Python, NumPy and torch, on all devices, with what several numbers make together."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class SeedMixin(_Trainer):
    """Seed a trainer of nnU-Net, which stands after this class in the bases, and limit its threads, if asked to.

    - `nnUNet_ext_seed=N` seeds the initial weights and, with its number, each epoch: an epoch is then the same after
      `--c` as without a stop. nnU-Net's data loader workers seed themselves, so set `nnUNet_n_proc_DA=0` too.
    - `nnUNet_ext_threads=N` gives a training on a CPU N threads, where nnU-Net takes one per core.
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ) -> None:
        self.seed, threads = _read_whole_number(SEED_VARIABLE, 0), _read_whole_number(THREADS_VARIABLE, 1)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if threads is not None and self.device.type == "cpu":
            torch.set_num_threads(threads)
        if self.seed is not None:
            # With several GPUs every process draws other batches; all take the first one's weights.
            _seed_all(self.seed, self.local_rank)

    def on_epoch_start(self) -> None:
        """Start an epoch, from its own seed if there is one."""
        super().on_epoch_start()
        if self.seed is not None:
            _seed_all(self.seed, self.local_rank, self.current_epoch)
