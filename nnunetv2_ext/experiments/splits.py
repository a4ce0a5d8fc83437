"""`python -m nnunetv2_ext.experiments.splits DATASET` writes nnU-Net's own cross-validation, before folds start.

nnU-Net lets the first training write it: several that start at once write it at the same time.
"""

from __future__ import annotations

import json
import sys

from nnunetv2_ext.errors import UserError
from nnunetv2_ext.experiments.folders import DEFAULT_FOLDS, nnunet_folder, training_cases
from nnunetv2_ext.io.files import whole_file

__all__ = ["write_splits"]

# With which nnU-Net draws its folds.
SEED = 12345


def write_splits(dataset: str) -> None:
    """Write `splits_final.json` of a dataset as nnU-Net would; an existing one stays.

    Args:
        dataset: full name of the dataset.

    Raises:
        UserError: if it has fewer cases than folds.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    folder = nnunet_folder("nnUNet_preprocessed") / dataset
    file = folder / "splits_final.json"
    if file.is_file():
        return
    ending = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
    cases = sorted(training_cases(nnunet_folder("nnUNet_raw") / dataset, folder, ending))
    if len(cases) < DEFAULT_FOLDS:
        raise UserError(
            f"{dataset} has {len(cases)} training cases, fewer than {DEFAULT_FOLDS} folds: write folds of your own "
            f"to {file}, or train fold `all`."
        )
    folds = generate_crossval_split(cases, seed=SEED, n_splits=DEFAULT_FOLDS)
    plain = [{part: [str(case) for case in names] for part, names in fold.items()} for fold in folds]
    with whole_file(file) as partial:
        partial.write_text(json.dumps(plain, indent=4) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        write_splits(*sys.argv[1:])
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
