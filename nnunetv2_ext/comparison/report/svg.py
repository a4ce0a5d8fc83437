"""Drawings for a page: matplotlib's SVG with the page's own fonts and colours, and with words for who cannot see it."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import matplotlib
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from nnunetv2_ext.comparison.report.theme import LIGHT

__all__ = [
    "drawing_settings",
    "fit_text",
    "inline_svg",
    "new_figure",
    "save_pages",
    "standalone_svg",
    "text_width",
    "wrap_text",
]

_UNITS = 72  # of an SVG by matplotlib, in an inch; one is a pixel of the page
_MEASURED = 100.0  # size at which letters are measured
_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib; wider than most, so that measured texts fit in others too
    "svg.fonttype": "none",
    "svg.hashsalt": "nnunetv2_ext",
    "text.parse_math": False,  # names may hold dollars
    "path.simplify": False,
    "pdf.fonttype": 42,
}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure whose size is in pixels of the page."""
    return Figure(figsize=(width / _UNITS, height / _UNITS), dpi=_UNITS)


def inline_svg(figure: Figure, *, name: str, title: str, description: str, css_class: str = "") -> str:
    """Return a figure as an `<svg>` to put into a page.

    Colours of `theme.LIGHT` become the page's variables, so that the figure follows light and dark.

    Args:
        figure: what to show.
        name: prefix of the identifiers in it, one per figure of the page.
        title: what it is, in a few words.
        description: what it shows, in sentences.
        css_class: class of the element.
    """
    root = _parse(figure)
    width, height = (float(size) for size in root.attrib["viewBox"].split()[2:])
    content = [child for child in root if child.tag not in ("metadata", "defs") or not _is_matplotlibs(child)]
    root.clear()
    root.attrib.update({
        "class": css_class, "viewBox": f"0 0 {_short(width)} {_short(height)}", "width": _short(width),
        "height": _short(height), "role": "img", "aria-labelledby": f"{name}-title {name}-desc",
    })  # fmt: skip
    for tag, text in (("title", title), ("desc", description)):
        ET.SubElement(root, tag, {"id": f"{name}-{tag}"}).text = visible_text(text)
    root.extend(content)
    _use_the_pages_style(root, name)
    root[0].attrib["id"], root[1].attrib["id"] = f"{name}-title", f"{name}-desc"
    return ET.tostring(root, encoding="unicode")


def standalone_svg(inline: str) -> str:
    """Return what `inline_svg` made as a file of its own, in the light colours."""
    text = re.sub(r"var\(--([\w-]+)\)", lambda found: LIGHT[found[1]], inline)
    style = f"text {{font-family: sans-serif}} .narrow, .wide {{background: {LIGHT['ground']}}}"
    text = text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return text.replace("</desc>", f"</desc><style>{style}</style>", 1) + "\n"


def save_pages(figures: Sequence[Figure]) -> bytes:
    """Return a PDF without a date, with a page per figure."""
    file = io.BytesIO()
    with (
        drawing_settings(),
        PdfPages(file, metadata={"CreationDate": None, "Creator": None, "Producer": None}) as pages,
    ):
        for figure in figures:
            pages.savefig(figure)
    return file.getvalue()


def visible_text(text: str, *, keep: str = "") -> str:
    """Return a text with a sign in place of each character that no document may hold.

    Args:
        text: what to show.
        keep: characters that stay, of those that control a device.
    """
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(sign) in ("Cc", "Cs") and sign not in keep else sign
        for sign in text
    )


def text_width(text: str, size: float) -> float:
    """Return the width of a line of text in pixels, without what its letters move together."""
    return size / _MEASURED * sum(_width(sign) for sign in text)


@cache
def _width(sign: str) -> float:
    font = FontProperties(family="DejaVu Sans", size=_MEASURED)
    with drawing_settings():
        width, _, _ = text_to_path.get_text_width_height_descent(sign, font, ismath=False)
    return float(width)


def wrap_text(text: str, width: float, size: float) -> list[str]:
    """Break a text into lines that are at most so many pixels wide: at blanks, else in names, else anywhere."""
    lines = [""]
    # A name breaks behind its joints and before its capitals, and may break anywhere if a part is too long.
    for part in re.findall(r"\s*[A-Z]+[a-z0-9]*[_\-./+]*|\s*[^A-Z_\-./+\s]+[_\-./+]*|\s*.", text, re.DOTALL):
        if text_width(lines[-1] + part, size) <= width:
            lines[-1] += part
            continue
        word = _last_word(lines[-1]) if not part[0].isspace() else ""
        if word and len(word) < len(lines[-1]) and text_width(word + part, size) <= width:
            # The whole word goes to the next line.
            lines[-1] = lines[-1][: -len(word)].rstrip()
            lines.append(word + part)
        elif text_width(part.strip(), size) <= width:
            lines.append(part.lstrip())
        else:
            for sign in part:
                if text_width(lines[-1] + sign, size) > width:
                    lines.append("")
                lines[-1] += sign
    return [line.strip() for line in lines if line.strip()] or [""]


def fit_text(text: str, width: float, size: float) -> str:
    """Shorten a text in its middle until it is at most so many pixels wide."""
    if text_width(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        shorter = f"{text[: (kept + 1) // 2]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - kept // 2 :]}"
        if text_width(shorter, size) <= width:
            return shorter
    return text[:1]


def _last_word(line: str) -> str:
    return re.split(r"\s", line)[-1]


@contextmanager
def drawing_settings() -> Iterator[None]:
    """Hold matplotlib's settings, which figures need when they are made as well as when they are written."""
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # The reader's fonts may have what matplotlib's lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _parse(figure: Figure) -> ET.Element:
    file = io.StringIO()
    with drawing_settings():
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ET.fromstring(file.getvalue())
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        element.tail = None
        element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if element.tag != "text":
            element.text = None
    return root


def _is_matplotlibs(element: ET.Element) -> bool:
    return element.tag == "metadata" or any(child.tag == "style" for child in element)


def _use_the_pages_style(root: ET.Element, name: str) -> None:
    used = set(
        re.findall(r"#([\w.-]+)", " ".join(value for element in root.iter() for value in element.attrib.values()))
    )
    for element in root.iter():
        attributes = element.attrib
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        for key, value in attributes.items():
            if key == "id":
                attributes[key] = f"{name}-{value}"
            elif key == "href":
                attributes[key] = value.replace("#", f"#{name}-")
            elif key == "style":
                attributes[key] = _page_style(value)
            elif key in ("d", "x", "y", "transform"):
                attributes[key] = _shorter_numbers(value.replace("\n", "").strip())
        if not attributes.get("style", "-"):
            del attributes["style"]
        if attributes.get("transform", "").startswith("rotate(0"):
            del attributes["transform"]


def _page_style(style: str) -> str:
    rules = [rule.strip() for rule in style.split(";") if not rule.strip().startswith("font-family")]
    return "; ".join(re.sub(r"#[0-9a-f]{6}", lambda found: _variable(found[0]), rule) for rule in rules if rule)


def _variable(colour: str) -> str:
    for role, value in LIGHT.items():
        if value == colour:
            return f"var(--{role})"
    raise ValueError(f"{colour} is no colour of the theme")


def _shorter_numbers(text: str) -> str:
    return re.sub(r"-?\d+\.?\d*", lambda found: _short(float(found[0])), text)


def _short(number: float) -> str:
    return f"{round(number, 1) + 0.0:g}"
