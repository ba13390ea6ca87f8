"""Jobs: what fails in one zone, or of one thing, stops nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dispatcher.composition import absent_drivers_job, job_loops
from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.zones import Zone, Zones
from dispatcher.jobs.flush import Flush
from dispatcher.jobs.presence_flush import PresenceFlush
from dispatcher.live.keys import keys_of
from dispatcher.service.commands.availability import DriverCameBack
from dispatcher.service.offer_log import OfferLog
from tests.harness.services import City, open_city

#: The zone whose Redis fails comes before the healthy one in every order there is.
BROKEN, HEALTHY = "a", "b"


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    zones = Zones([Zone(BROKEN), Zone(HEALTHY)])
    async with open_city(
        redis_url, database_url, zones=zones, presence_ttl_s=2, presence_grace_s=0.1,
        sweep_interval_s=0.05,
    ) as opened:  # fmt: skip
        yield opened


async def break_zone(city: City, kind: str) -> None:
    """Redis refuses every look at this list of the zone: it is of another type."""
    name = f"dsp:{{{BROKEN}}}:{kind}"
    await city.redis("DEL", name)
    await city.redis("SET", name, "broken")


async def connect_driver(city: City, name: str, zone: str) -> None:
    await city.online(name, zone=zone)
    await city.parts.presence.register("c1", Actor(name, Role.DRIVER), None, "")


async def is_online(city: City, name: str) -> bool:
    query = "SELECT is_online FROM driver_details WHERE user_id = $1"
    return bool(await city.postgres.fetchval(query, name))


@contextlib.asynccontextmanager
async def running_jobs(city: City) -> AsyncIterator[None]:
    loops = job_loops(city.parts)
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        await asyncio.gather(*(loop.stop() for loop in loops))


async def test_a_zone_that_fails_does_not_stop_the_presence_of_another(city: City) -> None:
    for zone in (BROKEN, HEALTHY):
        await connect_driver(city, f"d-{zone}", zone)
    await break_zone(city, "present")
    await city.redis("DEL", keys_of(HEALTHY).present)
    for connection in city.parts.presence._connections.values():
        connection.seen, connection.told = connection.seen + 0.01, 0.0
        connection.told_at = 0.0
    report = await city.parts.presence.flush()
    assert report.failed_zones == {BROKEN}
    assert await city.redis("ZRANGE", keys_of(HEALTHY).present, 0, -1) == [f"driver:d-{HEALTHY}"]
    assert await PresenceFlush(city.parts.presence, interval_s=0.2).run() == 0.2, "soon again"


async def test_a_zone_that_hangs_gives_up_its_turn(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    touch = city.parts.live.presence.touch_presence

    async def hang(keys: Any, touches: Any) -> None:
        if keys.zone == BROKEN:
            await asyncio.Event().wait()
        await touch(keys, touches)

    for zone in (BROKEN, HEALTHY):
        await connect_driver(city, f"d-{zone}", zone)
    for connection in city.parts.presence._connections.values():
        connection.told = connection.told_at = 0.0
    monkeypatch.setattr(city.parts.live.presence, "touch_presence", hang)
    async with asyncio.timeout(5):
        report = await city.parts.presence.flush()
    assert report.failed_zones == {BROKEN}
    untold = [c.zone for c in city.parts.presence._connections.values() if not c.told]
    assert untold == [BROKEN]


async def test_a_zone_that_fails_does_not_stop_the_sweeps_of_another(city: City) -> None:
    for zone in (BROKEN, HEALTHY):
        await city.online(f"d-{zone}", zone=zone)
        await city.redis("ZADD", keys_of(zone).present, 1, f"driver:d-{zone}")
    await city.redis("ZADD", keys_of(HEALTHY).claims, 1, "token - d-b")
    await break_zone(city, "present")
    await break_zone(city, "claims")
    async with running_jobs(city), asyncio.timeout(10):
        while await is_online(city, f"d-{HEALTHY}"):
            await asyncio.sleep(0.01)
        while await city.redis("ZCARD", keys_of(HEALTHY).claims):
            await asyncio.sleep(0.01)
    assert await is_online(city, f"d-{BROKEN}")


async def test_an_offer_log_that_fails_does_not_stop_the_positions(city: City) -> None:
    class Failing(OfferLog):
        async def save(self, database: Any) -> None:
            raise StoreUnavailable("postgres")

    await city.online("d1")
    await city.parts.positions.take("d1", [(40.0, -73.0, None)])
    flush = Flush(
        positions=city.parts.positions, offer_log=Failing(), database=city.parts.ledger.database,
        interval_s=1,
    )  # fmt: skip
    with pytest.raises(StoreUnavailable):
        await flush.run()
    query = "SELECT location_updated_at FROM driver_details WHERE user_id = 'd1'"
    assert await city.postgres.fetchval(query) is not None


async def test_a_lost_driver_is_forgotten_only_once_the_change_is_done(city: City) -> None:
    await city.online("d1", "d2", zone=HEALTHY)
    present = keys_of(HEALTHY).present
    await city.redis("ZADD", present, 1, "driver:d1", 1, "driver:d2")
    # A change of d1 is under way, and stays so.
    await city.redis("SET", keys_of(HEALTHY).driver_claim("d1"), "another", "PX", 60_000)
    await absent_drivers_job(city.parts, HEALTHY).run()
    assert await city.redis("ZRANGE", present, 0, -1) == ["driver:d1"]
    assert await is_online(city, "d1")
    assert not await is_online(city, "d2")


async def test_who_came_back_before_the_commit_of_their_absence_stays(city: City) -> None:
    await city.online("d1", zone=HEALTHY)
    zone = city.parts.zones.get(HEALTHY)
    assert zone is not None
    present = keys_of(HEALTHY).present
    await city.redis("ZADD", present, 1, "driver:d1")
    # Handed out, and back before the change is claimed.
    assert await city.parts.live.presence.sweep_absent(keys_of(HEALTHY), grace_ms=0) == ["driver:d1"]
    await city.parts.presence.register("c1", Actor("d1", Role.DRIVER), None, "")
    with pytest.raises(DriverCameBack):
        await city.parts.availability.take_offline(zone, "d1")
    assert await is_online(city, "d1")


async def test_who_has_no_presence_is_released_after_ttl_and_grace(city: City) -> None:
    """Their server died before its first flush, or Redis was emptied."""
    await city.online("d1", zone=HEALTHY)
    trip = await city.trip(zone=HEALTHY)
    assert (await city.act(Actor("d1", Role.DRIVER), "accept", trip)).status == 200
    await city.redis("DEL", keys_of(HEALTHY).present)
    async with running_jobs(city), asyncio.timeout(20):
        while await is_online(city, "d1"):
            await asyncio.sleep(0.01)
    assert (await city.row(trip))["current_status"] == "pending"


async def test_a_driver_whom_only_redis_takes_for_online_is_put_right(city: City) -> None:
    await city.online("d1", zone=HEALTHY)
    keys = keys_of(HEALTHY)
    await city.postgres.execute(
        "UPDATE driver_details SET is_online = false, version = version + 1 WHERE user_id = 'd1'"
    )
    await city.redis("ZADD", keys.present, 1, "driver:d1")
    await absent_drivers_job(city.parts, HEALTHY).run()
    assert not await city.parts.live.state.is_online(keys, "d1")
    assert await city.redis("ZCARD", keys.present) == 0
