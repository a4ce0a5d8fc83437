"""Scores of segmentations by the protocols of papers and challenges: exact definitions, units and empty-mask rules.

`metrics` holds the definitions on arrays; `labels` and `protocols` say what a protocol scores and how; `images` reads
files; `cases` scores one pair of label maps; `runner` goes over folders; `report` writes what was found.
"""
