"""The heat of a zone: counted by cell, and what drivers are shown names no customer."""

from __future__ import annotations

from collections import defaultdict

import h3
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.matching.heat import CUSTOMERS_A_STEP, AskedTrip, HeatMap

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
def test_no_picture_tells_of_few_customers(
    trips: list[AskedTrip], drivers: list[tuple[float, float]]
) -> None:
    heat = HeatMap(trips, drivers)
    asked, waiting = defaultdict(set), defaultdict(set)
    for trip in trips:
        cell = h3.latlng_to_cell(trip.lat, trip.lng, 7)
        # A parent is not exactly what its children cover: it is theirs that are counted.
        cell = h3.cell_to_parent(h3.latlng_to_cell(trip.lat, trip.lng, 8), 7)
        if trip.is_new:
            asked[cell].add(trip.customer_id)
        if trip.is_waiting:
            waiting[cell].add(trip.customer_id)
    shown = heat.for_drivers()
    assert shown["resolution"] == 7
    for cell in shown["cells"]:
        name = cell["cell"]
        assert cell["asked"] or cell["waiting"]
        for told, customers in ((cell["asked"], asked[name]), (cell["waiting"], waiting[name])):
            assert told % CUSTOMERS_A_STEP == 0
            assert told <= len(customers) < told + CUSTOMERS_A_STEP
        assert set(cell) == {"cell", "boundary", "asked", "waiting", "free_drivers"}
    told_of = {cell["cell"] for cell in shown["cells"]}
    crowded = {
        cell
        for customers in (asked, waiting)
        for cell, who in customers.items()
        if len(who) >= CUSTOMERS_A_STEP
    }
    assert told_of == crowded
    exact = heat.for_operators()
    assert sum(cell["asked"] for cell in exact["cells"]) == sum(trip.is_new for trip in trips)
    assert sum(cell["waiting"] for cell in exact["cells"]) == sum(trip.is_waiting for trip in trips)
    assert sum(cell["free_drivers"] for cell in exact["cells"]) == len(drivers)


def test_one_customer_who_asks_often_is_one_customer() -> None:
    trips = [AskedTrip(40.75, -73.98, "c1", False)] * 9
    heat = HeatMap(trips, [(40.75, -73.98)])
    assert heat.for_drivers()["cells"] == []
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
