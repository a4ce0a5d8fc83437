"""The random split of papers whose lists cannot be rebuilt: their function and seed, on names in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2_ext.datasets.source import Split

__all__ = ["DCA_CODE", "DCA_PAPER", "SEED", "random_split"]

# Where DCA's splits can be seen: the shares of training and test in the paper, the function and its seed in the code.
DCA_PAPER = "arXiv 2303.17696: its section on the datasets"
DCA_CODE = "gorkemcanates/Dual-Cross-Attention: `train_test_split` with random_state 42 in its training code"
SEED = 42


def random_split(names: Sequence[str], test_share: float, used_by: str, source: str, seed: int = SEED) -> Split:
    """Split names as scikit-learn's `train_test_split` does, which DCA's code uses.

    Args:
        names: names in an order that does not depend on the machine.
        test_share: share of the names, rounded up.
        used_by, source: see `Split`.
        seed: seed of the random numbers.

    Returns:
        The split, each part in the order of `names`.
    """
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(range(len(names)), test_size=test_share, random_state=seed)
    return Split(tuple(names[i] for i in sorted(train)), tuple(names[i] for i in sorted(test)), used_by, source)
