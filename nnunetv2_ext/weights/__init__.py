"""Weights that come from elsewhere: the authors' checkpoints."""

from nnunetv2_ext.weights.authors import from_authors

__all__ = ["from_authors"]
