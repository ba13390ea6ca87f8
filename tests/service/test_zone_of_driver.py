"""A driver works in one zone, the one that Postgres says, whatever a server remembers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from dispatcher.background import absent_drivers_job, presence_flush_job
from dispatcher.core.errors import Refusal, StoreUnavailable
from dispatcher.core.zones import Zone, Zones
from dispatcher.jobs.waves import Waves
from dispatcher.live.keys import keys_of
from dispatcher.live.settle import Settler
from dispatcher.service.connections import HTTP, Connection
from dispatcher.service.driver_directory import DriverDirectory
from tests.harness.services import PLACE, City, code_of, driver, key, open_city

ZONES = ("default", "north", "south")


async def _open(redis_url: str, database_url: str) -> Any:
    zones = Zones([Zone(name) for name in ZONES])
    return open_city(
        redis_url, database_url, zones=zones, presence_ttl_s=2, presence_grace_s=0.1, claim_lease_ms=2_500,
        commit_timeout_s=0.5, request_deadline_s=2,
    )  # fmt: skip


@pytest.fixture
async def city(redis_url: str, database_url: str) -> AsyncIterator[City]:
    async with await _open(redis_url, database_url) as opened:
        yield opened


@pytest.fixture
async def other(redis_url: str, database_url: str, city: City) -> AsyncIterator[City]:
    """Another server on the same engines."""
    async with await _open(redis_url, database_url) as opened:
        yield opened


async def _row(city: City, name: str) -> dict[str, Any]:
    query = "SELECT zone, is_online, availability_status FROM driver_details WHERE user_id = $1"
    return dict(await city.postgres.fetchrow(query, name))


async def _online_in(city: City, name: str) -> list[str]:
    """The zones whose live state has the driver online."""
    return [z for z in ZONES if await city.parts.live.state.is_online(keys_of(z), name)]


async def _offered_in(city: City, name: str) -> list[str]:
    """The zones whose geo set has the driver."""
    return [z for z in ZONES if await city.redis("ZSCORE", keys_of(z).geo("car"), name) is not None]


async def _present_in(city: City, name: str) -> dict[str, int]:
    """The zones that the driver has living connections in, and how many."""
    found = {}
    for zone in ZONES:
        names = await city.redis("ZRANGE", keys_of(zone).connections(f"driver:{name}"), 0, -1)
        living = [
            n for n in names if await city.redis("EXISTS", keys_of(zone).presence(f"driver:{name}", n))
        ]
        if living:
            found[zone] = len(living)
    return found


async def _move(city: City, name: str, zone: str) -> None:
    assert (await city.available(name, zone=zone)).status == 200


# --- changes


async def test_a_server_that_remembers_a_former_zone_asks_again(city: City, other: City) -> None:
    await city.online("d1", zone="north")
    await other.available("d1", availability_status="available")  # remembers north from now on
    await _move(city, "d1", "south")
    assert (await other.available("d1", availability_status="unavailable")).status == 200
    assert await _row(city, "d1") == {
        "zone": "south", "is_online": True, "availability_status": "unavailable",
    }  # fmt: skip
    assert await _online_in(city, "d1") == ["south"]


async def test_nobody_is_moved_back_in_mid_trip(city: City, other: City) -> None:
    await city.online("d1", zone="north")
    await other.available("d1", availability_status="available")
    await _move(city, "d1", "south")
    trip = await city.trip(zone="south")
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    answer = await other.available("d1", is_online=False)
    assert answer.status == 200
    assert orjson.loads(answer.body)["released_trip"]["id"] == trip
    assert (await _row(city, "d1"))["zone"] == "south"
    assert (await city.row(trip))["current_status"] == "pending"
    assert await _online_in(city, "d1") == []
    assert await city.double_assignments() == 0


async def test_postgres_refuses_a_change_from_a_former_zone(city: City, other: City) -> None:
    """The former zone has heard of nothing, as after the loss of its last writes."""
    await city.online("d1", zone="north")
    await other.available("d1", availability_status="available")
    before = await city.parts.live.state.read_hash(keys_of("north").driver("d1"))
    await _move(city, "d1", "south")
    await city.redis(
        "HSET", keys_of("north").driver("d1"), *(x for pair in before.items() for x in pair)
    )
    assert (await other.available("d1", availability_status="unavailable")).status == 200
    assert (await _row(city, "d1"))["zone"] == "south"
    assert await _online_in(city, "d1") == ["south"]


async def test_a_crowd_of_moves_through_two_servers_ends_in_one_zone(city: City, other: City) -> None:
    names = [f"d{i}" for i in range(8)]
    await city.online(*names, zone="north")
    rng = random.Random(11)

    async def wander(name: str) -> None:
        for _ in range(12):
            server = rng.choice((city, other))
            answer = await server.available(
                name, zone=rng.choice(ZONES), is_online=rng.random() > 0.2, location=PLACE
            )
            assert answer.status == 200 or code_of(answer) == "trip_busy", answer

    await asyncio.gather(*(wander(name) for name in names for _ in range(3)))
    for name in names:
        row = await _row(city, name)
        assert await _online_in(city, name) == ([row["zone"]] if row["is_online"] else [])
        assert set(await _offered_in(city, name)) <= {row["zone"]}
        version = await city.postgres.fetchval(
            "SELECT version FROM driver_details WHERE user_id = $1", name
        )
        assert int(await city.redis("HGET", keys_of(row["zone"]).driver(name), "version")) == version


async def test_a_zone_that_is_no_longer_configured_is_left(
    redis_url: str, database_url: str, city: City
) -> None:
    await city.online("d1", zone="north")
    zones = Zones([Zone("default"), Zone("south")])
    async with open_city(redis_url, database_url, zones=zones) as fewer:
        answer = await fewer.available("d1", zone="south", is_online=True)
        assert answer.status == 200
        assert await _row(fewer, "d1") == {
            "zone": "south", "is_online": True, "availability_status": "available",
        }  # fmt: skip


# --- positions and reads


async def test_a_position_never_lands_in_a_former_zone(city: City, other: City) -> None:
    await city.online("d1", zone="north")
    await other.parts.positions.take("d1", [(*PLACE, None)])
    await _move(city, "d1", "south")
    await other.parts.positions.take("d1", [(*PLACE, None)])
    assert await _offered_in(city, "d1") == ["south"]


async def test_a_driver_whose_new_zone_has_missed_their_coming_sends_a_position(city: City) -> None:
    await city.online("d1", zone="north")
    await city.redis("HSET", keys_of("north").driver("d1"), "is_online", 0, "version", -1)
    await city.parts.positions.take("d1", [(*PLACE, None)])
    assert await _offered_in(city, "d1") == ["north"]


async def test_a_driver_who_is_offline_sends_a_position(city: City) -> None:
    await city.online("d1", zone="north")
    await city.available("d1", is_online=False)
    with pytest.raises(Refusal, match="driver_not_online"):
        await city.parts.positions.take("d1", [(*PLACE, None)])


async def test_snapshots_and_pending_trips_are_of_the_zone_that_the_driver_works_in(
    city: City, other: City
) -> None:
    await city.online("d1", zone="north")
    await other.parts.snapshots.of(driver("d1"))
    await _move(city, "d1", "south")
    await city.parts.positions.take("d1", [(*PLACE, None)])
    trip = await city.trip(zone="south")
    assert [t["id"] for t in await other.parts.reads.pending_near(driver("d1"), 5)] == [trip]
    await city.act(driver("d1"), "accept", trip)
    snapshot = await other.parts.snapshots.of(driver("d1"))
    assert snapshot["driver"]["zone"] == "south"
    assert snapshot["trip"]["id"] == trip


# --- answers


@pytest.mark.parametrize("which", ["city", "other"])
async def test_a_retry_after_a_move_gets_the_first_answer(city: City, other: City, which: str) -> None:
    await city.online("d1", zone="north")
    await other.available("d1", availability_status="available")
    request = key(driver("d1"), "move", b'{"zone":"south"}')
    first = await city.available("d1", zone="south", key=request)
    assert first.status == 200
    for keys in (keys_of("north"), keys_of("south")):
        assert await city.redis("EXISTS", keys.idem("d1", request.endpoint, "move"))
        await city.redis("DEL", keys.idem("d1", request.endpoint, "move"))
    zone = await city.postgres.fetchval("SELECT zone FROM idempotency_keys WHERE user_id = 'd1'")
    assert zone == "south", "where a retry asks"
    again = await (city if which == "city" else other).available("d1", zone="south", key=request)
    assert (again.status, again.body) == (200, first.body)
    assert await city.postgres.fetchval("SELECT version FROM driver_details WHERE user_id = 'd1'") == 2


async def test_an_old_key_finds_its_answer_where_the_driver_has_never_used_it(
    city: City, other: City
) -> None:
    """Two moves later, and on a trip, which a new request would be refused for."""
    await city.online("d1", zone="north")
    request = key(driver("d1"), "move", b'{"zone":"south"}')
    first = await city.available("d1", zone="south", key=request)
    await _move(city, "d1", "default")
    trip = await city.trip(zone="default")
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    again = await other.available("d1", zone="south", key=request)
    assert (again.status, again.body) == (200, first.body)
    assert (await _row(city, "d1"))["zone"] == "default"
    refused = await other.available("d1", zone="south", key=key(driver("d1"), "new", b"[]"))
    assert code_of(refused) == "driver_has_active_trip"


# --- news that are lost


def _lose(city: City, patch: pytest.MonkeyPatch, *zones: str) -> None:
    """What is settled in these zones is lost, as if their node were away; the server dies before it can try
    again."""
    settle = Settler.settle

    async def lossy(self: Settler, keys: Any, *args: Any) -> bool:
        if keys.zone in zones and self is city.parts.live.settler:
            raise StoreUnavailable("redis")
        return await settle(self, keys, *args)

    patch.setattr(Settler, "settle", lossy)


@pytest.mark.parametrize("lost", [("south",), ("north",), ("north", "south")], ids="+".join)
async def test_a_move_whose_news_was_lost_is_repaired_by_another_server(
    city: City, other: City, monkeypatch: pytest.MonkeyPatch, lost: tuple[str, ...]
) -> None:
    await city.online("d1", zone="north")
    with monkeypatch.context() as patch:
        _lose(city, patch, *lost)
        await _move(city, "d1", "south")
        await city.parts.coordinator.close()
    job = other.reconcile()
    async with asyncio.timeout(10):
        while await _online_in(city, "d1") != ["south"]:
            await job.run()
            await asyncio.sleep(0.05)
    assert not await city.redis("EXISTS", keys_of("north").driver_claim("d1"))


@pytest.fixture
async def unheard(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    """d1 was in north, in south, and is in north again, which has not heard of the return."""
    await city.online("d1", zone="north")
    await _move(city, "d1", "south")
    with monkeypatch.context() as patch:
        _lose(city, patch, "north")
        await _move(city, "d1", "north")
        await city.parts.coordinator.close()
    assert await _online_in(city, "d1") == ["south"]


@pytest.mark.usefixtures("unheard")
async def test_a_change_after_an_unheard_return_is_made(city: City, other: City) -> None:
    assert (await other.available("d1", availability_status="unavailable")).status == 200
    assert await _row(city, "d1") == {
        "zone": "north", "is_online": True, "availability_status": "unavailable",
    }  # fmt: skip
    assert "north" in await _online_in(city, "d1")


@pytest.mark.usefixtures("unheard")
async def test_a_snapshot_after_an_unheard_return_is_of_the_zone_that_postgres_says(other: City) -> None:
    snapshot = await other.parts.snapshots.of(driver("d1"))
    assert (snapshot["driver"]["zone"], snapshot["driver"]["is_online"]) == ("north", True)


@pytest.mark.usefixtures("unheard")
async def test_an_unheard_return_does_not_keep_a_driver_from_being_present(
    city: City, other: City
) -> None:
    await other.parts.presence.register("c1", driver("d1"), None, "")
    assert await _present_in(city, "d1") == {"north": 1}


@pytest.mark.usefixtures("unheard")
async def test_whoever_is_gone_after_an_unheard_return_is_taken_offline(city: City, other: City) -> None:
    """Also where the former zone has lost what it knew of the attempt."""
    await city.redis("DEL", keys_of("south").claims)
    jobs = [absent_drivers_job(other.parts, zone) for zone in ZONES]
    async with asyncio.timeout(10):
        while (await _row(city, "d1"))["is_online"]:
            for job in (presence_flush_job(other.parts), *jobs):
                await job.run()
            await asyncio.sleep(0.05)


# --- presence


async def _beat(*connections: Connection) -> None:
    for connection in connections:
        connection.seen += 1e-6
        connection.told_at = -1e9  # long ago


async def test_presence_follows_a_driver_who_moves(city: City, other: City) -> None:
    """With every connection, also those to the server that does not know of the move."""
    here = await city.parts.presence.register("c1", driver("d1"), None, "")
    there = await other.parts.presence.register("c2", driver("d1"), None, "")
    assert await _present_in(city, "d1") == {"default": 2}
    await city.online("d1", zone="north")
    assert (await _present_in(city, "d1"))["north"] == 1
    await _beat(there)
    await other.parts.presence.flush()
    assert await _present_in(city, "d1") == {"north": 2}
    await _move(other, "d1", "south")
    await _beat(here)
    await city.parts.presence.flush()
    assert await _present_in(city, "d1") == {"south": 2}


async def test_a_socket_opened_with_an_old_memory_is_where_the_driver_works(
    city: City, other: City
) -> None:
    await city.online("d1", zone="north")
    await other.available("d1", availability_status="available")
    await _move(city, "d1", "south")
    await other.parts.presence.register("c1", driver("d1"), None, "")
    assert await _present_in(city, "d1") == {"south": 1}


async def test_who_moved_is_kept_while_connected_and_released_when_gone(city: City, other: City) -> None:
    socket = await other.parts.presence.register("c1", driver("d1"), None, "")
    await city.online("d1", zone="north")
    trip = await city.trip(zone="north")
    assert (await city.act(driver("d1"), "accept", trip)).status == 200
    jobs = [absent_drivers_job(city.parts, zone) for zone in ZONES]
    flushes = [presence_flush_job(each.parts) for each in (city, other)]
    loop = asyncio.get_running_loop()
    end = loop.time() + 3.0  # more than TTL and grace
    while loop.time() < end:
        other.parts.presence.seen(socket)
        for job in (*flushes, *jobs):
            await job.run()
        await asyncio.sleep(0.05)
    assert (await city.row(trip))["current_status"] == "accepted"
    await other.parts.presence.remove(socket)
    async with asyncio.timeout(10):
        while (await city.row(trip))["current_status"] != "pending":
            for job in (*flushes, *jobs):
                await job.run()
            await asyncio.sleep(0.05)
    assert not (await _row(city, "d1"))["is_online"]


async def test_a_socket_that_closes_while_its_driver_is_looked_up_leaves_no_presence(
    city: City, other: City, monkeypatch: pytest.MonkeyPatch
) -> None:
    await city.online("d1", zone="north")
    socket = await other.parts.presence.register("c1", driver("d1"), None, "")
    await _move(city, "d1", "south")
    refresh, asked, answered = DriverDirectory.refresh, asyncio.Event(), asyncio.Event()

    async def wait(self: DriverDirectory, driver_ids: Any) -> Any:
        asked.set()
        await answered.wait()
        return await refresh(self, driver_ids)

    monkeypatch.setattr(DriverDirectory, "refresh", wait)
    await _beat(socket)
    flush = asyncio.create_task(other.parts.presence.flush())
    await asked.wait()
    await other.parts.presence.remove(socket)
    answered.set()
    await flush
    assert await _present_in(city, "d1") == {}


async def test_the_first_call_makes_a_driver_present(city: City) -> None:
    presence = city.parts.presence
    presence.seen_over_http(driver("d1"), "127.0.0.1", "app")
    await city.online("d1", zone="north")
    assert await _present_in(city, "d1") == {"north": 1}, "before the answer"
    presence.seen_over_http(driver("d2"), "127.0.0.1", "app")
    async with asyncio.timeout(5):
        while await _present_in(city, "d2") != {"default": 1}:
            await asyncio.sleep(0.005)


async def test_a_call_after_a_long_silence_makes_a_driver_present(city: City) -> None:
    presence = city.parts.presence
    presence.seen_over_http(driver("d1"), "127.0.0.1", "app")
    await city.online("d1", zone="north")
    for connection in presence.connections:
        connection.told -= 60
        connection.seen -= 60
    await city.redis("DEL", keys_of("north").connections("driver:d1"))
    presence.seen_over_http(driver("d1"), "127.0.0.1", "app")
    async with asyncio.timeout(5):
        while await _present_in(city, "d1") != {"north": 1}:
            await asyncio.sleep(0.005)


async def test_a_call_late_in_the_life_of_a_presence_prolongs_it_at_once(city: City) -> None:
    """A flush would come too late."""
    presence = city.parts.presence
    presence.seen_over_http(driver("d1"), "127.0.0.1", "app")
    await city.online("d1", zone="north")
    for connection in presence.connections:
        connection.told -= 1.8
        connection.told_at -= 1.8
    own = keys_of("north").presence("driver:d1", HTTP)
    await city.redis("PEXPIRE", own, 200)
    presence.seen_over_http(driver("d1"), "127.0.0.1", "app")
    async with asyncio.timeout(5):
        while await city.redis("PTTL", own) < 1_000:
            await asyncio.sleep(0.005)


async def test_many_first_calls_are_told_once(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    touch, touched = city.parts.live.presence.touch_presence, []

    async def record(keys: Any, touches: Any) -> Any:
        touched.extend(touches)
        return await touch(keys, touches)

    monkeypatch.setattr(city.parts.live.presence, "touch_presence", record)
    for _ in range(50):
        city.parts.presence.seen_over_http(driver("d1"), "127.0.0.1", "app")
    async with asyncio.timeout(5):
        while not await _present_in(city, "d1"):
            await asyncio.sleep(0.005)
    assert len(touched) == 1


async def test_an_answer_does_not_wait_long_for_a_presence(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is committed; the flush tells what Redis did not take in time."""
    zones = Zones([Zone(name) for name in ZONES])
    async with open_city(redis_url, database_url, zones=zones, presence_ttl_s=120) as city:
        with monkeypatch.context() as patch:
            over = asyncio.Event()

            async def stay_silent(*_: Any) -> None:
                await over.wait()
                raise StoreUnavailable("redis")

            patch.setattr(city.parts.live.presence, "touch_presence", stay_silent)
            city.parts.presence.seen_over_http(driver("d1"), "127.0.0.1", "app")
            async with asyncio.timeout(4):
                await city.online("d1", zone="north")
            over.set()
        await city.parts.presence.flush()
        assert await _present_in(city, "d1") == {"north": 1}


async def test_an_app_without_a_socket_gets_its_first_offer_at_once(city: City) -> None:
    city.parts.presence.seen_over_http(driver("d1"), "127.0.0.1", "app")
    await city.online("d1", location=PLACE)
    trip = await city.trip()
    await Waves(city.parts.offers, "default").run()
    offers = await city.parts.live.offers.read_offers(keys_of("default"), "d1")
    assert [offer.trip_id for offer in offers] == [trip]
