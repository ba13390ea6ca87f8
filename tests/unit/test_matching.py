"""A round of matching: whom it may choose, and that it chooses the cheapest plan.."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core.distance import great_circle_m
from dispatcher.core.zones import Matching, Wave, Weights
from dispatcher.matching.circles import circles, small_circles
from dispatcher.matching.looks import LOOK_AGAIN_MS, LOOK_FURTHER_MS, longest_wait_ms, look
from dispatcher.matching.model import NO_ROAD, NearbyDriver, RoundPlan, TripPlace, WaitingTrip
from dispatcher.matching.planner import near_pairs, plan_round
from dispatcher.matching.plenty import supplies, supply_by_trip
from dispatcher.matching.reach import chords_m, distances_m, on_sphere
from dispatcher.matching.scarcity import Scarcity, are_scarce, enough_around, is_outnumbered

NOW_MS = 1_795_000_000_000
FIX_AGE_MS = 60_000
MAX_OPEN = 3
#: About 111 m of latitude.
STEP = 0.001
PLAIN = Matching(weights=Weights(waiting=0, idle=0, turned_down_s=0, open_offer_s=0))


def trip(name: str, lat: float = 50.0, lng: float = 8.0, **more: Any) -> WaitingTrip:
    usual = {"vehicle_type": "car", "waiting_since_ms": NOW_MS, "reach_m": 6_000.0}
    return WaitingTrip(name, lat, lng, **{**usual, **more})


def driver(name: str, lat: float = 50.0, lng: float = 8.0, **more: Any) -> NearbyDriver:
    usual = {"vehicle_type": "car", "fix_ms": NOW_MS, "present_until_ms": NOW_MS + 1}
    return NearbyDriver(name, lat, lng, **{**usual, **more})


def plan(
    trips: list[WaitingTrip], drivers: list[NearbyDriver], rules: Matching = PLAIN, **more: Any
) -> RoundPlan:
    return plan_round(
        trips, drivers, rules, now_ms=NOW_MS, fix_age_ms=FIX_AGE_MS, max_open_offers=MAX_OPEN, **more
    )


def matched(found: RoundPlan) -> dict[str, str]:
    return {trip_id: order[0].driver_id for trip_id, order in found.orders.items()}


PLACES = st.integers(-60, 60).map(lambda steps: steps * STEP)
NAMES = [f"d{i}" for i in range(8)]
TRIP = st.builds(
    trip,
    st.just(""),
    PLACES.map(lambda d: 50 + d),
    PLACES.map(lambda d: 8 + d),
    vehicle_type=st.sampled_from(["car", "van", "bike"]),
    waiting_since_ms=st.integers(NOW_MS - 180_000, NOW_MS + 5),
    reach_m=st.sampled_from([500.0, 1_500.0, 6_000.0]),
    excluded=st.frozensets(st.sampled_from(NAMES), max_size=3),
)
DRIVER = st.builds(
    driver,
    st.just(""),
    PLACES.map(lambda d: 50 + d),
    PLACES.map(lambda d: 8 + d),
    vehicle_type=st.sampled_from(["car", "van"]),
    fix_ms=st.sampled_from([NOW_MS, NOW_MS - FIX_AGE_MS, NOW_MS - FIX_AGE_MS + 1]),
    present_until_ms=st.sampled_from([0, NOW_MS, NOW_MS + 1]),
    is_online=st.sampled_from([True, True, False]),
    availability_status=st.sampled_from(["available", "available", "unavailable"]),
    trip_id=st.sampled_from(["", "", "z_9"]),
    open_offers=st.integers(0, MAX_OPEN),
    turned_down=st.integers(0, 9),
    free_since_ms=st.none() | st.integers(NOW_MS - 10_000_000, NOW_MS + 5),
)


def some_trips(most: int) -> st.SearchStrategy[list[WaitingTrip]]:
    """So many trips at most, each of its own id."""
    return st.lists(TRIP, max_size=most).map(
        lambda trips: [replace(t, trip_id=f"z_{i}") for i, t in enumerate(trips)]
    )


def some_drivers(most: int) -> st.SearchStrategy[list[NearbyDriver]]:
    """So many drivers at most, each of their own name."""
    return st.lists(DRIVER, max_size=most).map(
        lambda drivers: [replace(d, driver_id=NAMES[i]) for i, d in enumerate(drivers)]
    )


TRIPS, DRIVERS = some_trips(7), some_drivers(len(NAMES))


@settings(deadline=None)
@given(TRIPS, DRIVERS)
def test_nobody_is_matched_who_may_not_be(trips: list[WaitingTrip], drivers: list[NearbyDriver]) -> None:
    found = plan(trips, drivers, Matching())
    drivers_by_name = {d.driver_id: d for d in drivers}
    trips_by_name = {t.trip_id: t for t in trips}
    first = list(matched(found).values())
    assert len(first) == len(set(first)), "nobody is matched twice"
    assert len(trips) - len(found.orders) <= sum(found.in_want.values()) <= len(trips)
    for trip_id, order in found.orders.items():
        asked = trips_by_name[trip_id]
        names = [ranked.driver_id for ranked in order]
        assert 1 <= len(names) == len(set(names)) <= 4
        assert [r.distance_m for r in order[1:]] == sorted(r.distance_m for r in order[1:])
        for ranked in order:
            who = drivers_by_name[ranked.driver_id]
            assert ranked.distance_m <= asked.reach_m
            assert ranked.distance_m == pytest.approx(float(distances_m([asked], [who])[0, 0]))
            assert ranked.driver_id not in asked.excluded
            assert who.vehicle_type == asked.vehicle_type
            assert who.is_online
            assert who.availability_status == "available"
            assert not who.trip_id
            assert who.fix_ms > NOW_MS - FIX_AGE_MS
            assert who.present_until_ms > NOW_MS
            assert who.open_offers < MAX_OPEN
            assert ranked.score.total_s == pytest.approx(sum(ranked.score[1:]), abs=1e-6)


@settings(deadline=None)
@given(some_trips(4), some_drivers(4))
def test_the_plan_is_the_cheapest_of_those_with_most_trips(
    trips: list[WaitingTrip], drivers: list[NearbyDriver]
) -> None:
    rules = Matching()
    costs = {}
    for asked, who in itertools.product(trips, drivers):
        alone = plan([asked], [who], rules).orders.get(asked.trip_id)
        if alone:
            costs[asked.trip_id, who.driver_id] = alone[0].score.total_s
    best = (0, 0.0)
    for choice in itertools.product([None, *(d.driver_id for d in drivers)], repeat=len(trips)):
        pairs = [(t.trip_id, d) for t, d in zip(trips, choice, strict=True) if d is not None]
        names = [d for _, d in pairs]
        if len(names) == len(set(names)) and all(pair in costs for pair in pairs):
            best = min(best, (-len(pairs), math.fsum(costs[pair] for pair in pairs)))
    orders = plan(trips, drivers, rules).orders.values()
    assert -len(orders) == best[0]
    assert math.fsum(order[0].score.total_s for order in orders) == pytest.approx(best[1], abs=1e-6)


def test_trips_are_decided_on_together_and_not_in_the_order_they_came() -> None:
    """The first trip's nearest driver is the only one whom the second trip reaches."""
    trips = [trip("z_1", 50.0), trip("z_2", 50 - 20 * STEP, reach_m=2_500)]
    drivers = [driver("d1", 50 - STEP), driver("d2", 50 + 3 * STEP)]
    assert matched(plan(trips, drivers)) == {"z_1": "d2", "z_2": "d1"}


def test_a_trip_without_a_driver_waits() -> None:
    found = plan([trip("z_1"), trip("z_2")], [driver("d1")])
    assert (len(found.orders), found.in_want) == (1, {"car": 2})


@pytest.mark.parametrize(
    ("weights", "first", "second"),
    [
        (Weights(0, 1, 0, 0), {}, {"free_since_ms": NOW_MS - 300_000}),
        (Weights(0, 0, 60, 0), {"turned_down": 2}, {}),
        (Weights(0, 0, 0, 60), {"open_offers": 1}, {}),
    ],
)
def test_what_a_driver_has_done_outweighs_a_little_way(
    weights: Weights, first: dict[str, Any], second: dict[str, Any]
) -> None:
    drivers = [driver("d1", 50 + STEP, **first), driver("d2", 50 + 2 * STEP, **second)]
    assert matched(plan([trip("z_1")], drivers)) == {"z_1": "d1"}
    assert matched(plan([trip("z_1")], drivers, Matching(weights=weights))) == {"z_1": "d2"}


def test_waiting_decides_between_trips_that_want_the_same_driver() -> None:
    trips = [trip("z_1", 50 + STEP), trip("z_2", 50 + 2 * STEP, waiting_since_ms=NOW_MS - 170_000)]
    assert matched(plan(trips, [driver("d1")])) == {"z_1": "d1"}
    patient = Matching(weights=Weights(waiting=0.5))
    assert matched(plan(trips, [driver("d1")], patient)) == {"z_2": "d1"}


def test_the_way_by_road_stands_where_it_is_known() -> None:
    drivers = [driver("d1", 50 + STEP), driver("d2", 50 + 2 * STEP)]
    ways = {("z_1", "d1"): 900.0, ("z_1", "d2"): 100.0, ("z_1", "gone"): 1.0}
    (order,) = plan([trip("z_1")], drivers, ways=ways).orders.values()
    assert [(r.driver_id, r.score.way_s) for r in order] == [("d2", 100), ("d1", 900)]


def test_a_way_that_was_not_asked_for_is_taken_to_be_a_detour_like_the_others() -> None:
    drivers = [driver("d1", 50 + STEP), driver("d2", 50 + 2 * STEP)]
    straight_s = plan([trip("z_1")], drivers[1:]).orders["z_1"][0].score.way_s
    (order,) = plan([trip("z_1")], drivers, ways={("z_1", "d1"): straight_s}).orders.values()
    assert [r.driver_id for r in order] == ["d1", "d2"], "twice the straight way, for both"
    assert order[1].score.way_s == pytest.approx(2 * straight_s, rel=1e-3)


def test_who_has_no_road_to_a_pickup_is_asked_only_if_nobody_has_one() -> None:
    drivers = [driver("d1", 50 + STEP), driver("d2", 50 + 50 * STEP), driver("d3", 50 + 20 * STEP)]
    ways = {("z_1", "d1"): NO_ROAD, ("z_1", "d2"): 1_800.0}
    (order,) = plan([trip("z_1")], drivers, ways=ways).orders.values()
    assert [r.driver_id for r in order] == ["d3", "d2"]
    (order,) = plan([trip("z_1")], drivers[:2], ways=ways).orders.values()
    assert [r.driver_id for r in order] == ["d2"]
    (order,) = plan([trip("z_1")], drivers[:1], ways=ways).orders.values()
    assert [r.driver_id for r in order] == ["d1"], "the map may lack a bridge"


def test_odd_ways_by_road_shorten_the_others_by_half_at_most() -> None:
    drivers = [driver("d1", 50 + STEP), driver("d2", 50 + 50 * STEP)]
    straight_s = plan([trip("z_1")], drivers[1:]).orders["z_1"][0].score.way_s
    for way_s, factor in ((0.0, 0.5), (80_000.0, 5.0)):
        (order,) = plan([trip("z_1")], drivers, ways={("z_1", "d1"): way_s}).orders.values()
        (other,) = [ranked for ranked in order if ranked.driver_id == "d2"]
        assert other.score.way_s == pytest.approx(factor * straight_s)


def test_ways_are_asked_for_where_they_may_matter() -> None:
    near = [driver(f"d{i}", 50 + i * STEP) for i in range(9)]
    others = [driver("far", 51), driver("van", 50, vehicle_type="van"), driver("barred", 50)]
    (pair,) = near_pairs([trip("z_1", excluded=frozenset({"barred"}))], [*others, *near[::-1]])
    assert [d.driver_id for d in pair[1]] == [f"d{i}" for i in range(8)]
    assert near_pairs([], near) == near_pairs([trip("z_1")], []) == []


WAVES = (Wave(3, 1_000, 10), Wave(5, 2_000, 20))


def test_each_look_reaches_further_and_the_widest_again() -> None:
    assert look(WAVES, 0) == (WAVES[0], False, LOOK_FURTHER_MS)
    assert look(WAVES, 1) == look(WAVES, 9) == (WAVES[1], True, LOOK_AGAIN_MS)
    assert longest_wait_ms(WAVES) == 30_000


def test_drivers_are_scarce_when_two_trips_find_nobody() -> None:
    scarcity = Scarcity(3_000)
    assert scarcity.found_nobody("z_1", 0) is None
    assert scarcity.found_nobody("z_1", 1_000) is None, "one trip gains nothing by being matched"
    assert scarcity.found_nobody("z_2", 4_500) is None, "the first has long found somebody"
    assert scarcity.found_nobody("z_1", 5_000) == 20_000


def test_matching_goes_on_for_as_long_as_trips_are_in_want() -> None:
    scarcity = Scarcity(3_000)
    assert scarcity.saw_round(2, 1_000) == 16_000
    assert scarcity.saw_round(1, 1_000) is None, "one trip gains nothing by being matched"
    assert [are_scarce(trips, 3) for trips in (1, 2, 3)] == [False, True, True]
    assert not are_scarce(2, 4)


def test_who_is_in_want_is_said_of_each_part_of_the_zone() -> None:
    crowd = [trip(f"z_c{i}") for i in range(3)]
    drivers = [driver(f"d{i}", 50 + i * STEP) for i in range(9)]
    nobody = [trip("z_v", vehicle_type="van"), trip("z_far", 55.0)]
    assert plan(crowd, drivers).in_want == {}
    assert plan([*crowd, *nobody], drivers).in_want == {"car": 1, "van": 1}
    four = plan([*crowd, *nobody], drivers[:4])
    assert four.in_want == {"car": 4, "van": 1}, "four drivers are scarce for three trips"
    assert plan([trip("z_1"), trip("z_2", 51.0)], [drivers[0], driver("d", 51.0)]).in_want == {}
    # Where there are drivers enough one corner may still lack them.
    corner = [trip(f"z_k{i}", 50 + 58 * STEP) for i in range(3)]
    between = trip("z_b", 50 + 30 * STEP)
    far_off = [driver(f"d{i}") for i in range(9)]
    assert plan([between, *corner], [*far_off, driver("d", 50 + 58 * STEP)]).in_want == {"car": 2}


PLACES_AROUND = st.lists(
    st.tuples(PLACES.map(lambda d: 50 + d), PLACES.map(lambda d: 8 + d)), max_size=8
)


@settings(deadline=None)
@given(PLACES_AROUND, PLACES_AROUND, st.sampled_from([500.0, 1_500.0, 6_000.0]))
def test_drivers_are_enough_where_they_are_twice_the_trips_that_reach_them(
    drivers: list[tuple[float, float]], others: list[tuple[float, float]], reach_m: float
) -> None:
    mine = (50.0, 8.0)
    of_drivers, of_trips = on_sphere(drivers), on_sphere([*others, mine])
    near = chords_m(of_trips, of_drivers) < reach_m
    own = near[-1]
    rivals = int(near[:, own].any(axis=1).sum())
    (found,) = supplies([len(others)], of_trips, of_drivers, reach_m)
    assert found == (int(own.sum()), rivals)
    assert found.is_plenty() == (bool(own.any()) and (rivals == 1 or own.sum() > 2 * rivals))


def test_the_supply_of_many_trips_and_drivers_is_counted_in_parts() -> None:
    trips = on_sphere([(50.0, 8 + i * STEP) for i in range(300)])
    drivers = on_sphere([(50.0, 8 + i * STEP) for i in range(0, 300, 2)])
    near = chords_m(trips, drivers) < 1_000
    expected = [(int(own.sum()), int(near[:, own].any(axis=1).sum())) for own in near]
    assert supplies(range(300), trips, drivers, 1_000) == expected


def with_plenty(*args: Any) -> set[str]:
    return {trip_id for trip_id, supply in supply_by_trip(*args).items() if supply.is_plenty()}


def test_trips_that_reach_none_of_the_drivers_hold_nobody_up() -> None:
    mine = TripPlace("z_1", (50.0, 8.0), "car")
    near = [(50 + i * STEP, 8.0) for i in range(1, 6)]
    vans = [TripPlace(f"z_v{i}", (50.0, 8.0), "van") for i in range(9)]
    far = [TripPlace(f"z_f{i}", (50.4, 8.0), "car") for i in range(9)]
    assert with_plenty({"z_1"}, [mine, *vans, *far], {"car": near[:1]}, 6_000) == {"z_1"}
    assert with_plenty({"z_1"}, [mine, *vans, *far], {}, 6_000) == set()
    rivals = [TripPlace(f"z_r{i}", (50.05, 8.0), "car") for i in range(2)]
    assert with_plenty({"z_1"}, [mine, *rivals, *vans], {"car": near}, 6_000) == set()
    assert with_plenty({"z_1"}, [mine, rivals[0], *vans], {"car": near}, 6_000) == {"z_1"}
    assert [enough_around(trips) for trips in (1, 2, 9)] == [1, 5, 19]


def test_a_trip_is_outnumbered_where_drivers_are_no_more_than_trips() -> None:
    assert [is_outnumbered(2, drivers) for drivers in (0, 2, 3)] == [True, True, False]
    assert not is_outnumbered(1, 0), "one trip gains nothing by being matched"
    assert Scarcity(3_000).saw_shortage(1_000) == 16_000


@settings(deadline=None)
@given(TRIPS, DRIVERS)
def test_drivers_are_looked_for_wherever_trips_reach(
    trips: list[WaitingTrip], drivers: list[NearbyDriver]
) -> None:
    reach_m = 6_000.0
    places = [(asked.lat, asked.lng) for asked in trips]
    for found in (circles(places, reach_m), small_circles(places, reach_m)):
        assert sum(circle.trips for circle in found) == len(trips)
        for asked, who in itertools.product(trips, drivers):
            if float(distances_m([asked], [who])[0, 0]) <= reach_m:
                away_m = [great_circle_m(*circle.place, who.lat, who.lng) for circle in found]
                assert any(m <= c.radius_m for m, c in zip(away_m, found, strict=True))


def test_what_lies_between_trips_that_are_far_apart_is_left_out() -> None:
    places = [(50.0, 8.0), (50.4, 8.0), (50.401, 8.0), (50.0, 179.99), (50.0, -179.99)]
    found = circles(places, 6_000)
    assert len(found) == 4
    assert all(circle.radius_m < 2.5 * 6_000 for circle in found)
    between = great_circle_m(*found[0].place, 50.2, 8.0)
    assert between > found[0].radius_m


def test_the_middle_of_a_small_circle_is_near_each_of_its_trips() -> None:
    grid = [(50 + i * STEP, 8 + j * STEP) for i in range(0, 40, 4) for j in range(0, 40, 4)]
    found = small_circles(grid, 6_000)
    assert len(found) == 36
    assert all(circle.radius_m < 1.1 * 6_000 for circle in found)
    wide = [(50 + i / 10, 8 + j / 10) for i in range(40) for j in range(40)]
    assert len(small_circles(wide, 6_000)) == len(circles(wide, 6_000)), "as far as their number allows"
