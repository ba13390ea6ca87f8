"""Crowds against real engines, judged by what Postgres holds at the end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import asyncpg
import pytest

from dispatcher.core.actors import Actor, Role
from tests.harness.services import City, code_of, driver, open_city, rider


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url) as opened:
        yield opened


async def test_ten_drivers_one_winner(city: City) -> None:
    names = [f"d{i}" for i in range(10)]
    await city.online(*names)
    trip = await city.trip()
    answers = await asyncio.gather(*(city.act(driver(n), "accept", trip) for n in names))
    assert Counter(a.status for a in answers) == {200: 1, 409: 9}
    row = await city.row(trip)
    assert (row["current_status"], row["version"]) == ("accepted", 1)
    assert row["locked_at"] is not None
    assert {code_of(a) for a in answers} == {"trip_accepted", "trip_already_assigned"}


async def _last_statements(postgres: asyncpg.Connection) -> set[tuple[int, object]]:
    """Every other backend of this database, with the start of its last statement."""
    rows = await postgres.fetch(
        """SELECT pid, query_start FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()"""
    )
    return {(row["pid"], row["query_start"]) for row in rows}


async def test_a_thousand_drivers_and_losers_that_cost_no_sql(city: City) -> None:
    names = [f"d{i}" for i in range(1000)]
    await city.online(*names)
    for round_ in range(20):
        trip = await city.trip()
        answers = await asyncio.gather(
            *(city.act(driver(n), "accept", trip, f"{round_}-{n}") for n in names)
        )
        assert Counter(a.status for a in answers) == {200: 1, 409: 999}
        winner = driver((await city.row(trip))["driver_id"])
        for action in ("arrive", "start", "complete"):
            assert (await city.act(winner, action, trip)).status == 200
    assert await city.double_assignments() == 0
    assert await city.postgres.fetchval("SELECT count(*) FROM trip_events") == 20 * 5
    # One crowd more, of losers alone: no backend has begun a statement meanwhile.
    before = await _last_statements(city.postgres)
    answers = await asyncio.gather(*(city.act(driver(n), "accept", trip, f"late-{n}") for n in names))
    assert {a.status for a in answers} == {409}
    assert await _last_statements(city.postgres) == before


async def test_a_driver_who_accepts_two_trips_at_once_gets_one(city: City) -> None:
    await city.online("d1")
    trips = [await city.trip() for _ in range(8)]
    answers = await asyncio.gather(*(city.act(driver("d1"), "accept", t) for t in trips))
    assert Counter(a.status for a in answers) == {200: 1, 409: 7}
    assert {code_of(a) for a in answers if a.status == 409} == {"driver_not_available"}
    active = await city.postgres.fetchval("SELECT count(*) FROM trip_requests WHERE driver_id = 'd1'")
    assert active == 1


async def test_one_key_a_hundred_times_at_once(city: City) -> None:
    await city.online("d1")
    trip = await city.trip()
    answers = await asyncio.gather(*(city.act(driver("d1"), "accept", trip, "k1") for _ in range(100)))
    done = [a for a in answers if a.status == 200]
    assert len({a.body for a in done}) == 1
    assert {code_of(a) for a in answers if a.status != 200} <= {"request_in_progress"}
    assert sum(not a.replayed for a in done) == 1
    again = await city.act(driver("d1"), "accept", trip, "k1")
    assert again.replayed
    assert again.body == done[0].body
    assert await city.postgres.fetchval("SELECT count(*) FROM idempotency_keys") == 1
    assert await city.postgres.fetchval("SELECT count(*) FROM trip_events WHERE event = 'accepted'") == 1


async def test_two_servers_and_a_redis_that_forgets(redis_url: str, database_url: str) -> None:
    """Redis is emptied again and again while two servers' drivers fight: Postgres holds."""
    async with open_city(redis_url, database_url) as one, open_city(redis_url, database_url) as two:
        names = [f"d{i}" for i in range(40)]
        await one.online(*names)
        trips = [await one.trip() for _ in range(30)]

        async def fight(city: City, name: str) -> None:
            for trip in trips:
                answer = await city.act(driver(name), "accept", trip, f"{name}-{trip}")
                if answer.status == 200 and len(name) % 2:
                    await city.act(driver(name), "cancel", trip)

        async def forget() -> None:
            for _ in range(15):
                await asyncio.sleep(0.02)
                await one.redis("FLUSHDB")

        await asyncio.gather(forget(), *(fight((one, two)[i % 2], name) for i, name in enumerate(names)))
        assert await one.double_assignments() == 0


async def test_cancel_and_accept_race(city: City) -> None:
    await city.online(*(f"d{i}" for i in range(20)))
    trips = [await city.trip() for _ in range(20)]
    answers = await asyncio.gather(
        *(city.act(driver(f"d{i}"), "accept", t) for i, t in enumerate(trips)),
        *(city.act(rider("rider"), "cancel", t) for t in trips),
    )
    for trip, accepted, cancelled in zip(trips, answers[:20], answers[20:], strict=True):
        row = await city.row(trip)
        assert cancelled.status == 200
        assert row["current_status"] == "cancelled"
        assert row["version"] == (2 if accepted.status == 200 else 1)
    assert await city.double_assignments() == 0
    for i in range(20):
        assert not await city.redis("HGET", city.keys().driver(f"d{i}"), "trip_id")


async def test_going_offline_releases_in_one_commit(city: City) -> None:
    await city.online("d1", location=(40.75, -73.98))
    keys = city.keys()
    assert await city.redis("ZSCORE", keys.geo("car"), "d1")
    trip = await city.trip()
    await city.act(driver("d1"), "accept", trip)
    answer = await city.available("d1", is_online=False)
    assert answer.status == 200
    row = await city.row(trip)
    assert (row["current_status"], row["driver_id"], row["version"]) == ("pending", None, 2)
    assert row["locked_at"] is None
    assert await city.redis("ZSCORE", keys.geo("car"), "d1") is None
    same = await city.postgres.fetchval(
        "SELECT t.xmin::text = d.xmin::text FROM trip_requests t, driver_details d"
    )
    assert same, "trip and driver were not changed by one transaction"
    assert (await city.hash(trip))["current_status"] == "pending"


async def test_going_offline_keeps_an_ongoing_trip(city: City) -> None:
    await city.online("d1")
    trip = await city.trip()
    for action in ("accept", "arrive", "start"):
        assert (await city.act(driver("d1"), action, trip)).status == 200
    assert (await city.available("d1", is_online=False)).status == 200
    row = await city.row(trip)
    assert (row["current_status"], row["driver_id"]) == ("ongoing", "d1")
    assert (await city.act(driver("d1"), "complete", trip)).status == 200


async def test_offline_and_accept_race(city: City) -> None:
    """Whoever is offline at the end has no trip that has not started."""
    names = [f"d{i}" for i in range(30)]
    await city.online(*names)
    trips = [await city.trip() for _ in names]
    await asyncio.gather(
        *(city.act(driver(n), "accept", t) for n, t in zip(names, trips, strict=True)),
        *(city.available(n, is_online=False) for n in names),
    )
    held = await city.postgres.fetchval(
        """SELECT count(*) FROM trip_requests t JOIN driver_details d ON d.user_id = t.driver_id
            WHERE NOT d.is_online AND t.current_status IN ('accepted', 'arrived')"""
    )
    assert held == 0
    assert await city.double_assignments() == 0


async def test_versions(city: City) -> None:
    await city.online("d1")
    trip = await city.trip()
    stale = await city.act(driver("d1"), "accept", trip, version=7)
    assert (stale.status, code_of(stale)) == (409, "version_conflict")
    assert b'"version":0' in stale.body
    assert (await city.act(driver("d1"), "accept", trip, version=0)).status == 200
    stale = await city.act(rider("rider"), "cancel", trip, version=0)
    assert code_of(stale) == "version_conflict"
    assert (await city.act(rider("rider"), "cancel", trip, version=1)).status == 200


async def test_the_history_replays_to_the_state(city: City) -> None:
    await city.online("d1", "d2")
    trip = await city.trip()
    await city.act(driver("d1"), "accept", trip)
    await city.act(driver("d1"), "cancel", trip)
    await city.act(driver("d2"), "accept", trip)
    for action in ("arrive", "start", "complete"):
        assert (await city.act(driver("d2"), action, trip)).status == 200
    events = await city.parts.reads.timeline(trip)
    assert [e["version"] for e in events] == list(range(7))
    assert [e["event"] for e in events] == [
        "created", "accepted", "released", "accepted", "arrived", "started", "completed",
    ]  # fmt: skip
    row = await city.row(trip)
    assert row["version"] == 6
    assert events[-1]["payload"]["current_status"] == row["current_status"]


async def test_others_trips_are_not_there(city: City) -> None:
    await city.online("d1", "d2")
    trip = await city.trip()
    await city.act(driver("d1"), "accept", trip)
    assert code_of(await city.act(driver("d2"), "arrive", trip)) == "trip_not_found"
    assert code_of(await city.act(rider("stranger"), "cancel", trip)) == "trip_not_found"
    admin = Actor("boss", Role.ADMIN)
    assert code_of(await city.act(admin, "cancel", trip)) == "trip_cancelled"


async def test_idempotency_across_flush_mismatch_and_refusals(city: City) -> None:
    await city.online("d1", "d2")
    trip = await city.trip()
    first = await city.act(driver("d1"), "accept", trip, "k1")
    lost = await city.act(driver("d2"), "accept", trip, "k2")
    assert (first.status, lost.status) == (200, 409)
    again = await city.act(driver("d2"), "accept", trip, "k2")
    assert again.replayed
    assert again.body == lost.body
    await city.redis("FLUSHDB")
    again = await city.act(driver("d1"), "accept", trip, "k1")
    assert again.replayed
    assert again.body == first.body
    other = await city.trip()
    reused = await city.act(driver("d1"), "accept", other, "k1")
    assert (reused.status, code_of(reused)) == (422, "idempotency_key_reused")


async def test_whoever_tries_ids_is_limited(redis_url: str, database_url: str) -> None:
    async with open_city(redis_url, database_url, limit_general="2/60") as city:
        for _ in range(2):
            answer = await city.act(driver("d1"), "accept", "nowhere_1")
            assert code_of(answer) == "trip_not_found"
            assert answer.limit is not None
        answer = await city.act(driver("d1"), "accept", "nowhere_1")
        assert (answer.status, code_of(answer)) == (429, "rate_limit_exceeded")


async def test_what_is_committed_is_answered_whatever_redis_says_of_it(city: City) -> None:
    """Someone has put a text where the stream of events belongs: no settle can be finished until it is
    mended, and then it is."""
    await city.online("d1")
    trip = await city.trip()
    keys = city.keys(trip)
    await city.redis("DEL", keys.events)
    await city.redis("SET", keys.events, "not a stream")
    answer = await city.act(driver("d1"), "accept", trip, "k1")
    assert answer.status == 200
    assert (await city.row(trip))["driver_id"] == "d1"
    async with asyncio.timeout(30):
        while await city.redis("TYPE", keys.events) == "string" or await city.redis(
            "ZCARD", keys.claims
        ):
            await city.reconcile().run()
    assert (await city.act(driver("d1"), "arrive", trip, "k2")).status == 200
    assert (await city.row(trip))["version"] == 2
    assert await city.redis("ZCARD", keys.claims) == 0
