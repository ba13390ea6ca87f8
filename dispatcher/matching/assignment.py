"""Which pairs together cost least. Each connected part of who reaches whom is a problem of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dispatcher.matching.score import Flags, Floats, Indexes


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
        for i, j in zip(*linear_sum_assignment(np.where(may, part, forbidden)), strict=True):
            if may[i, j]:
                yield int(rows[i]), int(columns[j])


def connected_parts(allowed: Flags) -> Iterator[tuple[Indexes, Indexes]]:
    """Rows and columns of each connected part that has both."""
    row_count, column_count = allowed.shape
    rows, columns = np.nonzero(allowed)
    if not rows.size:
        return
    graph = coo_array(
        (np.ones(rows.size, dtype=np.int8), (rows, columns + row_count)),
        shape=(row_count + column_count,) * 2,
    )
    _, labels = connected_components(graph, directed=False)
    of_rows, of_columns = labels[:row_count], labels[row_count:]
    for label in np.unique(of_rows[rows]):
        yield np.flatnonzero(of_rows == label), np.flatnonzero(of_columns == label)
