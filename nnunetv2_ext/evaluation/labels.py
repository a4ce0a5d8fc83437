"""What the values of label maps mean: data sets' own maps and those of papers, each with its source."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_ext.errors import UserError

__all__ = ["LABEL_MAPS", "LabelMap", "find_labels", "read_dataset_json", "same_classes"]


@dataclass(frozen=True)
class LabelMap:
    """The classes that are scored.

    Attributes:
        name: what users type after `--labels`, or the path of a dataset.json.
        classes: for each class its value, or for a region its values.
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
        """Give the values of a class."""
        value = self.classes[name]
        return value if isinstance(value, tuple) else (value,)

    def known_values(self) -> set[int]:
        """Give every value that a prediction may hold."""
        return {0, *self.unscored, *(value for name in self.classes for value in self.values(name))}

    def describe(self) -> str:
        """List the classes with their values, as in `1 liver, 2 kidney`."""
        return ", ".join(f"{'+'.join(map(str, self.values(name)))} {name}" for name in self.classes)


_BTCV = {
    "spleen": 1, "right kidney": 2, "left kidney": 3, "gallbladder": 4, "oesophagus": 5, "liver": 6, "stomach": 7,
    "aorta": 8, "inferior vena cava": 9, "portal and splenic vein": 10, "pancreas": 11, "right adrenal gland": 12,
    "left adrenal gland": 13,
}  # fmt: skip
_REPORTED_OF_BTCV = (
    "spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas"
)  # fmt: skip


def _numbered(*names: str) -> dict[str, int]:
    return {name: value for value, name in enumerate(names, start=1)}


LABEL_MAPS: dict[str, LabelMap] = {
    entry.name: entry
    for entry in (
        LabelMap(
            "synapse-transunet",
            _numbered(
                "aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach"
            ),
            "TransUNet's preprocessed Synapse data (Beckschen/TransUNet); also Swin-Unet, DA-TransUNet, RecA, DCA",
        ),
        LabelMap(
            "synapse-cascade",
            _numbered(
                "spleen", "right kidney", "left kidney", "gallbladder", "pancreas", "liver", "stomach", "aorta"
            ),
            "CASCADE's own preprocessing (SLDGroup/CASCADE, issue 9: it does not fit TransUNet's files)",
        ),
        LabelMap("btcv", _BTCV, "Multi-Atlas Labeling Beyond the Cranial Vault, abdomen: the original 13 labels"),
        LabelMap(
            "btcv-8",
            {name: _BTCV[name] for name in _REPORTED_OF_BTCV},
            "nnFormer, UNETR++, PECA-Net: trained on BTCV's 13 labels, eight of them reported",
            unscored=tuple(value for name, value in _BTCV.items() if name not in _REPORTED_OF_BTCV),
        ),
        LabelMap(
            "acdc",
            _numbered("right ventricle cavity", "myocardium", "left ventricle cavity"),
            "ACDC challenge (creatis.insa-lyon.fr)",
        ),
        LabelMap(
            "msd-braintumour",
            {"ET": 3, "TC": (2, 3), "WT": (1, 2, 3)},
            "MSD Task01, regions as in nnFormer, UNETR++, PECA-Net: 1 oedema, 2 non-enhancing, 3 enhancing tumour",
            names_matter=False,  # the data set names labels, this map names regions of them
        ),
        LabelMap(
            "flare21",
            _numbered("liver", "kidney", "spleen", "pancreas"),
            "FLARE 2021, the organisers' order (JunMa11/FLARE, flare.grand-challenge.org)",
        ),
        LabelMap(
            "flare22",
            _numbered(
                "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland",
                "left adrenal gland", "gallbladder", "oesophagus", "stomach", "duodenum", "left kidney",
            ),
            "FLARE 2022 (JunMa11/FLARE, flare22.grand-challenge.org)",
        ),
        LabelMap("binary", {"foreground": 1}, "one class: glands, nuclei, polyps or lesions are 1", names_matter=False),
    )
}  # fmt: skip


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
        raise UserError(f"{path} cannot be read as nnU-Net's dataset.json with its labels ({error!r}).") from error
    if not classes:
        raise UserError(f"{path} names no label besides the background.")
    return LabelMap(str(path), classes, "dataset.json", ignore=ignore)


def find_labels(choice: str | None, default: str | None, nearby: Path | None) -> LabelMap:
    """Find out what the label values mean.

    Args:
        choice: a key of `LABEL_MAPS`, or the path of a dataset.json; None if the user did not say.
        default: the protocol's own map; None if it has none.
        nearby: a dataset.json that lies by the label maps, or None. It stands in where the protocol has no map, and
            must not contradict the protocol's map where it has one.

    Raises:
        UserError: if the map is unknown, missing, or contradicted.
    """
    if choice is not None:
        if choice in LABEL_MAPS:
            return LABEL_MAPS[choice]
        if choice.endswith(".json"):
            return read_dataset_json(Path(choice))
        raise UserError(
            f"There is no label map {choice!r}; give the path of a dataset.json, or one of {', '.join(LABEL_MAPS)}."
        )
    if default is None:
        if nearby is None:
            raise UserError("There is no dataset.json by the label maps: say what the labels mean with --labels.")
        return read_dataset_json(nearby)
    labels = LABEL_MAPS[default]
    if nearby is not None:
        _check_agreement(labels, read_dataset_json(nearby))
    return labels


def _check_agreement(labels: LabelMap, found: LabelMap) -> None:
    """Refuse where a dataset.json contradicts a map: organs would be exchanged silently."""
    remedy = f"say what the files hold with --labels ({labels.name}, {found.name}, or another map)"
    strange = {value for name in found.classes for value in found.values(name)} - labels.known_values()
    if strange:
        raise UserError(f"{found.name} has the label {min(strange)}, which {labels.name} does not know; {remedy}.")
    names = {value: name for name, value in labels.classes.items()}
    for name, value in found.classes.items():
        if labels.names_matter and value not in labels.unscored and _words(names.get(value, "")) != _words(name):
            raise UserError(
                f"{found.name} says that {value} is {name}, {labels.name} says {names.get(value, 'nothing')}; {remedy}."
            )


def same_classes(classes: Mapping[str, int | tuple[int, ...]], others: Mapping[str, int | tuple[int, ...]]) -> bool:
    """Tell whether two maps give the same values the same names, whatever their order and spelling."""
    first, second = ({value: _words(name) for name, value in named.items()} for named in (classes, others))
    return first == second


_SAME_WORDS = {
    "esophagus": "oesophagus", "ivc": "inferior vena cava", "postcava": "inferior vena cava",
    "rag": "right adrenal gland", "lag": "left adrenal gland", "kidneys": "kidney", "veins": "vein",
    "rv": "right ventricle cavity", "rvc": "right ventricle cavity", "lv": "left ventricle cavity",
    "lvc": "left ventricle cavity", "myo": "myocardium", "mlv": "myocardium",
}  # fmt: skip


def _words(name: str) -> frozenset[str]:
    """Give the words that tell a name from others, whatever their order, case, spelling and joints."""
    words = " ".join(_SAME_WORDS.get(word, word) for word in re.split(r"[\W_]+", name.lower()) if word)
    return frozenset(words.split()) - {"and", "cavity", "gland"}
