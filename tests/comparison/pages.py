"""What an HTML page must hold for readers who hear it, or see it badly; and what must not be in it."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "wbr", "link", "img", "input", "hr"}
# Of HTML and SVG, what could fetch or run something.
REFERENCES = {"src", "href", "srcset", "action", "data", "poster", "background"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parent: Element | None = None
    children: list[Element | str] = field(default_factory=list)

    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text() for child in self.children)

    def all(self, *tags: str) -> list[Element]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if not tags or child.tag in tags:
                    found.append(child)
                found += child.all(*tags)
        return found


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = self.current = Element("", {})
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs}, self.current)
        self.current.children.append(element)
        if tag not in VOID:
            self.current = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != self.current.tag:
            self.problems.append(f"</{tag}> closes <{self.current.tag}>")
        elif self.current.parent is not None:
            self.current = self.current.parent

    def handle_data(self, data: str) -> None:
        self.current.children.append(data)


def parse(page: str) -> Element:
    builder = _Builder()
    builder.feed(page)
    assert not builder.problems, builder.problems
    assert builder.current is builder.root, f"<{builder.current.tag}> is not closed"
    return builder.root


def problems(page: str) -> list[str]:
    """List what is wrong with a page, in words."""
    root = parse(page)
    return [*_structure(root), *_drawings(root), *_tables(root), *_foreign(root), *_contrasts(root)]


def _structure(root: Element) -> list[str]:
    found = []
    (html,) = root.all("html")
    if not html.attributes.get("lang"):
        found.append("no lang")
    titles = [element.text().strip() for element in root.all("head")[0].all("title")]
    if len(titles) != 1 or not titles[0]:
        found.append("no title")
    if len(root.all("main")) != 1:
        found.append("not one main")
    levels = [int(element.tag[1]) for element in root.all("h1", "h2", "h3", "h4", "h5", "h6")]
    if levels.count(1) != 1 or levels[:1] != [1]:
        found.append("not one h1, first")
    found += [f"h{low} is followed by h{high}" for low, high in itertools.pairwise(levels) if high > low + 1]
    found += ["empty heading" for element in root.all("h1", "h2", "h3") if not element.text().strip()]
    ids = [element.attributes["id"] for element in root.all() if "id" in element.attributes]
    found += [f"id {name} twice" for name in sorted({name for name in ids if ids.count(name) > 1})]
    for element in root.all():
        wanted = element.attributes.get("aria-labelledby", "").split()
        if element.attributes.get("href", "").startswith("#"):
            wanted.append(element.attributes["href"][1:])
        found += [f"there is no {name}" for name in wanted if name not in ids]
        if element.attributes.get("role") == "region" and not _name(element, root):
            found.append("a region without a name")
    return found


def _name(element: Element, root: Element) -> str:
    if label := element.attributes.get("aria-label", "").strip():
        return label
    names = element.attributes.get("aria-labelledby", "").split()
    return " ".join(other.text().strip() for other in root.all() if other.attributes.get("id") in names)


def _drawings(root: Element) -> list[str]:
    found = [f"{element.tag} without a text" for element in root.all("img") if not element.attributes.get("alt")]
    for element in root.all("svg"):
        if element.attributes.get("aria-hidden") == "true":
            continue
        if element.attributes.get("role") != "img" or not _name(element, root):
            found.append("a drawing without role or name")
        titles = [child for child in element.children if isinstance(child, Element) and child.tag == "title"]
        if not titles or not titles[0].text().strip():
            found.append("a drawing without a title")
    return found


def _tables(root: Element) -> list[str]:
    found = []
    for table in root.all("table"):
        if not _name(table, root) and not table.all("caption"):
            found.append("a table without a name")
        scopes = [cell.attributes.get("scope") for cell in table.all("th")]
        found += ["a header without scope" for scope in scopes if scope not in ("col", "row")]
        widths = {len(row.all("th", "td")) for row in table.all("tr")}
        if len(widths) != 1:
            found.append("a table with rows of different lengths")
        for row in table.all("tbody")[0].all("tr"):
            if row.all("th", "td")[0].tag != "th":
                found.append("a row without a header")
    return found


def _foreign(root: Element) -> list[str]:
    found = [f"<{element.tag}>" for element in root.all("script", "iframe", "object", "embed", "link", "base", "form")]
    for element in root.all():
        for key, value in element.attributes.items():
            if key.startswith("on"):
                found.append(f"{element.tag} {key}")
            if key.rpartition(":")[2] in REFERENCES and not re.match(r"#|data:image/jpeg;base64,", value):
                found.append(f"{element.tag} {key}={value[:30]}")
    style = " ".join(element.text() for element in root.all("style"))
    found += re.findall(r"@import|url\([^)]*\)", style)
    return found


# Contrast, after WCAG 2.2


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def palettes(style: str) -> list[dict[str, str]]:
    """Return the page's colours, in light and in dark."""
    found = re.findall(r":root \{([^}]*)\}", style)
    assert len(found) == 2
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in found]


def _contrasts(root: Element) -> list[str]:
    style = " ".join(element.text() for element in root.all("head")[0].all("style"))
    texts = set(re.findall(r"(?<![\w-])color: var\(--([\w-]+)\)", style))
    marks = set()
    for element in root.all():
        used = dict(re.findall(r"(fill|stroke): var\(--([\w-]+)\)", element.attributes.get("style", "")))
        texts |= {used["fill"]} if element.tag == "text" and "fill" in used else set()
        marks |= set(used.values()) if element.tag in ("path", "use") else set()
    marks -= {"ground", "raised", "edge"}  # grounds, and lines that only help the eye
    assert texts
    assert marks
    found = []
    for palette in palettes(style):
        for ground in ("ground", "raised"):
            for names, least in ((texts, 4.5), (marks, 3.0)):
                for name in sorted(names):
                    if (value := contrast(palette[name], palette[ground])) < least:
                        found.append(f"{name} on {ground}: contrast {value:.2f}")
    return found
