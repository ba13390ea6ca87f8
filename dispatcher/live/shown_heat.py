"""What drivers are shown of where work is waiting, as all servers find it in Redis."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import orjson

_CELL: Final = re.compile(r"[0-9a-f]{15}")


class ShownHeat(NamedTuple):
    """When it was made (ms), and by H3 cell: customers who asked, of these who wait, free drivers."""

    at_ms: int
    cells: Mapping[str, tuple[int, int, int]]


def heat_to_text(shown: ShownHeat) -> str:
    """The text that is kept."""
    return orjson.dumps(shown._asdict()).decode()


def heat_from_text(text: str) -> ShownHeat:
    """What was kept. Raises ValueError, TypeError or KeyError where the text is something else."""
    kept = orjson.loads(text)
    cells = {}
    for cell, (asked, waiting, free) in dict(kept["cells"]).items():
        if not _CELL.fullmatch(cell):
            raise ValueError("no cell")
        cells[cell] = (int(asked), int(waiting), int(free))
    return ShownHeat(int(kept["at_ms"]), cells)
