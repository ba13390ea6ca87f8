"""Which pairs together cost least. Each connected part of who reaches whom is a problem of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np

from dispatcher.matching.lsap import load
from dispatcher.matching.score import Flags, Floats, Indexes

_linear_sum_assignment: Final = load()


def assign(
    cost: Floats, allowed: Flags, parts: Iterable[tuple[Indexes, Indexes]]
) -> Iterator[tuple[int, int]]:
    """Pairs (row, column) that are allowed, no row and no column twice. `parts` are those of `allowed`.

    As many as there can be, and of those the ones whose sum of `cost` is least.
    """
    for rows, columns in parts:
        of_part = np.ix_(rows, columns)
        part, may = cost[of_part], allowed[of_part]
        known = part[may]
        # Dearer than any number of pairs that are allowed: so there are as many of those as can be.
        forbidden = float(known.max()) + (float(np.ptp(known)) + 1.0) * (min(part.shape) + 1)
        for i, j in zip(*_linear_sum_assignment(np.where(may, part, forbidden)), strict=True):
            if may[i, j]:
                yield int(rows[i]), int(columns[j])


def connected_parts(allowed: Flags) -> Iterator[tuple[Indexes, Indexes]]:
    """Rows and columns of each connected part that has both.

    From a row to all columns that it allows, from those to all rows, until nothing new is reached: each
    row and each column is looked at once. That is as quick as SciPy's graphs, whose import is not.
    """
    rows_left: Flags = np.any(allowed, axis=1)
    columns_left: Flags = np.ones(allowed.shape[1], dtype=bool)
    for first in np.flatnonzero(rows_left):
        if not rows_left[first]:
            continue
        part_rows: list[Indexes] = []
        part_columns: list[Indexes] = []
        rows = np.array([first])
        while rows.size:
            rows_left[rows] = False
            part_rows.append(rows)
            columns = np.flatnonzero(allowed[rows].any(axis=0) & columns_left)
            columns_left[columns] = False
            part_columns.append(columns)
            rows = np.flatnonzero(allowed[:, columns].any(axis=1) & rows_left)
        yield np.sort(np.concatenate(part_rows)), np.sort(np.concatenate(part_columns))
