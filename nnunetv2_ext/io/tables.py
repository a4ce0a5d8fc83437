"""Tables in plain text and in markdown."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["format_table"]


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[object]], *, markdown: bool = False, padded: bool = True
) -> str:
    """Lay out a table.

    Args:
        header: column names.
        rows: one entry per column each; numbers are aligned to the right.
        markdown: make a markdown table instead of aligned text.
        padded: whether columns are as wide as their longest entry; without, a new row changes no other line.
    """
    cells = [[str(value) for value in row] for row in rows]
    # Three dashes are the shortest rule that every reader of markdown takes.
    widths = [
        max(len(line[column]) for line in [list(header), *cells]) if padded else 1 for column in range(len(header))
    ]
    numeric = [
        bool(rows) and all(isinstance(row[column], (int, float)) for row in rows) for column in range(len(header))
    ]

    def line(values: Sequence[str], edge: str, between: str) -> str:
        aligned = [
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        ]
        return f"{edge}{between.join(aligned)}{edge[::-1]}".rstrip()

    if not markdown:
        return "\n".join([line(header, "", "  "), *(line(row, "", "  ") for row in cells)])
    rule = "|".join("-" * (width + 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True))
    return "\n".join([line(header, "| ", " | "), f"|{rule}|", *(line(row, "| ", " | ") for row in cells)])
