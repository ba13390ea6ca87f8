"""The heat of a zone: exact for operators, and for drivers with noise that covers each customer."""

from __future__ import annotations

import itertools
import secrets
from collections import Counter, defaultdict

import h3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.matching.heat import (
    FEWEST_SHOWN,
    AskedTrip,
    HeatMap,
    counts_for_drivers,
    noise,
    picture_for_drivers,
)

HERE, NORTH = (40.75, -73.98), (41.2, -73.98)
CELL = h3.latlng_to_cell(*HERE, 7)
#: No noise is further from 0, but for one count in 10^12.
FAR = 40
_PLACES = st.tuples(st.floats(40.70, 40.76), st.floats(-74.0, -73.94))
_TRIPS = st.lists(
    st.builds(
        lambda place, customer, is_waiting, is_new: AskedTrip(*place, customer, is_waiting, is_new),
        _PLACES,
        st.sampled_from([f"c{i}" for i in range(12)]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=60)
@given(trips=_TRIPS, drivers=st.lists(_PLACES, max_size=30))
def test_operators_see_what_there_is(trips: list[AskedTrip], drivers: list[tuple[float, float]]) -> None:
    exact = HeatMap(trips, drivers).for_operators()
    assert sum(cell["asked"] for cell in exact["cells"]) == sum(trip.is_new for trip in trips)
    assert sum(cell["waiting"] for cell in exact["cells"]) == sum(trip.is_waiting for trip in trips)
    assert sum(cell["free_drivers"] for cell in exact["cells"]) == len(drivers)


@settings(deadline=None, max_examples=60)
@given(
    trips=_TRIPS, drivers=st.lists(_PLACES, max_size=30), seen=st.lists(_PLACES, min_size=1, max_size=9)
)
def test_drivers_see_customers_once_and_no_few(
    trips: list[AskedTrip], drivers: list[tuple[float, float]], seen: list[tuple[float, float]]
) -> None:
    cells: dict[str, set[str]] = defaultdict(set)
    first: dict[str, str] = {}
    for trip in trips:
        cell = first.setdefault(trip.customer_id, h3.latlng_to_cell(trip.lat, trip.lng, 7))
        cells[cell].add(trip.customer_id)
    counts = counts_for_drivers(trips, drivers, seen, lambda: 0)
    of_seen = {h3.latlng_to_cell(*place, 7) for place in seen}
    looked_at = {cell for center in of_seen for cell in h3.grid_disk(center, 2)}
    assert {cell: asked for cell, (asked, _, _) in counts.items()} == {
        cell: len(who)
        for cell, who in cells.items()
        if len(who) >= FEWEST_SHOWN and cell in looked_at
    }  # fmt: skip
    for asked, waiting, free in counts.values():
        assert waiting == 0 or FEWEST_SHOWN <= waiting <= asked
        assert 0 <= free <= len(drivers)
    for cell in picture_for_drivers(counts)["cells"]:
        assert set(cell) == {"cell", "boundary", "asked", "waiting", "free_drivers"}


def test_the_noise_is_what_two_coins_differ_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all throws: k with 2^-|k| / 3."""
    throws = range(2**8)
    thrown = iter([bits for pair in itertools.product(throws, throws) for bits in pair])
    monkeypatch.setattr(secrets, "randbits", lambda _: next(thrown))
    found = Counter(noise() for _ in range(len(throws) ** 2))
    for k in range(-3, 4):
        assert found[k] / len(throws) ** 2 == pytest.approx(2.0 ** -abs(k) / 3, rel=0.02)


def told(customers: int) -> dict[int, float]:
    """With what probability drivers are told of how many, where there are so many."""
    trips = [AskedTrip(*HERE, f"c{i}", is_waiting=False) for i in range(customers)]
    found: dict[int, float] = defaultdict(float)
    for k in range(-FAR, FAR + 1):
        counts = counts_for_drivers(trips, [], [HERE], lambda k=k: k)
        found[counts.get(CELL, (0, 0, 0))[0]] += 2.0 ** -abs(k) / 3
    return found


def test_one_customer_more_makes_no_answer_more_than_twice_as_likely() -> None:
    before = told(0)
    assert 1 - before[0] == pytest.approx(2.0**-FEWEST_SHOWN * 2 / 3, rel=1e-6), (
        "some hundredth of cells"
    )
    for customers in range(1, 15):
        after = told(customers)
        for seen in range(FEWEST_SHOWN + 20):
            ratio = (after[seen] + 1e-12) / (before[seen] + 1e-12)
            assert 0.5 - 1e-3 <= ratio <= 2 + 1e-3, (customers, seen)
        assert 0 < after[0] < 1, "there is no number at which a cell is shown for certain, nor hidden"
        before = after


def test_which_cells_are_looked_at_says_nothing_of_customers() -> None:
    trips = [AskedTrip(*place, f"c{i}", True) for i in range(50) for place in (NORTH, HERE)]
    alone = counts_for_drivers([], [], [HERE], lambda: FEWEST_SHOWN)
    assert len(alone) == 19
    assert counts_for_drivers(trips, [], [HERE], lambda: FEWEST_SHOWN).keys() == alone.keys()
    assert counts_for_drivers(trips, [], [], lambda: FEWEST_SHOWN) == {}


def test_a_customer_counts_in_one_cell_however_often_they_ask() -> None:
    trips = [AskedTrip(*place, f"c{i}", place is NORTH) for i in range(7) for place in (HERE, NORTH)]
    drivers = [HERE, NORTH]
    assert counts_for_drivers(trips * 3, drivers, drivers, lambda: 0) == {CELL: (7, 7, 1)}


def test_one_customer_who_asks_often_is_one_customer() -> None:
    trips = [AskedTrip(40.75, -73.98, "c1", False)] * 9
    assert counts_for_drivers(trips, [], [HERE], lambda: 0) == {}
    heat = HeatMap(trips, [(40.75, -73.98)])
    (cell,) = heat.for_operators()["cells"]
    assert (cell["asked"], cell["waiting"], cell["free_drivers"]) == (9, 0, 1)
    assert h3.latlng_to_cell(40.75, -73.98, 8) == cell["cell"]
    assert len(cell["boundary"]) >= 5


def test_scarce_is_where_more_wait_than_are_free() -> None:
    here, there = (40.75, -73.98), (40.70, -73.90)
    trips = [AskedTrip(*here, f"c{i}", True) for i in range(3)]
    assert HeatMap(trips, [here, there, there]).scarce_cells() == 1
    assert HeatMap(trips, [here] * 3).scarce_cells() == 0
    assert HeatMap().scarce_cells() == 0
