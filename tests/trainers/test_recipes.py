"""Recipes: what the data says is what the trainer does."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from nnunetv2_ext.trainers.peca_net import nnUNetTrainerPECANet, nnUNetTrainerPECANetDS
from nnunetv2_ext.trainers.recipes import NNUNET, TRANSFORMER, Recipe
from nnunetv2_ext.trainers.schedule import WarmUpPolyLRScheduler
from tests.planned_data import LABELS, REGIONS, PlannedData


class Transformerlike(nnUNetTrainerPECANet):
    recipe: ClassVar[Recipe] = TRANSFORMER


class WeightedTerms(nnUNetTrainerPECANetDS):
    recipe: ClassVar[Recipe] = Recipe(dice_weight=0.7, cross_entropy_weight=0.3)


def initialised(trainer_class: type, data: PlannedData, labels: str = LABELS) -> nnUNetTrainerPECANet:
    plans = {**data.plans(labels), "continue_training": False}
    trainer = trainer_class(plans, "3d_fullres", "all", data.dataset_json(labels), torch.device("cpu"))
    trainer.initialize()
    return trainer


def learning_rates(epochs: int, warm_up_epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmUpPolyLRScheduler(optimizer, 1.0, epochs, warm_up_epochs)
    rates = []
    for epoch in range(epochs):
        schedule.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_an_unknown_optimizer_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no optimizer 'Lion': choose one of SGD, Adam, AdamW"):
        Recipe(optimizer="Lion")


def test_warm_up_is_linear_and_the_decay_covers_the_rest() -> None:
    rates = learning_rates(epochs=10, warm_up_epochs=3)
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[3:] == pytest.approx([(1 - epoch / 7) ** 0.9 for epoch in range(7)])


def test_without_warm_up_the_schedule_is_nnunets() -> None:
    assert learning_rates(epochs=4, warm_up_epochs=0) == pytest.approx([(1 - epoch / 4) ** 0.9 for epoch in range(4)])


@pytest.mark.parametrize(("epochs", "expected"), [(1000, 20), (100, 2), (10, 0), (1, 0)])
def test_warm_up_scales_with_the_length_of_the_training(epochs: int, expected: int) -> None:
    assert TRANSFORMER.warm_up_epochs(epochs) == expected
    assert NNUNET.warm_up_epochs(epochs) == 0


def test_adamw_with_warm_up(nnunet_folders: PlannedData) -> None:
    trainer = initialised(Transformerlike, nnunet_folders)
    assert type(trainer.optimizer) is torch.optim.AdamW
    decayed, exempt = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (TRANSFORMER.weight_decay, 0.0)
    assert "momentum" not in decayed
    warm_up_epochs = TRANSFORMER.warm_up_epochs(trainer.num_epochs)
    trainer.lr_scheduler.step(0)
    assert decayed["lr"] == pytest.approx(TRANSFORMER.initial_lr / (warm_up_epochs + 1))
    trainer.lr_scheduler.step(warm_up_epochs)
    assert decayed["lr"] == exempt["lr"] == TRANSFORMER.initial_lr


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_terms_of_the_loss_are_weighted(nnunet_folders: PlannedData, labels: str) -> None:
    """The loss is linear in the two weights, with plain labels and with regions."""

    def loss_with(dice_weight: float, cross_entropy_weight: float) -> float:
        class Weighted(nnUNetTrainerPECANet):
            recipe = Recipe(dice_weight=dice_weight, cross_entropy_weight=cross_entropy_weight)

        trainer = initialised(Weighted, nnunet_folders, labels)
        heads = trainer.label_manager.num_segmentation_heads
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, heads, 8, 16, 16, generator=generator)
        channels = heads if trainer.label_manager.has_regions else 1
        target = (torch.rand(2, channels, 8, 16, 16, generator=generator) > 0.5).float()
        return trainer.loss(logits, target).item()

    dice, cross_entropy = loss_with(1, 0), loss_with(0, 1)
    assert dice < 0 < cross_entropy
    assert loss_with(0.7, 0.3) == pytest.approx(0.7 * dice + 0.3 * cross_entropy, rel=1e-5)


def test_terms_are_weighted_under_deep_supervision(nnunet_folders: PlannedData) -> None:
    loss = initialised(WeightedTerms, nnunet_folders).loss.loss
    assert (loss.weight_dice, loss.weight_ce) == (0.7, 0.3)
