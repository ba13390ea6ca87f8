"""One server at a time does a zone's rounds; another one goes on where it leaves, dies, hangs or is late."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from dispatcher.background import zone_holder
from dispatcher.core.times import now_ms
from dispatcher.core.zones import Matching, Wave, Zone, Zones
from dispatcher.jobs import zone_holder as module
from dispatcher.live.keys import SERVER_KEYS, keys_of
from dispatcher.service.offers import ZoneLost
from dispatcher.service.zone_shares import zone_shares
from tests.harness.services import PLACE, City, driver, open_city

WAVES = tuple(Wave(2, 10_000, 60) for _ in range(3))
NEAREST = Matching(dispatch="nearest")
ZONES = Zones([Zone(f"z{n}", waves=WAVES, matching=NEAREST, offers_per_driver=20) for n in range(11)])


@pytest.fixture(autouse=True)
def _short_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT_S", 0.1)
    monkeypatch.setattr(module, "_LIFE_S", 0.8)
    monkeypatch.setattr(module, "_LIST_GROWS_S", 0.3)


class Server:
    """The services of a server, and what does its rounds."""

    def __init__(self, city: City) -> None:
        self.city = city
        self.holder = zone_holder(city.parts)

    @property
    def node(self) -> str:
        return self.city.parts.presence.node

    def die(self) -> None:
        """Does nothing any more, and tells nobody."""
        tasks = [self.holder._loop._task]
        tasks += [loop._task for held in self.holder._held.values() for loop in held.loops]
        for task in tasks:
            assert task is not None
            task.cancel()
        self.holder._held.clear()


@contextlib.asynccontextmanager
async def open_servers(redis_url: str, database_url: str, count: int) -> AsyncIterator[list[Server]]:
    async with contextlib.AsyncExitStack() as stack:
        cities = [
            await stack.enter_async_context(
                open_city(redis_url, database_url, zones=ZONES, presence_ttl_s=60)
            )
            for _ in range(count)
        ]
        servers = [Server(city) for city in cities]
        for server in servers:
            server.holder.start()
        yield servers
        for server in servers:
            with contextlib.suppress(asyncio.CancelledError):
                await server.holder.stop()


@pytest.fixture
async def servers(redis_url: str, database_url: str) -> AsyncIterator[list[Server]]:
    async with open_servers(redis_url, database_url, 3) as opened:
        await eventually(lambda: are_shared_out(opened))
        yield opened


async def eventually(condition: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def are_shared_out(servers: list[Server]) -> bool:
    """Whether each zone is held by one of these, which Redis names, and nobody has more than their share."""
    held = [server.holder.held() for server in servers]
    most = -(-len(ZONES.names()) // len(servers))
    if sorted(zone for zones in held for zone in zones) != sorted(ZONES.names()):
        return False
    named = {zone: await holder_of(servers[0].city, zone) for zone in ZONES.names()}
    agreed = all(
        named[zone] == server.node for server, zones in zip(servers, held, strict=True) for zone in zones
    )
    return agreed and max(map(len, held)) <= most


async def holder_of(city: City, zone: str) -> str | None:
    node: str | None = await city.redis("HGET", keys_of(zone).holder, "node")
    return node


async def offers_of(city: City, trip: str) -> list[str]:
    drivers: list[str] = await city.redis("ZRANGE", keys_of(trip.partition("_")[0]).offers(trip), 0, -1)
    return drivers


async def go_online(city: City, *names: str, zone: str) -> None:
    """Drivers who are present and placed."""
    await city.online(*names, zone=zone, location=PLACE)
    await city.redis(
        "ZADD", keys_of(zone).present, *(part for n in names for part in (4e12, f"driver:{n}"))
    )


async def test_the_zones_are_shared_out(servers: list[Server]) -> None:
    """Whoever leaves is followed at once, and whoever dies within the life of a server."""
    *rest, leaving = servers
    await leaving.holder.stop()
    assert leaving.holder.held() == []
    await eventually(lambda: are_shared_out(rest))
    first, dying = rest
    dying.die()
    await eventually(lambda: are_shared_out([first]))
    assert await first.city.redis("ZRANGE", SERVER_KEYS.alive, 0, -1) == [first.node]


async def test_a_trip_that_any_server_takes_wakes_the_holder(servers: list[Server]) -> None:
    """Its job would look again after a minute."""
    zone = "z3"
    (holder,) = [server for server in servers if zone in server.holder.held()]
    other = next(server for server in servers if server is not holder)
    await go_online(other.city, "d1", "d2", zone=zone)
    held = holder.holder._held[zone]
    await eventually(lambda: _is(held.hears()))
    for _ in range(3):
        trip = await other.city.trip(zone=zone)
        await eventually(lambda trip=trip: _has(offers_of(other.city, trip)), within_s=5)
    # The same where the link was lost: what came meanwhile is looked for once it stands again.
    await other.city.redis("CLIENT", "KILL", "TYPE", "pubsub")
    trip = await other.city.trip(zone=zone)
    await eventually(lambda: _has(offers_of(other.city, trip)), within_s=5)
    await eventually(lambda: _is(held.hears()))


async def _is(value: bool) -> bool:
    return value


async def _has(found: Awaitable[list[Any]]) -> bool:
    return bool(await found)


async def test_an_emptied_redis(servers: list[Server]) -> None:
    """Everybody holds what they held, every zone is loaded, and trips are offered again."""
    city = servers[0].city
    await go_online(city, "d1", zone="z1")
    trip = await city.trip(zone="z1")
    await eventually(lambda: _has(offers_of(city, trip)))
    await city.parts.positions.save()
    await city.redis("FLUSHDB")
    await eventually(lambda: _has(city.redis("GET", keys_of("z7").epoch)))
    await eventually(lambda: _has(offers_of(city, trip)))
    await eventually(lambda: are_shared_out(servers))


async def test_two_servers_that_both_believe_to_hold_a_zone(redis_url: str, database_url: str) -> None:
    """A crowd of trips, and rounds of both at once: each wave of each trip is run once."""
    async with (
        open_city(redis_url, database_url, zones=ZONES) as late,
        open_city(redis_url, database_url, zones=ZONES) as holder,
    ):
        keys, zone = keys_of("z1"), "z1"
        settings = ZONES.get(zone)
        assert settings is not None
        scripts, former = late.parts.live.servers, holder.parts.live.servers
        assert await scripts.take_zone(keys, "late", 5) == 5
        await go_online(late, *(f"d{n}" for n in range(8)), zone=zone)
        trips = [await late.trip(zone=zone, customer=f"c{n}") for n in range(40)]
        # The late one is in the middle of its rounds when its successor takes the zone.
        planned = await late.parts.live.offers.claim_waves(keys, max_trips=10, zone_fence="5")
        assert len(planned.trip_ids) == 10
        assert await former.take_zone(keys, "holder", 6) == 6
        found = await asyncio.gather(
            *(late.parts.offers.run_due(zone, "5") for _ in range(20)),
            *(holder.parts.offers.run_due(zone, "6") for _ in range(20)),
            *(late.parts.offers._run(settings, t, "5") for t in planned.trip_ids),
            return_exceptions=True,
        )
        kinds = Counter(type(end) for end in found)
        assert kinds[ZoneLost] == 20
        assert set(kinds) <= {ZoneLost, int, type(None)}
        async with asyncio.timeout(20):
            while await holder.redis("ZCOUNT", keys.waves, "-inf", now_ms() + 3_000):
                await holder.parts.offers.run_due(zone, "6")
                await asyncio.sleep(0.05)
        for city in (late, holder):
            for _ in range(2):
                await city.parts.effects.offer_log.save(city.parts.ledger.database)
        # Nobody can take it back with what they knew, or with the same number.
        assert await scripts.take_zone(keys, "late", 5) == 6
        assert await scripts.take_zone(keys, "late", 6) == 0
        assert await scripts.take_zone(keys, "holder", 6) == 6
        rows = await holder.postgres.fetch(
            "SELECT trip_id, wave, count(*) AS asked, count(DISTINCT offered_at) AS runs"
            "  FROM trip_offers GROUP BY trip_id, wave"
        )
        assert rows
        assert {row["trip_id"] for row in rows} <= set(trips)
        assert {row["runs"] for row in rows} == {1}
        assert max(row["asked"] for row in rows) <= 2
        answers = await asyncio.gather(
            *(
                c.act(driver(f"d{n}"), "accept", t)
                for c in (late, holder)
                for n in range(8)
                for t in trips[:8]
            )
        )
        assert Counter(answer.status for answer in answers)[200] == 8
        assert await holder.double_assignments() == 0


async def test_a_zone_that_a_later_list_gave_away_is_asked_for_anew(servers: list[Server]) -> None:
    """Redis' clock has stepped back, or its list of servers is older than a zone."""
    city = servers[0].city
    await city.redis("HSET", keys_of("z2").holder, "fence", 4_000_000_000_000, "node", "from-the-future")
    await eventually(lambda: are_shared_out(servers))
    assert int(await city.redis("HGET", keys_of("z2").holder, "fence")) > 4_000_000_000_000


def test_few_zones_move() -> None:
    zones = [f"z{n}" for n in range(500)]
    five = {f"server-{n}": zones for n in range(5)}
    before = zone_shares(five)
    assert set(Counter(before.values()).values()) == {100}
    after = zone_shares(dict.fromkeys(list(five)[1:], zones))
    moved = [zone for zone in zones if before[zone] != after[zone]]
    assert 100 <= len(moved) < 200
    assert set(Counter(after.values()).values()) == {125}
    # A server that does not know a zone yet is not given it.
    shares = zone_shares({"old": ["a"], "new": ["a", "b"]})
    assert shares["b"] == "new"
    assert zone_shares({}) == {}
