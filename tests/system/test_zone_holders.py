"""A server process that hangs while it does a zone's rounds is followed by another one, and harms nobody later."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import asyncpg
import redis.asyncio

from dispatcher.live.keys import keys_of
from tests.harness.servers import Serve, Server, make_token

KEYS = keys_of("default")
PLACE = {"lat": 40.7559, "lng": -73.9864}


async def _eventually(condition: Callable[[], Awaitable[Any]], within_s: float = 40.0) -> Any:
    async with asyncio.timeout(within_s):
        while not (found := await condition()):
            await asyncio.sleep(0.05)
    return found


async def _post(session: aiohttp.ClientSession, url: str, role: str, name: str, body: Any) -> int:
    headers = {"Authorization": f"Bearer {make_token(name, role)}"}
    async with session.post(url, json=body, headers=headers) as answer:
        await answer.read()
        return answer.status


async def _zones_held(session: aiohttp.ClientSession, server: Server) -> int:
    async with session.get(f"{server.url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next(
        int(float(line.split()[-1])) for line in lines if line.startswith("dispatcher_zones_held ")
    )


async def test_a_holder_that_hangs(serve: Serve) -> None:
    servers = [await serve(), await serve()]
    async with (
        aiohttp.ClientSession() as session,
        redis.asyncio.Redis.from_url(servers[0].redis_url, decode_responses=True) as client,
    ):
        postgres = await asyncpg.connect(servers[0].database_url)

        async def one_holds() -> list[Server] | None:
            held = [await _zones_held(session, server) for server in servers]
            return {(1, 0): servers, (0, 1): servers[::-1]}.get((held[0], held[1]))

        hanging, other = await _eventually(one_holds)
        node = await client.hget(KEYS.holder, "node")
        available = {"is_online": True, "availability_status": "available", "location": PLACE}
        url = f"{other.url}/api/driver/availability"
        assert await _post(session, url, "driver", "d1", available) == 200

        async def ask(name: str) -> str:
            body = {"pickup": PLACE, "trip_request_id": name}
            url = f"{other.url}/api/customer/ride/create"
            assert await _post(session, url, "customer", "c1", body) == 201
            return f"default_{name}"

        async def is_offered(trip: str) -> bool:
            return bool(await client.exists(KEYS.offers(trip)))

        hanging.process.send_signal(signal.SIGSTOP)
        try:
            trips = [await ask(f"t{number}") for number in range(2)]
            for trip in trips:
                await _eventually(lambda trip=trip: is_offered(trip))
            assert await client.hget(KEYS.holder, "node") != node
        finally:
            hanging.process.send_signal(signal.SIGCONT)
        # It comes back, and what it was about to do is refused: each wave was run once.
        await _eventually(lambda: client.zscore("dsp:{@servers}:alive", node))
        trips.append(await ask("late"))
        await _eventually(lambda: is_offered(trips[-1]))

        async def saved() -> bool:
            return int(await postgres.fetchval("SELECT count(DISTINCT trip_id) FROM trip_offers")) == 3

        await _eventually(saved)
        waves = "SELECT max(runs) FROM (SELECT count(DISTINCT offered_at) AS runs FROM trip_offers GROUP BY trip_id, wave) w"
        assert await postgres.fetchval(waves) == 1
        for trip in trips[:1]:
            url = f"{hanging.url}/api/driver/ride/trip-action"
            body = {"action": "accept", "trip_request_id": trip}
            assert await _post(session, url, "driver", "d1", body) == 200
        await postgres.close()
