"""The grammar of trainer names, and the variants that come of it."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_ext.trainers import find_trainer
from nnunetv2_ext.trainers.names import Variant, closest_name, parse_name
from nnunetv2_ext.trainers.variants import make_variant
from tests.planned_data import LABELS, PlannedData
from tests.trainers.test_contract import make_trainer

PECA = "nnUNetTrainerPECANet"
DANIE = "nnUNetTrainerDANIE"


@pytest.mark.parametrize(
    ("suffix", "variant"),
    [
        ("_2epochs", Variant(epochs=2)),
        ("_1epoch", Variant(epochs=1)),
        ("_1epochs", Variant(epochs=1)),
        ("_20iters", Variant(iterations=20)),
        ("_lr3en4", Variant(initial_lr=3e-4)),
        ("_lr1en0", Variant(initial_lr=1.0)),
        ("_bs4", Variant(batch_size=4)),
        ("_NoMirroring", Variant(no_mirroring=True)),
        ("_noAMP", Variant(no_amp=True)),
        ("_250epochs_10iters_lr15en5_bs8_NoMirroring_noAMP", Variant(250, 10, 15e-5, 8, True, True)),
    ],
)
@pytest.mark.parametrize(
    "base", [PECA, f"{PECA}DS", "nnUNetTrainer", f"{DANIE}_S", f"{DANIE}_SDS", f"{DANIE}_S_pretrained"]
)
def test_suffixes(base: str, suffix: str, variant: Variant) -> None:
    entry, parsed = parse_name(base + suffix)
    assert (entry.name, parsed) == (base, variant)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        (f"{PECA}_2epoch", f"{PECA}_2epochs"),
        (f"{PECA}_0epochs", PECA),
        (f"{PECA}_02epochs", f"{PECA}_2epochs"),
        (f"{PECA}_20iters_2epochs", f"{PECA}_2epochs_20iters"),
        (f"{PECA}_20iter", f"{PECA}_20iters"),
        (f"{PECA}_lr3e-4", f"{PECA}_lr3en4"),
        (f"{PECA}_nomirroring", f"{PECA}_NoMirroring"),
        (f"{PECA}_NoAMP", f"{PECA}_noAMP"),
        (f"{PECA}_foo", PECA),
        ("nnUNetTrainerPecaNet", PECA),
        ("nnunettrainerpecanetds_5epochs", f"{PECA}DS_5epochs"),
        (f"{PECA}t", PECA),
        ("nnUNetTrainer_5epoch_3iters", "nnUNetTrainer_5epochs_3iters"),
        ("nnUNetTrainerDanie_L_5epoch", f"{DANIE}_L_5epochs"),
        ("nnUNetTrainerDANEI_L_5epochs", f"{DANIE}_L_5epochs"),
        (f"{DANIE}S_noamp", f"{DANIE}_S_noAMP"),
        (f"{DANIE}_LD_5epochs", f"{DANIE}_LDS_5epochs"),
        (f"{DANIE}_S_DS", f"{DANIE}_S"),
        (f"{DANIE}_S_2epochs_pretrained", f"{DANIE}_S_pretrained_2epochs"),
        (f"{DANIE}_L_Pretrained", f"{DANIE}_L_pretrained"),
        (f"{DANIE}_L_pretraind_bs4", f"{DANIE}_L_pretrained_bs4"),
        (f"{DANIE}_SDS_pretrained", f"{DANIE}_SDS"),
    ],
)
def test_near_misses(name: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_name(name) is None
    assert closest_name(name) == meant
    assert find_trainer(name) is None
    assert capsys.readouterr().err == f"nnunetv2_ext has no trainer {name}; did you mean {meant}?\n"


@pytest.mark.parametrize("name", ["nnUNetTrainerDA5", "nnUNetTrainer_mine", "Other", "nnUNetTrainerCascade", ""])
def test_names_of_others_are_left_alone(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_trainer(name) is None
    assert capsys.readouterr().err == ""


def test_variant_changes_what_its_name_says(nnunet_folders: PlannedData) -> None:
    trainer = make_trainer(nnunet_folders, f"{PECA}_7epochs_12iters_lr3en4_bs5_NoMirroring", LABELS, "3d_fullres")
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (7, 12, 2)
    trainer.initialize()
    assert trainer.batch_size == 5
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {3e-4}
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1] is None
    assert trainer.inference_allowed_mirroring_axes is None
    assert trainer.plans_manager.plans["configurations"]["3d_fullres"]["batch_size"] != 5
    assert trainer.output_folder_base.endswith("_7epochs_12iters_lr3en4_bs5_NoMirroring__nnUNetPlans__3d_fullres")


def test_base_keeps_nnunets_length(nnunet_folders: PlannedData) -> None:
    trainer = make_trainer(nnunet_folders, PECA, LABELS, "2d")
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (
        1000,
        250,
        50,
    )
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1] == (0, 1)


def test_variant_of_nnunets_own_trainer_keeps_its_network(nnunet_folders: PlannedData) -> None:
    trainer = make_trainer(nnunet_folders, "nnUNetTrainer_3epochs_4iters", LABELS, "2d")
    trainer.initialize()
    assert type(trainer.network).__name__ == "PlainConvUNet"
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (3, 4, 1)


@pytest.mark.parametrize(("variant", "dtype"), [(Variant(no_amp=True), torch.float32), (Variant(), torch.float16)])
def test_no_amp_computes_in_float32_on_a_gpu(variant: Variant, dtype: torch.dtype) -> None:
    """nnU-Net's steps open an autocast region of torch's current type: in this variant, that is float32."""
    seen = []

    class StepsOfNNUNet:
        def __init__(self, plans, configuration, fold, dataset_json, device) -> None:
            self.device, self.grad_scaler = device, "scaler"

        def train_step(self, batch: dict) -> dict:
            seen.append(torch.get_autocast_dtype("cuda"))
            return batch

        validation_step = train_step

    trainer = make_variant(StepsOfNNUNet, "Variant", variant)({}, "", 0, {}, torch.device("cuda"))
    before = torch.get_autocast_dtype("cuda")
    trainer.train_step({})
    trainer.validation_step({})
    assert seen == [dtype, dtype]
    assert torch.get_autocast_dtype("cuda") == before
    assert trainer.grad_scaler is (None if variant.no_amp else "scaler")
