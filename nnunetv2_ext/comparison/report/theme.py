"""The report's colours: the same roles in light and dark, for its page and for its figures."""

from __future__ import annotations

__all__ = ["DARK", "LABELS", "LIGHT", "N_SERIES"]

# Text has a contrast of at least 4.5 with the grounds that it stands on, lines and marks of 3; `edge` only decorates.
LIGHT = {
    "ground": "#ffffff",
    "raised": "#f3f5f8",
    "ink": "#1a1f26",
    "soft": "#4e5864",
    "edge": "#d3d9e0",
    "axis": "#6b7683",
    "accent": "#0a55a4",
    "good": "#116b3c",
    "bad": "#a8261b",
    "series-1": "#0b5cac",
    "series-2": "#b04a06",
    "series-3": "#0d7468",
    "series-4": "#9b1fa8",
    "series-5": "#b3201f",
    "series-6": "#4a7a0e",
    "series-7": "#6a2bd6",
    "series-8": "#545e6a",
}
DARK = {
    "ground": "#14171c",
    "raised": "#1e232a",
    "ink": "#e7eaee",
    "soft": "#abb4be",
    "edge": "#39414b",
    "axis": "#87919d",
    "accent": "#7bbcff",
    "good": "#6fd79c",
    "bad": "#ff9a8f",
    "series-1": "#6db5fe",
    "series-2": "#f3a158",
    "series-3": "#52d0c3",
    "series-4": "#ef8bf4",
    "series-5": "#ff8c88",
    "series-6": "#a6d75f",
    "series-7": "#b99dfe",
    "series-8": "#b7c0cb",
}
N_SERIES = 8
# Outlines on grey pictures, the same in light and dark; told apart by colour-blind readers as well.
LABELS = ("#e69f00", "#56b4e9", "#f0e442", "#cc79a7", "#00c08b", "#ff7043", "#4f9dff", "#ffffff")
