"""The page of the benchmarks, into which each script writes its tables."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["PAGE", "write_block"]

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def write_block(name: str, text: str, page: Path = PAGE) -> None:
    """Replace what stands between the markers `<!-- name -->` and `<!-- /name -->` of the page.

    Raises:
        SystemExit: if the page has no such markers.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    content, found = re.subn(
        f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    if not found:
        raise SystemExit(f"{page} has no place {begin} ... {end} for this table.")
    page.write_text(content, encoding="utf-8")
