"""A stop takes the drain window and five seconds at most, and until then nobody is cut off who need not be."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import psutil
import pytest
import redis.asyncio
from aiohttp import hdrs

from dispatcher.live.keys import keys_of
from tests.harness.servers import Serve, Server, make_token, processes_of

WINDOW_S = 0.5
ENV = {"DISPATCHER_DRAIN_S": str(WINDOW_S)}
#: Of a machine that does much else meanwhile.
SLACK_S = 1.5


async def _seconds_to_stop(server: Server) -> float:
    began = time.monotonic()
    await server.stop()
    return time.monotonic() - began


def _headers(sub: str, role: str, key: str = "") -> dict[str, str]:
    token = {"Authorization": f"Bearer {make_token(sub, role)}"}
    return {**token, "Idempotency-Key": key} if key else token


async def _go_online(client: aiohttp.ClientSession, server: Server, driver: str) -> int:
    return (await _set_online(client, server, driver, is_online=True)).status


async def _set_online(
    client: aiohttp.ClientSession, server: Server, driver: str, *, is_online: bool
) -> aiohttp.ClientResponse:
    async with client.post(
        f"{server.url}/api/driver/availability",
        json={"is_online": is_online},
        headers=_headers(driver, "driver", f"{driver}-{is_online}"),
    ) as response:
        return response


async def _connects(server: Server) -> bool:
    address = urlsplit(server.url)
    try:
        _, writer = await asyncio.open_connection(address.hostname, address.port)
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


@pytest.mark.usefixtures("started_before")
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_frozen_engines(serve: Serve, data_dir: Path, workers: str) -> None:
    server = await serve("--workers", workers, env=ENV, embedded=True)
    async with aiohttp.ClientSession() as client:
        assert await _go_online(client, server, "d1") == 200
        engines = [
            process
            for process in processes_of(data_dir)
            if process.name().startswith(("valkey", "postgres"))
        ]
        assert len(engines) > 4, "Postgres has children"
        for process in engines:
            process.suspend()
        waiting = asyncio.create_task(_go_online(client, server, "d2"))
        await asyncio.sleep(0.1)  # on its way
        assert await _seconds_to_stop(server) < WINDOW_S + 5 + SLACK_S
        assert not [process for process in engines if _lives(process)]
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        again = await serve(env=ENV, embedded=True)
        assert await _go_online(client, again, "d2") == 200


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_work_in_flight_is_finished_and_new_connections_are_refused(
    serve: Serve, redis_url: str, database_url: str, workers: str
) -> None:
    server = await serve("--workers", workers, env=ENV)
    holder = await asyncpg.connect(database_url)
    async with (
        redis.asyncio.Redis.from_url(redis_url) as redis_client,
        aiohttp.ClientSession() as client,
        aiohttp.ClientSession() as late,
        client.ws_connect(f"{server.url}/ws", headers=_headers("d1", "driver")) as one,
        client.ws_connect(f"{server.url}/ws", headers=_headers("d2", "driver")) as other,
    ):
        assert await _go_online(client, server, "d3") == 200
        row = holder.transaction()
        await row.start()
        await holder.execute("SELECT FROM driver_details WHERE user_id = 'd3' FOR UPDATE")
        waiting = asyncio.create_task(_set_online(client, server, "d3", is_online=False))
        async with asyncio.timeout(5):
            while not await redis_client.zcard(keys_of("default").claims):
                await asyncio.sleep(0.01)
        stopping = asyncio.create_task(_seconds_to_stop(server))
        async with asyncio.timeout(5):
            while await _connects(server):
                await asyncio.sleep(0.01)
            assert not stopping.done()
            assert not waiting.done()
            await row.rollback()
            answer = await waiting
            # Whoever keeps connections goes to another server, and loses no call when this one has gone.
            assert (answer.status, answer.headers[hdrs.CONNECTION]) == (200, "close")
            for socket in (one, other):
                while (await socket.receive()).type is not aiohttp.WSMsgType.CLOSE:
                    pass
        assert await stopping < WINDOW_S + 5 + SLACK_S
        assert server.process.returncode == 0
        with pytest.raises(aiohttp.ClientConnectorError):
            await late.get(f"{server.url}/healthz")
    await holder.close()
