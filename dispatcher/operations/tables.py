"""Tables for people: columns as wide as what stands in them."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a table; nothing is cut off, and the last column may be of any width."""
    texts = [tuple(head), *(tuple(_shown(cell) for cell in row) for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(head) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in texts
    ]


def _shown(cell: object) -> str:
    """A cell on one line: what users wrote may hold anything."""
    text = "-" if cell is None else str(cell)
    return "".join(character if character.isprintable() else "?" for character in text)
