"""What happens to a user is heard by the servers of their sockets, and by no others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from dispatcher.core.actors import Actor, Role
from dispatcher.core.zones import DEFAULT_ZONE, Zone, Zones
from dispatcher.live.keys import home_channel, keys_of
from dispatcher.service.snapshots import zones_of
from tests.harness.services import PLACE, City, driver, open_city, rider

ZONES = Zones([Zone("a"), Zone("b"), Zone("c")])


class Socket:
    """A socket of a user: what it was told, frames and snapshots alike."""

    def __init__(self, city: City, actor: Actor) -> None:
        self._city = city
        self.actor = actor
        self.frames: list[dict[str, Any]] = []
        self.welcomes = 0
        #: The newest version of each trip that the app knows of, and the trips it has an offer of.
        self.versions: dict[str, int] = {}
        self.offers: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, frame: bytes, *, replaces: str | None = None) -> None:
        told = orjson.loads(frame)
        self.frames.append(told)
        if told["type"] == "trip":
            self._know(told["trip"])
        elif told["type"] == "offer":
            self.offers.add(told["trip"]["id"])

    def resync(self) -> None:
        task = asyncio.get_running_loop().create_task(self.welcome())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def open(self, zone: str = DEFAULT_ZONE) -> None:
        address = self.actor.address
        self._city.parts.hub.add(address, self)
        await self._city.parts.channels.open(address, zone)
        await self.welcome()

    async def welcome(self) -> None:
        snapshot = await self._city.parts.snapshots.of(self.actor)
        if await self._city.parts.channels.follow(self.actor.address, zones_of(snapshot)):
            snapshot = await self._city.parts.snapshots.of(self.actor)
        self.welcomes += 1
        for trip in (*snapshot.get("trips", ()), *filter(None, [snapshot.get("trip")])):
            self._know(trip)
        self.offers |= {offer["trip"]["id"] for offer in snapshot.get("offers", ())}

    def close(self) -> None:
        self._city.parts.channels.close(self.actor.address)
        self._city.parts.hub.discard(self.actor.address, self)

    def _know(self, trip: dict[str, Any]) -> None:
        self.versions[trip["id"]] = max(trip["version"], self.versions.get(trip["id"], -1))


async def eventually(condition: Callable[[], bool], within_s: float = 15.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def cities(redis_url: str, database_url: str) -> AsyncIterator[list[City]]:
    """Three servers of the same zones."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(open_city(redis_url, database_url, zones=ZONES))
            for _ in range(3)
        ]


async def drive(city: City, name: str, trip: str) -> None:
    for action in ("accept", "arrive", "start", "complete"):
        assert (await city.act(driver(name), action, trip)).status == 200


async def test_a_server_without_sockets_hears_nothing(cities: list[City]) -> None:
    here, elsewhere, idle = cities
    # All servers are told when the loading of a zone begins.
    loads = [city.parts.subscriber.received for city in cities]

    def heard() -> list[int]:
        return [city.parts.subscriber.received - n for city, n in zip(cities, loads, strict=True)]

    mine = [Socket(here, rider("c1")), Socket(here, rider("c1")), Socket(elsewhere, driver("d1"))]
    stranger = Socket(elsewhere, rider("c2"))
    for socket in (*mine, stranger):
        await socket.open()
    await idle.online("d1")
    trip = await idle.trip(customer="c1")
    await drive(idle, "d1", trip)
    await eventually(lambda: all(socket.versions.get(trip) == 4 for socket in mine))
    for socket in mine[:2]:
        assert [(f["event"], f["trip"]["version"]) for f in socket.frames] == [
            ("created", 0), ("accepted", 1), ("arrived", 2), ("started", 3), ("completed", 4)
        ]  # fmt: skip
    assert stranger.frames == []
    assert heard() == [6, 5, 0], "one each, and who arrives"
    for socket in (*mine, stranger):
        socket.close()
    assert [len(city.parts.subscriber) for city in cities] == [1, 1, 1], "the loads"
    trip = await idle.trip(customer="c1")
    await idle.redis("PING")
    assert heard() == [6, 5, 0]


async def test_a_trip_in_a_zone_that_nobody_foresaw(cities: list[City]) -> None:
    """A crowd of customers whose trips are taken while their servers learn of the zone."""
    here, elsewhere, _ = cities
    names = [f"c{n}" for n in range(40)]
    sockets = {name: Socket(here, rider(name)) for name in names}
    await asyncio.gather(*(socket.open() for socket in sockets.values()))

    async def ask_and_be_taken(number: int) -> str:
        zone = "abc"[number % 3]
        await elsewhere.online(f"d{number}", zone=zone)
        trip = await elsewhere.trip(customer=names[number], zone=zone)
        assert (await elsewhere.act(driver(f"d{number}"), "accept", trip)).status == 200
        return trip

    trips = await asyncio.gather(*(ask_and_be_taken(number) for number in range(len(names))))
    expected = dict(zip(names, trips, strict=True))
    await eventually(lambda: all(sockets[n].versions.get(t) == 1 for n, t in expected.items()))
    for name, trip in expected.items():
        told = [frame["trip"]["version"] for frame in sockets[name].frames]
        assert told == sorted(set(told)), "each once, in order"
        assert (await here.row(trip))["version"] == 1
    await asyncio.gather(*(drive_on(elsewhere, f"d{n}", trip) for n, trip in enumerate(trips)))
    await eventually(lambda: all(sockets[n].versions.get(t) == 4 for n, t in expected.items()))


async def drive_on(city: City, name: str, trip: str) -> None:
    for action in ("arrive", "start", "complete"):
        assert (await city.act(driver(name), action, trip)).status == 200


async def test_a_driver_who_moves_by_way_of_another_server(cities: list[City]) -> None:
    here, elsewhere, _ = cities
    await here.online("d1", zone="a")
    socket = Socket(here, driver("d1"))
    await socket.open("a")
    assert (await elsewhere.available("d1", is_online=True, zone="b", location=PLACE)).status == 200
    trip = await elsewhere.trip(zone="b")
    await elsewhere.redis("ZADD", keys_of("b").present, 4e12, "driver:d1")
    await elsewhere.parts.offers.run_due("b")
    await eventually(lambda: trip in socket.offers)
    assert (await elsewhere.act(driver("d1"), "accept", trip)).status == 200
    await eventually(lambda: socket.versions.get(trip) == 1)


async def test_a_link_that_was_lost(cities: list[City]) -> None:
    """Whatever was told meanwhile, the users know it once the link stands again."""
    here, elsewhere, _ = cities
    sockets = [Socket(here, rider(f"c{n}")) for n in range(5)]
    for socket in sockets:
        await socket.open()
    await elsewhere.redis("CLIENT", "KILL", "TYPE", "pubsub")
    trips = [
        await elsewhere.trip(customer=socket.actor.user_id, zone="abc"[n % 3])
        for n, socket in enumerate(sockets)
    ]
    await eventually(lambda: all(s.versions.get(t) == 0 for s, t in zip(sockets, trips, strict=True)))
    assert all(socket.welcomes > 1 for socket in sockets)
    # From then on they are told again, and not by a snapshot alone.
    for n, trip in enumerate(trips):
        await elsewhere.online(f"d{n}", zone="abc"[n % 3])
        assert (await elsewhere.act(driver(f"d{n}"), "accept", trip)).status == 200
    await eventually(lambda: all(s.versions.get(t) == 1 for s, t in zip(sockets, trips, strict=True)))
    assert [[f["event"] for f in s.frames if f["type"] == "trip"][-1:] for s in sockets] == [
        ["accepted"]
    ] * 5


async def test_an_emptied_redis_takes_no_subscription_away(cities: list[City]) -> None:
    here, elsewhere, _ = cities
    socket = Socket(here, rider("c1"))
    await socket.open()
    await elsewhere.redis("FLUSHDB")
    trip = await elsewhere.trip(customer="c1")
    await eventually(lambda: socket.versions.get(trip) == 0)
    assert socket.welcomes == 1


async def test_what_is_no_message_harms_nobody(cities: list[City]) -> None:
    here, elsewhere, _ = cities
    socket = Socket(here, rider("c1"))
    await socket.open()
    address = socket.actor.address
    for text in (
        b"\xff\xfe",
        b"",
        b"{}",
        b"[]",
        b"[1]",
        b'["a"]',
        b'["../", null]',
        b'["a", {"x": 1}]',
        b"null",
    ):
        await elsewhere.redis("SPUBLISH", home_channel(address), text)
        await elsewhere.redis("SPUBLISH", keys_of(DEFAULT_ZONE).channel(address), text)
    trip = await elsewhere.trip(customer="c1")
    await eventually(lambda: socket.versions.get(trip) == 0)


def lose_link(city: City, away: pytest.MonkeyPatch) -> None:
    """A server's subscriptions do not stand until this is undone."""

    def refuse(node: Any) -> Any:
        raise ConnectionError("away")

    away.setattr(city.parts.subscriber._nodes, "connect", refuse)


async def test_a_socket_does_not_wait_where_redis_is_known_to_be_away(
    cities: list[City], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for longer than this test has, and is told its state anew once Redis is back."""
    monkeypatch.setattr("dispatcher.service.user_channels._MAX_WAIT_S", 3_600.0)
    here, elsewhere, _ = cities

    socket = Socket(here, Actor("c1", Role.CUSTOMER))
    with monkeypatch.context() as away:
        lose_link(here, away)
        away.setattr(type(here.parts.live.pipeline), "is_left_alone", lambda *_: True)
        async with asyncio.timeout(10):
            await here.parts.channels.open(socket.actor.address, DEFAULT_ZONE)
    here.parts.hub.add(socket.actor.address, socket)
    trip = await elsewhere.trip(customer="c1")
    await eventually(lambda: socket.versions.get(trip) == 0)
    assert socket.welcomes >= 1


async def test_a_socket_does_not_wait_for_a_link_that_is_away(
    cities: list[City], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.service.user_channels._MAX_WAIT_S", 0.05)
    here, elsewhere, _ = cities

    socket = Socket(here, Actor("c1", Role.CUSTOMER))
    with monkeypatch.context() as away:
        lose_link(here, away)
        await socket.open()
        trip = await elsewhere.trip(customer="c1")
        assert socket.welcomes == 1
    await eventually(lambda: socket.versions.get(trip) == 0)
