"""A trip that has started ends without its driver: by an admin, and by its customer after a while."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from dispatcher.core.actors import Actor, Role
from dispatcher.core.callers import Caller
from dispatcher.core.zones import Zone
from dispatcher.service.answers import Answer
from tests.harness.services import City, code_of, driver, key, open_city, rider

ADMIN = Actor("boss", Role.ADMIN)


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with open_city(redis_url, database_url, customer_may_end_after_s=300) as opened:
        yield opened


async def _started(city: City, name: str = "d1", **more: Any) -> str:
    await city.online(name)
    trip = await city.trip(**more)
    for action in ("accept", "arrive", "start"):
        assert (await city.act(driver(name), action, trip)).status == 200
    return trip


async def _end(city: City, actor: Actor, trip: str, text: str | None = None, **more: Any) -> Answer:
    caller = Caller(actor, key(actor, text) if text else None)
    return await city.parts.stranded_trips.end(caller, trip, **more)


async def _vanish(city: City, name: str = "d1", *, ago_s: int = 0) -> None:
    """The driver is taken offline as one who is lost, so many seconds ago."""
    assert (await city.parts.availability.take_offline(Zone("default"), name)).status == 200
    await city.postgres.execute(
        "UPDATE driver_details SET updated_at = updated_at - make_interval(secs => $2) WHERE user_id = $1",
        name, ago_s,
    )  # fmt: skip


async def _last_event(city: City, trip: str) -> tuple[str, str, str, str]:
    event = (await city.parts.reads.timeline(trip))[-1]
    reason = event["payload"]["reason"]
    return event["event"], event["actor_id"], event["actor_role"], reason


async def test_an_admin_ends_it_at_any_time(city: City) -> None:
    trip = await _started(city)
    answer = await _end(city, ADMIN, trip, reason="phone is broken")
    assert (answer.status, code_of(answer)) == (200, "trip_completed")
    assert await _last_event(city, trip) == ("completed", "boss", "admin", "phone is broken")
    row = await city.row(trip)
    assert (row["current_status"], row["driver_id"], row["version"]) == ("completed", "d1", 4)
    assert row["completed_at"] is not None
    assert ("completed", trip, 4) in await city.events()
    assert (await city.act(driver("d1"), "accept", await city.trip())).status == 200, "they are free"


async def test_the_customer_ends_it_once_the_driver_is_long_gone(city: City) -> None:
    trip = await _started(city)
    present = await _end(city, rider("rider"), trip)
    assert (present.status, code_of(present)) == (409, "driver_not_absent")
    assert present.retry_after_s is None

    await _vanish(city, ago_s=100)
    assert (await city.row(trip))["current_status"] == "ongoing"
    early = await _end(city, rider("rider"), trip, "k1")
    assert code_of(early) == "driver_not_absent"
    assert early.retry_after_s is not None
    assert 190 < early.retry_after_s <= 200

    await _vanish(city, ago_s=301)
    answers = [await _end(city, rider("rider"), trip, "k1") for _ in range(2)]
    assert [(a.status, a.replayed) for a in answers] == [(200, False), (200, True)]
    assert answers[0].body == answers[1].body
    assert await _last_event(city, trip) == ("completed", "rider", "customer", "driver_absent")
    hash_ = await city.parts.live.state.read_hash(city.keys().driver("d1"))
    assert hash_["trip_id"] == ""
    # Who is gone and has no trip is not kept in Redis for ever.
    assert 0 < await city.redis("TTL", city.keys().driver("d1")) <= 3_600
    await city.online("d1")
    assert (await city.act(driver("d1"), "accept", await city.trip())).status == 200


async def test_who_came_back_keeps_the_trip(city: City) -> None:
    trip = await _started(city)
    await _vanish(city, ago_s=301)
    await city.online("d1")
    assert code_of(await _end(city, rider("rider"), trip)) == "driver_not_absent"
    assert (await city.act(driver("d1"), "complete", trip)).status == 200
    assert code_of(await _end(city, rider("rider"), trip)) == "invalid_trip_status"
    assert code_of(await _end(city, ADMIN, trip)) == "invalid_trip_status"


async def test_only_a_trip_of_one_s_own_that_has_started(city: City) -> None:
    trip = await _started(city)
    await _vanish(city, ago_s=301)
    assert code_of(await _end(city, rider("other"), trip)) == "trip_not_found"
    assert code_of(await city.act(driver("d1"), "end", trip)) == "unknown_action"
    pending = await city.trip()
    for actor in (rider("rider"), ADMIN):
        assert code_of(await _end(city, actor, pending)) == "invalid_trip_status"
        assert code_of(await _end(city, actor, trip, version=7)) == "version_conflict"
    assert await city.double_assignments() == 0


async def test_without_a_redis_that_remembers(city: City) -> None:
    trip = await _started(city)
    await _vanish(city, ago_s=301)
    await city.redis("FLUSHDB")
    assert (await _end(city, rider("rider"), trip)).status == 200
    assert (await city.row(trip))["current_status"] == "completed"
