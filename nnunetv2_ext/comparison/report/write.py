"""Writing a report: everything is made before the first file is written, and each file is there whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from nnunetv2_ext.comparison.model import Comparison
from nnunetv2_ext.comparison.report.document import Block, Drawing, Gallery, Grid, Section
from nnunetv2_ext.comparison.report.escape import escape_latex, escape_markdown, fence_markdown
from nnunetv2_ext.comparison.report.figures import NARROW, WIDE
from nnunetv2_ext.comparison.report.pictures import Panel
from nnunetv2_ext.comparison.report.sections import make_sections
from nnunetv2_ext.comparison.report.svg import drawing_settings, inline_svg, save_pages, standalone_svg, visible_text
from nnunetv2_ext.comparison.report.theme import DARK, LIGHT
from nnunetv2_ext.comparison.report.words import title
from nnunetv2_ext.io.files import whole_file
from nnunetv2_ext.io.tables import format_table

__all__ = ["write_report"]


def write_report(comparison: Comparison, folder: Path) -> None:
    """Write `index.html`, `report.md`, `tables.tex`, and `figures/` as SVG and as pages of one PDF.

    The page needs nothing beside it, and no network. The same comparison gives the same bytes. Nothing is written
    unless all of it could be made; `index.html` comes last.

    Args:
        comparison: what was found.
        folder: where to write; made if it is missing, and what else is in it stays.

    Raises:
        OSError: if a file could not be written.
    """
    sections = make_sections(comparison)
    drawings = {block.name: block for block in _blocks(sections) if isinstance(block, Drawing)}
    with drawing_settings():
        pages = {name: block.draw(WIDE) for name, block in drawings.items()}
        wide = {name: _inline(block, pages[name], "wide") for name, block in drawings.items()}
        narrow = {name: _inline(block, block.draw(NARROW), "narrow") for name, block in drawings.items()}
    tables = [block.table for block in _blocks(sections) if isinstance(block, Grid)]
    values = {
        "title": title(comparison),
        "sections": sections,
        "versions": comparison.versions,
        "wide": {name: Markup(svg) for name, svg in wide.items()},
        "narrow": {name: Markup(svg) for name, svg in narrow.items()},
        "light": LIGHT,
        "dark": DARK,
    }
    files: dict[str, bytes] = {}
    for name in drawings:
        files[f"figures/{name}.svg"] = standalone_svg(wide[name]).encode()
    for block in _blocks(sections):
        for picture in block.pictures if isinstance(block, Gallery) else ():
            files[f"figures/{picture.name}.svg"] = picture.side_by_side().encode()
    if pages:
        files["figures/figures.pdf"] = save_pages(list(pages.values()))
    for template, name in (
        ("tables.tex.j2", "tables.tex"),
        ("report.md.j2", "report.md"),
        ("page.html.j2", "index.html"),
    ):
        files[name] = _render(template, {**values, "tables": tables}).encode()
    for name, content in files.items():
        with whole_file(folder / name) as path:
            path.write_bytes(content)


def _blocks(sections: list[Section]) -> Iterator[Block]:
    for section in sections:
        yield from section.blocks


def _inline(drawing: Drawing, figure: Figure, css_class: str) -> str:
    return inline_svg(
        figure, name=f"{drawing.name}-{css_class}", title=drawing.title, description=drawing.description,
        css_class=css_class,
    )  # fmt: skip


def _render(template: str, values: dict[str, object]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nnunetv2_ext.comparison.report"),
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: visible_text(value, keep="\n") if type(value) is str else value,
    )
    environment.filters.update({
        "md": escape_markdown, "fence": fence_markdown, "tex": escape_latex, "md_table": _markdown_table,
        "drawing": _drawing_of, "breakable": _breakable,
    })  # fmt: skip
    return environment.get_template(template).render(values)


def _drawing_of(panel: Panel) -> Markup:
    """Return a panel's drawing, whose texts are escaped already."""
    return Markup(panel.svg)


def _breakable(text: str) -> Markup:
    """Return a text whose long names may break behind their joints and before their capitals, and nowhere else."""
    parts = re.split(
        r"(?<=[a-z0-9]{3})(?=[A-Z][A-Za-z])|(?<=\w[_/])(?=\w)", visible_text(text).replace(" %", "\N{NO-BREAK SPACE}%")
    )
    return Markup("<wbr>").join(parts)


def _markdown_table(grid: Grid) -> str:
    header = [escape_markdown(cell) for cell in grid.table.header]
    rows = [[escape_markdown(cell) for cell in row] for row in grid.table.rows]
    return format_table(header, rows, markdown=True)
