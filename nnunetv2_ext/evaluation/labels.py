"""Which label map an evaluation takes: the user's choice, the protocol's own, or that of a dataset.json nearby."""

from __future__ import annotations

from pathlib import Path

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.images.labels import LABEL_MAPS, LabelMap, read_dataset_json, same_name

__all__ = ["find_labels"]


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
        if labels.names_matter and value not in labels.unscored and not same_name(names.get(value, ""), name):
            raise UserError(
                f"{found.name} says that {value} is {name}, {labels.name} says {names.get(value, 'nothing')}; {remedy}."
            )
