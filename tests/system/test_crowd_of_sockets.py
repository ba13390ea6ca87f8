"""Two thousand open sockets: what their heartbeats cost, and what they do not cost."""

from __future__ import annotations

import asyncio

import aiohttp
import asyncpg
import redis.asyncio

from tests.harness.servers import Serve, make_token

SOCKETS = 2_000


async def _transactions(postgres: asyncpg.Connection) -> int:
    """How many transactions this database has seen; a session may tell of its last second later."""
    await postgres.execute("SELECT pg_stat_clear_snapshot()")
    return int(
        await postgres.fetchval(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        )
    )


async def test_heartbeats_are_cheap(serve: Serve) -> None:
    server = await serve(
        env={
            "DISPATCHER_MAX_CONNECTIONS_PER_IP": str(2 * SOCKETS),
            # Long pauses, so that background jobs hardly have a word with Postgres.
            "DISPATCHER_POSITION_FLUSH_S": "60",
            "DISPATCHER_PRESENCE_TTL_S": "20",
            "DISPATCHER_PRESENCE_GRACE_S": "600",
            "DISPATCHER_DRAIN_S": "0.5",
        }
    )
    postgres = await asyncpg.connect(server.database_url)
    client = redis.asyncio.Redis.from_url(server.redis_url, decode_responses=True)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        gate = asyncio.Semaphore(100)

        async def open_one(number: int) -> aiohttp.ClientWebSocketResponse:
            token = make_token(f"c{number}", "customer")
            async with gate:
                socket = await session.ws_connect(
                    server.url + "/ws", headers={"Authorization": f"Bearer {token}"}
                )
                await socket.receive()  # welcome
                return socket

        sockets = await asyncio.gather(*(open_one(number) for number in range(SOCKETS)))
        transactions = await _transactions(postgres)
        before = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
        rounds = 4
        for number in range(rounds):
            await asyncio.gather(*(s.send_str(f'{{"type":"heartbeat","id":{number}}}') for s in sockets))
            answers = await asyncio.gather(*(s.receive_json() for s in sockets))
            assert {a["type"] for a in answers} == {"ack"}
        # Beyond the TTL of a socket that would not be refreshed: all are still there.
        async with asyncio.timeout(30):
            present = "dsp:{default}:present"
            ends = await client.zrange(present, 0, 0, withscores=True)
            while (await client.zrange(present, 0, 0, withscores=True)) == ends:
                await asyncio.gather(*(s.send_str('{"type":"heartbeat"}') for s in sockets))
                await asyncio.sleep(0.2)
        assert await client.zcard(present) == SOCKETS
        after = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
        # Every heartbeat by itself would have been 2,000 calls a round, and so would a statement each.
        # What is counted are the last registrations, and the background jobs.
        assert await _transactions(postgres) - transactions < SOCKETS
        assert after - before < SOCKETS
        await asyncio.gather(*(s.close() for s in sockets))
    await client.aclose()
    await postgres.close()
