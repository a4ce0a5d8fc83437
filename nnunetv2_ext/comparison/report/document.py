"""A report as a list of sections and blocks, which each format writes in its own way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from nnunetv2_ext.comparison.report.pictures import Picture
from nnunetv2_ext.comparison.report.tables import Table

__all__ = ["Block", "Code", "Drawing", "Gallery", "Grid", "Heading", "Points", "Section", "Text"]


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    kind: ClassVar[str] = "heading"
    name: str
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; one to quote stands apart."""

    kind: ClassVar[str] = "text"
    text: str
    quoted: bool = False


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    kind: ClassVar[str] = "points"
    items: tuple[str, ...]
    numbered: bool = False


@dataclass(frozen=True)
class Code:
    """Lines for a shell."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Grid:
    """A table; a long one is folded where the reader can unfold it."""

    kind: ClassVar[str] = "table"
    table: Table
    folded: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        name: identifier and name of its files, of lower-case letters, digits and hyphens.
        title: what it is, in a few words.
        description: what it shows, for readers who cannot see it.
        caption: how to read it.
        draw: makes it in a width in pixels.
    """

    kind: ClassVar[str] = "figure"
    name: str
    title: str
    description: str
    caption: str
    draw: Callable[[int], Figure]


@dataclass(frozen=True)
class Gallery:
    """Pictures of cases."""

    kind: ClassVar[str] = "gallery"
    pictures: tuple[Picture, ...]


Block = Heading | Text | Points | Code | Grid | Drawing | Gallery


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        name: identifier, of lower-case letters, digits and hyphens.
        title: its heading.
        blocks: what is in it.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]
