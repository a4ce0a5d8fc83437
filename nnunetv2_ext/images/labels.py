"""What the values of label maps mean: data sets' own maps and those of papers, each with its source."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.errors import UserError

__all__ = [
    "ACDC",
    "BRAIN_TUMOUR",
    "BTCV",
    "FLARE21",
    "FLARE22",
    "FLARE23",
    "LABEL_MAPS",
    "LESION",
    "TRANSUNET",
    "LabelMap",
    "read_dataset_json",
    "same_classes",
    "same_name",
]


def _numbered(*names: str) -> dict[str, int]:
    return {name: value for value, name in enumerate(names, start=1)}


# The numbers of the raw labels of Synapse, which is BTCV's abdomen.
BTCV = _numbered(
    "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland",
)  # fmt: skip
_REPORTED_OF_BTCV = (
    "spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas"
)  # fmt: skip
# The order of TransUNet, Swin-Unet, DA-TransUNet, RecA and DCA; CASCADE's own preprocessing has another one.
TRANSUNET = _numbered(
    "aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach"
)  # fmt: skip
_CASCADE = _numbered(
    "spleen", "right kidney", "left kidney", "gallbladder", "pancreas", "liver", "stomach", "aorta"
)  # fmt: skip
ACDC = _numbered("right ventricle cavity", "myocardium", "left ventricle cavity")
BRAIN_TUMOUR = _numbered("oedema", "non-enhancing tumour", "enhancing tumour")
# The order in which the organisers list the organs. 3D UX-Net's list names 1 spleen, 2 kidney, 3 liver, 4 pancreas.
FLARE21 = _numbered("liver", "kidney", "spleen", "pancreas")
# The organisers' numbers, the same in FLARE23.
FLARE22 = _numbered(
    "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland",
    "left adrenal gland", "gallbladder", "oesophagus", "stomach", "duodenum", "left kidney",
)  # fmt: skip
FLARE23 = {**FLARE22, "tumour": 14}
LESION = _numbered("lesion")


@dataclass(frozen=True)
class LabelMap:
    """The classes that are scored.

    Attributes:
        name: what users type after `--labels`, or the path of a dataset.json.
        classes: value of each class, or for a region its values.
        source: who says so.
        unscored: values that may occur but are not scored; they count as background of every class.
        ignore: value of the reference whose voxels count nowhere (nnU-Net's ignore label).
        names_matter: whether a dataset.json that names a value otherwise contradicts this map.
    """

    name: str
    classes: Mapping[str, int | tuple[int, ...]]
    source: str
    unscored: tuple[int, ...] = ()
    ignore: int | None = None
    names_matter: bool = True

    def values(self, name: str) -> tuple[int, ...]:
        """Return the values of a class."""
        value = self.classes[name]
        return value if isinstance(value, tuple) else (value,)

    def known_values(self) -> set[int]:
        """Return every value that a prediction may hold."""
        return {0, *self.unscored, *(value for name in self.classes for value in self.values(name))}

    def describe(self) -> str:
        """List the classes with their values, as in `1 liver, 2 kidney`."""
        return ", ".join(f"{'+'.join(map(str, self.values(name)))} {name}" for name in self.classes)


LABEL_MAPS: dict[str, LabelMap] = {
    entry.name: entry
    for entry in (
        LabelMap(
            "synapse-transunet",
            TRANSUNET,
            "TransUNet's preprocessed Synapse data (Beckschen/TransUNet); also Swin-Unet, DA-TransUNet, RecA, DCA",
        ),
        LabelMap(
            "synapse-cascade",
            _CASCADE,
            "CASCADE's own preprocessing (SLDGroup/CASCADE, issue 9: it does not fit TransUNet's files)",
        ),
        LabelMap("btcv", BTCV, "Multi-Atlas Labeling Beyond the Cranial Vault, abdomen: the original 13 labels"),
        LabelMap(
            "btcv-8",
            {name: BTCV[name] for name in _REPORTED_OF_BTCV},
            "nnFormer, UNETR++, PECA-Net: trained on BTCV's 13 labels, eight of them reported",
            unscored=tuple(value for name, value in BTCV.items() if name not in _REPORTED_OF_BTCV),
        ),
        LabelMap("acdc", ACDC, "ACDC challenge (creatis.insa-lyon.fr)"),
        LabelMap(
            "msd-braintumour",
            {"ET": 3, "TC": (2, 3), "WT": (1, 2, 3)},
            "MSD Task01, regions as in nnFormer, UNETR++, PECA-Net: 1 oedema, 2 non-enhancing, 3 enhancing tumour",
            names_matter=False,  # the data set names labels, this map names regions of them
        ),
        LabelMap("flare21", FLARE21, "FLARE 2021, the organisers' order (JunMa11/FLARE, flare.grand-challenge.org)"),
        LabelMap("flare22", FLARE22, "FLARE 2022 (JunMa11/FLARE, flare22.grand-challenge.org)"),
        LabelMap("flare23", FLARE23, "FLARE 2023: the organs of 2022, and tumours of any organ (JunMa11/FLARE)"),
        LabelMap("lesion", LESION, "FLARE 2024 task 1 and pan-cancer CT of 2025 and 2026", names_matter=False),
        LabelMap("binary", {"foreground": 1}, "one class: glands, nuclei, polyps or lesions are 1", names_matter=False),
    )
}


def read_dataset_json(path: Path) -> LabelMap:
    """Read the labels, regions and ignore label of nnU-Net's dataset.json.

    Raises:
        UserError: if the file cannot be read or has no labels.
    """
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
        classes = {
            name: tuple(int(part) for part in value) if isinstance(value, list) else int(value)
            for name, value in labels.items()
            if name not in ("background", "ignore") and value != 0
        }
        ignore = labels.get("ignore")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as nnU-Net's dataset.json with its labels ({error!r}): mend it, or name another "
            "label map."
        ) from error
    if not classes:
        raise UserError(f"{path} names no label besides the background: add the classes to its labels.")
    return LabelMap(str(path), classes, "dataset.json", ignore=ignore)


def same_name(name: str, other: str) -> bool:
    """Check whether two names of a class say the same, whatever their order of words, case, spelling and joints."""
    return _words(name) == _words(other)


def same_classes(classes: Mapping[str, int | tuple[int, ...]], others: Mapping[str, int | tuple[int, ...]]) -> bool:
    """Check whether two maps give the same values the same names, whatever their order and spelling."""
    first, second = ({value: _words(name) for name, value in named.items()} for named in (classes, others))
    return first == second


_SAME_WORDS = {
    "esophagus": "oesophagus", "ivc": "inferior vena cava", "postcava": "inferior vena cava",
    "rag": "right adrenal gland", "lag": "left adrenal gland", "kidneys": "kidney", "veins": "vein",
    "rv": "right ventricle cavity", "rvc": "right ventricle cavity", "lv": "left ventricle cavity",
    "lvc": "left ventricle cavity", "myo": "myocardium", "mlv": "myocardium",
}  # fmt: skip


def _words(name: str) -> frozenset[str]:
    """Return the words that tell a name from others, whatever their order, case, spelling and joints."""
    words = " ".join(_SAME_WORDS.get(word, word) for word in re.split(r"[\W_]+", name.lower()) if word)
    return frozenset(words.split()) - {"and", "cavity", "gland"}
