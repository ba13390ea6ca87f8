"""What the tests of settles share: a settle in one call, a look at what it did."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import redis.asyncio

from dispatcher.core.idempotency import StoredAnswer
from dispatcher.core.transitions import ACCEPT
from dispatcher.core.trips import Trip
from dispatcher.live.claims import Attempt
from dispatcher.live.settlement import Settlement
from tests.harness.lua_zone import START_MS, Zone


async def settle(
    zone: Zone,
    attempt: Attempt | None = None,
    *,
    answer: StoredAnswer | None = None,
    **changes: Any,
) -> bool:
    """Settles one change; `changes` are fields of its Settlement."""
    settlement = Settlement(**changes)
    return await zone.settler.settle(zone.keys, attempt or zone.attempt(), settlement, answer)


def answer_of(body: str) -> StoredAnswer:
    """A stored answer; its record is `D f 200 <body>`."""
    return StoredAnswer("f", 200, body, START_MS)


async def geo(zone: Zone, vehicle: str = "car") -> list[str]:
    """The drivers in a geo set."""
    return sorted(await zone.redis.zrange(zone.keys.geo(vehicle), 0, -1))


async def put_on_offer(zone: Zone, *names: str, trip_id: str = "z_1") -> None:
    """Gives drivers an open offer of a trip."""
    for name in names:
        await zone.redis.zadd(zone.keys.offers(trip_id), {name: START_MS + 15_000})
        await zone.redis.zadd(zone.keys.inbox(name), {trip_id: START_MS + 15_000})


async def place(zone: Zone, *names: str, vehicle: str = "car") -> None:
    """Puts drivers into a geo set."""
    for name in names:
        await zone.redis.geoadd(zone.keys.geo(vehicle), (8.6, 50.1, name))
        await zone.redis.zadd(zone.keys.seen, {name: START_MS})


def spy_on(zone: Zone) -> list[Any]:
    """The results of each call of a script from now on."""
    ran: list[Any] = []
    run = zone.pipeline.run

    def spy(script: str, keys: Any, args: Any) -> Any:
        reply = run(script, keys, args)
        reply.add_done_callback(lambda done: ran.append(done.result()))
        return reply

    zone.pipeline.run = spy  # type: ignore[method-assign]
    return ran


@contextlib.asynccontextmanager
async def listening(
    zone: Zone, redis_url: str, *addresses: str
) -> AsyncIterator[Callable[[], Awaitable[tuple[str, str]]]]:
    """Gives the next message to one of these users: their address, and the frame."""
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        connection = await client.connection_pool.get_connection()
        await connection.send_command("SSUBSCRIBE", *(zone.keys.channel(each) for each in addresses))
        for _ in addresses:
            await connection.read_response()

        async def heard() -> tuple[str, str]:
            message = await asyncio.wait_for(connection.read_response(), 5)
            return str(message[1]).removeprefix(zone.keys.channel("")), str(message[2])

        yield heard
        await connection.disconnect()


def accepted(trip: Trip) -> Trip:
    """The trip once d1 has accepted it."""
    return ACCEPT.apply(trip, START_MS + 5, driver_id="d1", driver_vehicle_type="car")
