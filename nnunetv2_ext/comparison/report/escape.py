"""Names of strangers in Markdown and LaTeX: shown as they are, whatever signs they hold."""

from __future__ import annotations

import re

from nnunetv2_ext.comparison.report.svg import visible_text

__all__ = ["escape_latex", "escape_markdown", "fence_markdown"]

_MARKDOWN = {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{sign: f"\\{sign}" for sign in "\\`*_{}[]#|~$!"}}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "\N{MINUS SIGN}": "$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{REPLACEMENT CHARACTER}": "?",
    **{sign: f"\\{sign}" for sign in "{}$&#%_"},
}


def escape_markdown(text: str) -> str:
    """Return a text that Markdown shows as it is, in one line, in a table too."""
    line = visible_text(" ".join(text.split()))
    return "".join(_MARKDOWN.get(sign, sign) for sign in line)


def fence_markdown(text: str) -> str:
    """Return a block of code with a fence that is longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def escape_latex(text: str) -> str:
    """Return a text that LaTeX sets as it is, in one line."""
    line = visible_text(" ".join(text.split()))
    # Two hyphens would become a dash.
    return "".join(_LATEX.get(sign, sign) for sign in line).replace("--", "-{}-").replace("\N{EN DASH}", "--")
