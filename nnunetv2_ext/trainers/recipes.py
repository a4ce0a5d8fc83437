"""How the networks are trained, as data: optimiser, learning rate, weight decay, weights of the outputs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NNUNET", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A training recipe within nnU-Net's frame (its epochs, poly schedule, augmentation, sampling and loss).

    Attributes:
        initial_lr: learning rate of the first epoch.
        weight_decay: for every parameter but those that the network exempts.
        momentum: of stochastic gradient descent with Nesterov momentum.
        weigh_last_output: under deep supervision, give the coarsest output its weight too; nnU-Net sets it to zero.
    """

    initial_lr: float = 1e-2
    weight_decay: float = 3e-5
    momentum: float = 0.99
    weigh_last_output: bool = False

    def output_weights(self, n_outputs: int) -> tuple[float, ...]:
        """Give the weight in the loss of each output, highest resolution first: halved each time, sum one."""
        weights = [0.5**index for index in range(n_outputs)]
        if not self.weigh_last_output:
            weights[-1] = 0.0
        return tuple(weight / sum(weights) for weight in weights)


NNUNET = Recipe()
