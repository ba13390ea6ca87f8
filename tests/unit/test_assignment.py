"""Parts of a round and their assignment, against SciPy's; and what loading them loads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from dispatcher.matching import lsap
from dispatcher.matching.assignment import connected_parts

SEEDS = st.integers(0, 2**32 - 1)


def test_the_rest_of_scipy_is_not_loaded() -> None:
    """A failure says that the installed SciPy keeps the function elsewhere: adapt `matching/lsap.py`."""
    shown = subprocess.run(
        [sys.executable, "-c", "import sys; from dispatcher.matching.solver import load_solver;"
         "print(load_solver(), *(name for name in sys.modules if name.startswith('scipy')))"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert shown == "True\n"


def test_a_scipy_that_keeps_it_elsewhere_is_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lsap, "load_alone", lambda: None)
    assert lsap.load() is linear_sum_assignment


@given(SEEDS, st.integers(1, 12), st.integers(1, 12))
def test_the_function_is_scipys(seed: int, rows: int, columns: int) -> None:
    cost = np.random.default_rng(seed).random((rows, columns))
    for ours, theirs in zip(lsap.load()(cost), linear_sum_assignment(cost), strict=True):
        assert ours.tolist() == theirs.tolist()


@given(SEEDS, st.integers(0, 12), st.integers(0, 12), st.floats(0, 0.6))
def test_the_parts_are_those_of_the_graph(seed: int, rows: int, columns: int, share: float) -> None:
    allowed = np.random.default_rng(seed).random((rows, columns)) < share
    edges = np.zeros((rows + columns,) * 2, dtype=np.int8)
    edges[:rows, rows:] = allowed
    labels = connected_components(csr_array(edges), directed=False)[1] if edges.size else np.array([])
    expected = {
        (tuple(np.flatnonzero(labels[:rows] == label)), tuple(np.flatnonzero(labels[rows:] == label)))
        for label in set(labels.tolist())
    }
    found = [
        (tuple(part_rows), tuple(part_columns)) for part_rows, part_columns in connected_parts(allowed)
    ]
    assert len(found) == len(set(found))
    assert set(found) == {part for part in expected if part[0] and part[1]}
