"""The checker catches known faults, planted into a history or into the engines."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import orjson
import pytest
import redis.asyncio

from tests.faults.apps import ACTION, AVAILABILITY, CREATE
from tests.faults.checker import check
from tests.faults.evidence import Event, Evidence, gather
from tests.faults.history import Attempt, History
from tests.harness.services import City, driver, open_city

TRIP = "default_t1"


def succeeded(
    history: History,
    user: str,
    action: str,
    version: int,
    *,
    key: str | None = None,
    endpoint: str = ACTION,
) -> Attempt:
    """A client's attempt that was answered with this version of the trip."""
    attempt = history.begin(user, endpoint, key or f"{user}-{action}", {"action": action})
    attempt.answered(
        200, orjson.dumps({"response_code": action, "trip": {"id": TRIP, "version": version}})
    )
    return attempt


def go_online(history: History, driver: str) -> None:
    body = {"availability_status": "available", "is_online": True, "zone": "default"}
    attempt = history.begin(driver, AVAILABILITY, f"{driver}-online", body)
    told = {**body, "trip_id": None}
    attempt.answered(200, orjson.dumps({"driver": told, "released_trip": None}))


@pytest.fixture
def evidence() -> Evidence:
    """A trip that was asked for, taken by d1 and completed, all of it as it should be."""
    history = History()
    go_online(history, "d1")
    succeeded(history, "rider", "create", 0, endpoint=CREATE)
    for version, action in enumerate(("accept", "arrive", "start", "complete"), 1):
        succeeded(history, "d1", action, version)
    history.told = {(TRIP, version) for version in range(5)}
    events = [Event(0, "created", "rider", None, time.time())]
    for version, event in enumerate(("accepted", "arrived", "started", "completed"), 1):
        events.append(Event(version, event, "d1", "d1", time.time()))
    trip = {"version": 4, "current_status": "completed", "driver_id": "d1", "customer_id": "rider"}
    driver = {"version": 0, "is_online": True, "availability_status": "available", "zone": "default"}
    driver |= {"vehicle_type": "car"}
    answers = {(a.user, a.endpoint, a.key): a.raw.decode() for a in history.attempts}
    live = {**driver, "is_online": "1", "version": "0"}
    return Evidence(
        history, trips={TRIP: trip}, events={TRIP: events}, answers=answers, drivers={"d1": driver},
        live_drivers={("default", "d1"): live},
    )  # fmt: skip


def checks_that_fail(evidence: Evidence) -> set[str]:
    return {breach.partition(":")[0] for breach in check(evidence)}


def test_nothing_is_amiss_where_all_is_well(evidence: Evidence) -> None:
    assert check(evidence) == []


def test_an_offer_that_ended_before_it_was_made(evidence: Evidence) -> None:
    evidence.offers_too_late = [(TRIP, "d1", 2)]
    assert checks_that_fail(evidence) == {"offers_end_after_they_were_made"}


def test_two_drivers_who_were_told_that_they_won(evidence: Evidence) -> None:
    """A claim without a check of the version."""
    succeeded(evidence.history, "d2", "accept", 1)
    assert "one_winner" in checks_that_fail(evidence)


def test_a_trip_that_was_taken_twice_in_its_history(evidence: Evidence) -> None:
    events = evidence.events[TRIP]
    events[2] = events[2]._replace(event="accepted", actor="d2")
    assert "one_winner" in checks_that_fail(evidence)


def test_a_driver_with_two_trips(evidence: Evidence) -> None:
    for name in ("default_t2", "default_t3"):
        evidence.trips[name] = {**evidence.trips[TRIP], "current_status": "ongoing"}
    assert "one_winner" in checks_that_fail(evidence)


def test_a_success_that_is_not_durable(evidence: Evidence) -> None:
    """An answer before the commit: the commit then failed."""
    evidence.events[TRIP].pop()
    evidence.trips[TRIP]["version"] = 3
    assert {"successes_are_durable", "trips_have_an_order"} <= checks_that_fail(evidence)


def test_an_answer_that_was_not_stored_with_its_effect(evidence: Evidence) -> None:
    del evidence.answers["d1", ACTION, "d1-start"]
    assert checks_that_fail(evidence) == {"successes_are_durable"}


def test_a_key_with_two_effects(evidence: Evidence) -> None:
    """A replay that is not stored: the retry was done anew."""
    first = succeeded(evidence.history, "d1", "accept", 5, key="d1-accept")
    evidence.events[TRIP].append(Event(5, "accepted", "d1", "d1", time.time()))
    evidence.trips[TRIP] |= {"version": 5}
    evidence.history.told.add((TRIP, 5))
    assert first.is_success
    assert "one_answer_a_key" in checks_that_fail(evidence)


def test_a_retry_that_is_refused_after_its_success(evidence: Evidence) -> None:
    again = evidence.history.begin("d1", ACTION, "d1-accept", {"action": "accept"})
    again.answered(409, b'{"response_code": "trip_already_assigned"}')
    assert checks_that_fail(evidence) == {"one_answer_a_key"}


def test_an_event_without_a_row(evidence: Evidence) -> None:
    del evidence.events[TRIP][2]
    assert {"versions_are_gapless", "successes_are_durable"} <= checks_that_fail(evidence)


def test_an_order_that_the_times_do_not_allow(evidence: Evidence) -> None:
    """Each answer is right by itself: only the times say that `arrive` was asked for after `start` had been."""
    by_key = {attempt.key: attempt for attempt in evidence.history.attempts}
    by_key["d1-start"].sent_at, by_key["d1-start"].answered_at = 10.0, 11.0
    by_key["d1-arrive"].sent_at, by_key["d1-arrive"].answered_at = 12.0, 13.0
    assert "trips_have_an_order" in checks_that_fail(evidence)


def test_an_event_that_the_stream_or_the_rider_never_heard(evidence: Evidence) -> None:
    evidence.history.told.discard((TRIP, 3))
    assert checks_that_fail(evidence) == {"every_event_is_heard"}
    evidence.history.told.add((TRIP, 3))
    evidence.history.hear("rider", {"type": "welcome"})
    assert check(evidence) == []  # a snapshot that came later tells of everything before
    evidence.events[TRIP][4] = evidence.events[TRIP][4]._replace(at=time.time() + 1)
    assert checks_that_fail(evidence) == {"every_event_is_heard"}
    evidence.history.hear("rider", {"type": "trip", "trip": {"id": TRIP, "version": 4}})
    assert check(evidence) == []


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url) as opened:
        yield opened


async def test_a_driver_and_a_trip_that_redis_has_otherwise(
    city: City, redis_url: str, database_url: str
) -> None:
    await city.online("d1", "d2")
    trip = await city.trip()
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)

    async def found() -> set[str]:
        return checks_that_fail(await gather(History(), database_url, client, ["default"]))

    rest = {
        "every_event_is_heard",
        "nothing_is_stuck",
        "trips_have_an_order",
    }  # the stream is cut short below; the trip is live, and no client's history tells of it
    try:
        assert "redis_equals_postgres" not in await found()
        for key, field, value in (
            (city.keys().driver("d2"), "availability_status", "unavailable"),
            (city.keys().driver("d1"), "trip_id", ""),
            (city.keys(trip).trip(trip), "driver_id", "d2"),
        ):
            before = await client.hget(key, field)
            await client.hset(key, field, value)
            assert "redis_equals_postgres" in await found(), (key, field)
            await client.hset(key, field, before)
        await client.delete(city.keys().driver("d2"))
        await client.xtrim(city.keys().events, maxlen=0)
        assert await found() == {"redis_equals_postgres", *rest}
    finally:
        await client.aclose()


async def test_an_event_row_that_is_gone_from_postgres(
    city: City, redis_url: str, database_url: str
) -> None:
    await city.online("d1")
    trip = await city.trip()
    history = History()
    accepted = await city.act(driver("d1"), "accept", trip, "k1")
    history.begin("d1", ACTION, "k1", {"action": "accept"}).answered(accepted.status, accepted.body)
    await city.postgres.execute("DELETE FROM trip_events WHERE trip_id = $1 AND version = 1", trip)
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)
    try:
        evidence = await gather(history, database_url, client, ["default"])
    finally:
        await client.aclose()
    assert {"versions_are_gapless", "successes_are_durable"} <= checks_that_fail(evidence)
