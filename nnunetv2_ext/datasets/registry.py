"""The list of datasets. Data only: the command line shows it without importing what reads images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnunetv2_ext.errors import UserError

__all__ = ["DATASETS", "OPTIONS", "Dataset", "Option", "find_dataset"]


@dataclass(frozen=True)
class Option:
    """An option of the command that some datasets have.

    Attributes:
        name: word on the command line, and the argument of `collect`.
        help: what it does.
        choices: what it can be; a whole number from 1 to 255 if empty.
    """

    name: str
    help: str
    choices: tuple[str, ...] = ()


OPTIONS = (
    Option("organs", "Synapse: all 13 organs (default), or the 8 of TransUNet in its order", ("13", "8")),
    Option(
        "split",
        "FLARE21: hold out 3D UX-Net's 20 test cases (3duxnet, default), or train on all 361 (challenge)",
        ("3duxnet", "challenge"),
    ),
    Option("cases", "FLARE23: all cases (default), or those in which all 13 organs occur", ("all", "complete")),
    Option(
        "pictures",
        "MoNuSeg: the set of 2018 (default), or with the pictures of UCTransNet's folder (uctransnet)",
        ("2018", "uctransnet"),
    ),
    Option("threshold", "polyps and ISIC: value from which on a pixel of a mask is foreground (default: 128)"),
)


@dataclass(frozen=True)
class Dataset:
    """A dataset that can be converted.

    Attributes:
        name: word on the command line, in any case and with or without hyphens.
        module: module of `nnunetv2_ext.datasets`, with the function `collect`.
        number: number of the dataset in nnU-Net, unless the user gives another.
        options: names of the options that its `collect` takes.
        aliases: other names.
    """

    name: str
    module: str
    number: int
    options: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


DATASETS = (
    Dataset("FLARE21", "flare21", 621, ("split",), ("FLARE2021",)),
    Dataset("FLARE22", "flare22", 622, (), ("FLARE2022", "FLARE24-T2")),
    Dataset("FLARE23", "flare23", 623, ("cases",), ("FLARE2023",)),
    Dataset("FLARE24-T3", "flare24_t3", 626),
    Dataset("PancancerCT", "pancancer_ct", 625, (), ("PancancerCTSeg", "FLARE24-T1")),
    Dataset("Synapse", "synapse", 617, ("organs",), ("BTCV",)),
    Dataset("ACDC", "acdc", 627),
    Dataset("BrainTumour", "brain_tumour", 601, (), ("MSD01", "Task01", "Tumor")),
    Dataset("GlaS", "glas", 631),
    Dataset("MoNuSeg", "monuseg", 632, ("pictures",)),
    Dataset("CVC-ClinicDB", "cvc_clinicdb", 633, ("threshold",), ("CVC",)),
    Dataset("Kvasir-SEG", "kvasir_seg", 634, ("threshold",), ("Kvasir",)),
    Dataset("ISIC2017", "isic2017", 635, ("threshold",)),
    Dataset("ISIC2018", "isic2018", 636, ("threshold",)),
)


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def find_dataset(name: str) -> Dataset:
    """Return a dataset by its name, in any case and with or without hyphens.

    Raises:
        UserError: if there is none.
    """
    for dataset in DATASETS:
        if _plain(name) in {_plain(known) for known in (dataset.name, *dataset.aliases)}:
            return dataset
    raise UserError(f"There is no converter for {name!r}; there are {', '.join(known.name for known in DATASETS)}.")


def check_options(dataset: Dataset, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were set, in the form that `collect` takes.

    Raises:
        UserError: if one is not an option of this dataset, or has a value that it does not take.
    """
    result = {}
    for option in OPTIONS:
        value = given.pop(option.name, None)
        if value is None:
            continue
        if option.name not in dataset.options:
            owners = ", ".join(known.name for known in DATASETS if option.name in known.options)
            raise UserError(f"{dataset.name} has no option --{option.name}; it belongs to {owners}.")
        if option.choices and str(value) not in option.choices:
            raise UserError(f"--{option.name} is {value!r}: give {' or '.join(option.choices)}.")
        if not option.choices and not (str(value).isdigit() and 1 <= int(value) <= 255):
            raise UserError(f"--{option.name} is {value!r}: give a whole number from 1 to 255.")
        result[option.name] = str(value) if option.choices else int(value)
    if given:
        raise TypeError(f"unknown options: {', '.join(given)}")
    return result
