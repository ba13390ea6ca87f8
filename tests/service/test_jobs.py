"""Jobs: what fails in one zone, or of one thing, stops nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import structlog.testing

from dispatcher.background import absent_drivers_job, job_loops, presence_flush_job
from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import OutcomeUnknown, StoreUnavailable
from dispatcher.core.zones import Zone, Zones
from dispatcher.jobs.flush import Flush
from dispatcher.jobs.loop import JobLoop
from dispatcher.jobs.waves import Waves
from dispatcher.live.keys import keys_of
from dispatcher.service.clock_watch import ClockWatch
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
    """Redis refuses every look at this list of the zone: it is of another type, and nobody mends it."""
    city.parts.live.pipeline.on_corrupt = lambda names: None
    name = f"dsp:{{{BROKEN}}}:{kind}"
    await city.redis("DEL", name)
    await city.redis("SET", name, "broken")


async def connect_driver(city: City, name: str, zone: str) -> None:
    await city.online(name, zone=zone)
    await city.parts.presence.register("c1", Actor(name, Role.DRIVER), None, "")


async def is_online(city: City, name: str) -> bool:
    query = "SELECT is_online FROM driver_details WHERE user_id = $1"
    return bool(await city.postgres.fetchval(query, name))


async def sweep(city: City, zone: str) -> None:
    """The job's first run that may judge."""
    await presence_flush_job(city.parts).run()
    async with asyncio.timeout(5):
        while not city.parts.outages.can_judge(zone):
            await asyncio.sleep(0.01)
    job = absent_drivers_job(city.parts, zone)
    await job.run()  # learns the epoch
    await job.run()


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
    for connection in city.parts.presence.connections:
        connection.seen, connection.told = connection.seen + 0.01, 0.0
        connection.told_at = 0.0
    report = await city.parts.presence.flush()
    assert report.failed_zones == {BROKEN}
    assert await city.redis("ZRANGE", keys_of(HEALTHY).present, 0, -1) == [f"driver:d-{HEALTHY}"]
    flush = presence_flush_job(city.parts)
    assert await flush.run() == flush.interval_s, "soon again"


async def test_a_zone_that_hangs_gives_up_its_turn(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    touch = city.parts.live.presence.touch_presence

    async def hang(keys: Any, touches: Any) -> Any:
        if keys.zone == BROKEN:
            await asyncio.Event().wait()
        return await touch(keys, touches)

    for zone in (BROKEN, HEALTHY):
        await connect_driver(city, f"d-{zone}", zone)
    for connection in city.parts.presence.connections:
        connection.told = connection.told_at = 0.0
    monkeypatch.setattr(city.parts.live.presence, "touch_presence", hang)
    async with asyncio.timeout(5):
        report = await city.parts.presence.flush()
    assert report.failed_zones == {BROKEN}
    untold = [c.zone for c in city.parts.presence.connections if not c.told]
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
        # It is swept once its second look is due.
        while float(await city.redis("ZSCORE", keys_of(HEALTHY).claims, "token - d-b")) == 1:
            await asyncio.sleep(0.01)
    assert await is_online(city, f"d-{BROKEN}")


async def test_an_offer_log_that_fails_does_not_stop_the_positions(city: City) -> None:
    class Failing(OfferLog):
        async def save(self, database: Any) -> None:
            raise StoreUnavailable("postgres")

    await city.online("d1")
    await city.parts.positions.take("d1", [(40.0, -73.0, None)])
    flush = Flush(
        positions=city.parts.positions, queue_log=city.parts.queue_log, offer_log=Failing(),
        race_log=city.parts.effects.race_log,
        database=city.parts.ledger.database, interval_s=1,
    )  # fmt: skip
    with pytest.raises(StoreUnavailable):
        await flush.run()
    query = "SELECT location_updated_at FROM driver_details WHERE user_id = 'd1'"
    assert await city.postgres.fetchval(query) is not None


async def test_a_clock_that_ran_ahead_does_not_block_later_positions(city: City) -> None:
    await city.online("d1")
    save = city.parts.ledger.database.save_positions
    now = await city.postgres.fetchval("SELECT now()")
    query = "SELECT current_location[1], location_updated_at FROM driver_details WHERE user_id = 'd1'"
    await save(["d1"], [40.1], [-73.0], [now + timedelta(minutes=45)])
    assert (await city.postgres.fetchrow(query))[0] == 40.1
    await save(["d1"], [40.2], [-73.0], [await city.postgres.fetchval("SELECT now()")])
    assert (await city.postgres.fetchrow(query))[0] == 40.2
    await save(["d1"], [40.3], [-73.0], [now])  # an older one does not replace a newer one
    assert (await city.postgres.fetchrow(query))[0] == 40.2
    # What an earlier version saved with a time to come is replaced, too.
    await city.postgres.execute(
        "UPDATE driver_details SET location_updated_at = now() + interval '45 min'"
    )
    await save(["d1"], [40.4], [-73.0], [await city.postgres.fetchval("SELECT now()")])
    lat, at = await city.postgres.fetchrow(query)
    assert (lat, at <= await city.postgres.fetchval("SELECT now()")) == (40.4, True)


async def test_a_saved_position_of_a_clock_that_ran_ahead_is_replaced(city: City) -> None:
    await city.online("d1")
    await city.postgres.execute(
        "UPDATE driver_details SET current_location = point(1, 1),"
        " location_updated_at = now() + interval '1 hour' WHERE user_id = 'd1'"
    )
    await city.parts.positions.take("d1", [(40.0, -73.0, None)])
    assert await city.parts.positions.save() == 1


async def test_an_engine_that_is_away_is_no_fault_of_ours(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trip expires while Postgres stops answering: nobody has to be woken by an error."""

    async def lose_answer(*_: Any) -> None:
        raise OutcomeUnknown("postgres")

    trip = await city.trip(zone=HEALTHY)
    await city.redis("HSET", keys_of(HEALTHY).trip(trip), "waiting_since", 1)
    monkeypatch.setattr(city.parts.coordinator, "execute", lose_answer)
    with structlog.testing.capture_logs() as lines:
        loop = JobLoop(Waves(city.parts.offers, HEALTHY))
        loop.start()
        async with asyncio.timeout(5):
            while not lines:
                await asyncio.sleep(0.01)
        await loop.stop()
    assert {(line["event"], line["log_level"]) for line in lines} == {("job is put off", "warning")}


async def test_a_lost_driver_is_forgotten_only_once_the_change_is_done(city: City) -> None:
    await city.online("d1", "d2", zone=HEALTHY)
    present = keys_of(HEALTHY).present
    await city.redis("ZADD", present, 1, "driver:d1", 1, "driver:d2")
    # A change of d1 is under way, and stays so.
    await city.redis("SET", keys_of(HEALTHY).driver_claim("d1"), "another", "PX", 60_000)
    await sweep(city, HEALTHY)
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
    epoch = await city.redis("GET", keys_of(HEALTHY).epoch)
    scripts = city.parts.live.presence
    swept = await scripts.sweep_absent(
        keys_of(HEALTHY), grace_ms=0, epoch=epoch, latest_ms=2**53, life_ms=2_000
    )
    assert swept.addresses == ["driver:d1"]
    await city.parts.presence.register("c1", Actor("d1", Role.DRIVER), None, "")
    with pytest.raises(DriverCameBack):
        await city.parts.availability.take_offline(zone, "d1")
    assert await is_online(city, "d1")


async def test_nobody_is_lost_because_the_clock_of_redis_leapt(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Redis' clock more time has passed than by the server's own."""
    await city.online("d1", zone=HEALTHY)
    await presence_flush_job(city.parts).run()
    async with asyncio.timeout(5):
        while not city.parts.outages.can_judge(HEALTHY):
            await asyncio.sleep(0.01)
    job = absent_drivers_job(city.parts, HEALTHY)
    stopped = time.monotonic()
    monkeypatch.setattr(job, "_clock", ClockWatch(tolerance_ms=100, clock=lambda: stopped))
    await job.run()
    await forget_presence(city, "d1", HEALTHY)
    await asyncio.sleep(0.2)
    await job.run()
    assert await is_online(city, "d1")
    assert HEALTHY in city.parts.outages.unreached, "all connections are told again first"
    monkeypatch.undo()
    await sweep(city, HEALTHY)
    assert not await is_online(city, "d1")


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
    await sweep(city, HEALTHY)
    assert not await city.parts.live.state.is_online(keys, "d1")
    assert await city.redis("ZCARD", keys.present) == 0


@pytest.fixture
async def other(city: City, redis_url: str, database_url: str) -> AsyncIterator[City]:
    """Another server of the same zones."""
    async with open_city(
        redis_url, database_url, zones=city.parts.zones, presence_ttl_s=2, presence_grace_s=0.1,
        sweep_interval_s=0.05,
    ) as opened:  # fmt: skip
        yield opened


def cut_off(city: City, patch: pytest.MonkeyPatch, zone: str) -> None:
    """The server cannot tell the zone of its connections, as if its way to that node were cut."""
    touch = city.parts.live.presence.touch_presence

    async def refuse(keys: Any, touches: Any) -> Any:
        if keys.zone == zone:
            raise StoreUnavailable("redis")
        return await touch(keys, touches)

    patch.setattr(city.parts.live.presence, "touch_presence", refuse)


async def forget_presence(city: City, name: str, zone: str) -> None:
    """As if the outage had lasted for longer than a presence lives."""
    await city.redis("ZADD", keys_of(zone).present, 1, f"driver:{name}")


async def test_nobody_is_absent_while_a_server_cannot_tell_of_them(
    city: City, other: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One server sees the outage, another one sweeps; the other zone is not concerned."""
    await connect_driver(city, "d1", BROKEN)
    await city.online("d2", zone=HEALTHY)
    for connection in city.parts.presence.connections:
        connection.told = connection.told_at = 0.0
    with monkeypatch.context() as patch:
        cut_off(city, patch, BROKEN)
        await presence_flush_job(city.parts).run()
        for name, zone in (("d1", BROKEN), ("d2", HEALTHY)):
            await forget_presence(city, name, zone)
            await sweep(other, zone)
        assert await is_online(city, "d1")
        assert not await is_online(city, "d2")
    # The server tells of its connections, and withdraws its notice once the grace is over.
    await presence_flush_job(city.parts).run()
    assert float(await city.redis("ZSCORE", keys_of(BROKEN).present, "driver:d1")) > 1
    assert await other.parts.ledger.notices.is_given(BROKEN)
    async with asyncio.timeout(5):
        while await other.parts.ledger.notices.is_given(BROKEN):
            await presence_flush_job(city.parts).run()
    await sweep(other, BROKEN)
    assert await is_online(city, "d1")


async def test_the_notice_of_an_outage_ends_with_its_server(
    city: City, other: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    await connect_driver(city, "d1", BROKEN)
    for connection in city.parts.presence.connections:
        connection.told = connection.told_at = 0.0
    cut_off(city, monkeypatch, BROKEN)
    await presence_flush_job(city.parts).run()
    assert await other.parts.ledger.notices.is_given(BROKEN)
    city.parts.ledger.notices.close()
    await forget_presence(city, "d1", BROKEN)
    async with asyncio.timeout(5):
        while await other.parts.ledger.notices.is_given(BROKEN):
            await asyncio.sleep(0.01)
    await sweep(other, BROKEN)
    assert not await is_online(city, "d1")


async def test_a_zone_that_was_loaded_anew_is_told_of_everybody_before_a_sweep(city: City) -> None:
    """A Redis that was restored or promoted may lack the last signs of life."""
    await connect_driver(city, "d1", HEALTHY)
    await presence_flush_job(city.parts).run()
    job = absent_drivers_job(city.parts, HEALTHY)
    await job.run()
    await forget_presence(city, "d1", HEALTHY)
    epoch = await city.redis("GET", keys_of(HEALTHY).epoch)
    await city.redis("SET", keys_of(HEALTHY).epoch, epoch.replace(epoch.split(" ")[0], "1"))
    async with asyncio.timeout(5):
        while not city.parts.outages.can_judge(HEALTHY):
            await asyncio.sleep(0.01)
    await job.run()
    await job.run()
    assert not city.parts.outages.can_judge(HEALTHY)
    assert await is_online(city, "d1")
    await presence_flush_job(city.parts).run()
    assert float(await city.redis("ZSCORE", keys_of(HEALTHY).present, "driver:d1")) > 1


async def test_nobody_is_judged_after_an_outage_of_postgres_until_the_grace_is_over(
    city: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, outages = presence_flush_job(city.parts), city.parts.outages

    async def steady() -> None:
        async with asyncio.timeout(5):
            while not outages.can_judge(HEALTHY):
                await asyncio.sleep(0.01)

    async def refuse(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("postgres")

    await flush.run()
    await steady()
    with monkeypatch.context() as patch:
        patch.setattr(city.parts.ledger.database, "row", refuse)
        for _ in range(2):
            await flush.run()
            await asyncio.sleep(0.1)  # the grace, which does not count before a whole flush
            assert not outages.can_judge(HEALTHY)
    await flush.run()
    assert not outages.can_judge(HEALTHY)
    await steady()
