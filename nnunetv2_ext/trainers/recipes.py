"""How the networks are trained, as data: optimiser, learning rate, weight decay, weights in the loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["NNUNET", "OPTIMIZERS", "TRANSFORMER", "Recipe"]

# The optimisers that a recipe may name.
OPTIMIZERS = ("SGD", "Adam", "AdamW")


@dataclass(frozen=True)
class Recipe:
    """A training recipe within nnU-Net's frame (its epochs, poly decay, augmentation, sampling, loss and clipping).

    Attributes:
        optimizer: one of `OPTIMIZERS`.
        initial_lr: learning rate of the first epoch, or of the first after the warm-up.
        weight_decay: decay of every parameter but those that the network exempts.
        momentum: momentum of stochastic gradient descent with Nesterov momentum; the others keep torch's defaults.
        warm_up: share of the epochs, rounded to whole ones, over which the learning rate rises linearly to
            `initial_lr`.
        dice_weight: factor of the Dice loss.
        cross_entropy_weight: factor of the cross-entropy (of regions: the binary one).
        weigh_last_output: under deep supervision, give the coarsest output its weight too; nnU-Net sets it to zero.
    """

    optimizer: str = "SGD"
    initial_lr: float = 1e-2
    weight_decay: float = 3e-5
    momentum: float = 0.99
    warm_up: float = 0.0
    dice_weight: float = 1.0
    cross_entropy_weight: float = 1.0
    weigh_last_output: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"There is no optimizer {self.optimizer!r}: choose one of {', '.join(OPTIMIZERS)}.")

    def make_optimizer(self, groups: Iterable[dict[str, Any]], initial_lr: float) -> torch.optim.Optimizer:
        """Make the optimiser.

        Args:
            groups: parameters as torch's optimisers take them, each group with its weight decay.
            initial_lr: learning rate, which a variant of a trainer may change.
        """
        options = {"momentum": self.momentum, "nesterov": True} if self.optimizer == "SGD" else {}
        return getattr(torch.optim, self.optimizer)(groups, initial_lr, **options)

    def warm_up_epochs(self, epochs: int) -> int:
        """Return the number of epochs of the warm-up in a training of `epochs` epochs."""
        return round(self.warm_up * epochs)

    def output_weights(self, n_outputs: int) -> tuple[float, ...]:
        """Return the weight in the loss of each output, highest resolution first: halved each time, sum one."""
        weights = [0.5**index for index in range(n_outputs)]
        if not self.weigh_last_output:
            weights[-1] = 0.0
        return tuple(weight / sum(weights) for weight in weights)


NNUNET = Recipe()

# The optimiser of the transformers' papers; docs/networks/reca.md compares it with nnU-Net's.
TRANSFORMER = Recipe(optimizer="AdamW", initial_lr=1e-4, weight_decay=1e-2, warm_up=0.02)
