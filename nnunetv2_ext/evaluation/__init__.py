"""Scores of segmentations by the protocols of papers and challenges: exact definitions, units and empty-mask rules.

`metrics` holds the definitions on arrays; `labels` and `protocols` say what a protocol scores and how; `pairs` brings a
prediction onto its reference's voxels; `cases` scores one pair of label maps; `renumbered` finds labels in another
order; `runner` goes over folders; `report` writes what was found.
"""
