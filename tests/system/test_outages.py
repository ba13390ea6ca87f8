"""Killed servers, restarted engines, and what is left of a request then: one outcome, and agreement."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import redis.asyncio

from dispatcher.embedded.engines import Engines
from dispatcher.embedded.valkey import Valkey
from dispatcher.ledger import migrate
from tests.harness.servers import Serve, Server
from tests.harness.services import driver, open_city
from tests.system.test_websocket import FAST, App, eventually, session

__all__ = ["session"]  # the fixture

#: Where a change can be halted, in the order of the road.
POINTS = ("after_claim", "before_commit", "after_commit", "before_settle", "after_settle")
LEASE = {"DISPATCHER_CLAIM_LEASE_MS": "1500", "DISPATCHER_COMMIT_TIMEOUT_S": "1"}


@pytest.mark.parametrize("point", POINTS)
async def test_kill_on_the_road(serve: Serve, session: aiohttp.ClientSession, point: str) -> None:
    """Killed anywhere between claim and answer: a retry has one outcome, and the event is heard."""
    healthy = await serve(env={**FAST, **LEASE, "DISPATCHER_PRESENCE_TTL_S": "60"})
    app = App(session, healthy, "driver", "d1")
    await app.online()
    trip = await App(session, healthy, "customer", "r1").trip()
    halting = await serve(env={**FAST, **LEASE, "DISPATCHER_HALT_AT": point})
    doomed = App(session, halting, "driver", "d1")
    action = {"action": "accept", "trip_request_id": trip}
    path = "/api/driver/ride/trip-action"
    request = asyncio.create_task(doomed.post(path, action, **{"Idempotency-Key": "k1"}))

    async def halted() -> bool:
        return any('"halted"' in line for line in halting.log_lines())

    await eventually(halted)
    halting.kill9()
    with pytest.raises(aiohttp.ClientError):
        await request

    async def answered() -> dict[str, Any] | None:
        status, body = await app.post(path, action, **{"Idempotency-Key": "k1"})
        assert status == 200 or body["response_code"] in ("request_in_progress", "trip_already_assigned")
        return body if status == 200 else None

    body = await eventually(answered)
    assert body["response_code"] == "trip_accepted"
    postgres = await asyncpg.connect(healthy.database_url)
    row = await postgres.fetchrow("SELECT * FROM trip_requests WHERE id = $1", trip)
    events = await postgres.fetchval("SELECT count(*) FROM trip_events WHERE event = 'accepted'")
    kept = await postgres.fetchval("SELECT count(*) FROM idempotency_keys WHERE idempotency_key = 'k1'")
    await postgres.close()
    assert row is not None
    assert (row["current_status"], row["driver_id"], row["version"]) == ("accepted", "d1", 1)
    assert (events, kept) == (1, 1)
    client = redis.asyncio.Redis.from_url(healthy.redis_url, decode_responses=True)

    async def agrees() -> bool:
        state = await client.hmget(
            f"dsp:{{default}}:trip:{trip}", "current_status", "version", "driver_id"
        )
        # An attempt that was swept waits for its second look.
        overdue = await client.zcount("dsp:{default}:claims", "-inf", time.time() * 1000)
        return bool(state == ["accepted", "1", "d1"] and not overdue)

    await eventually(agrees)
    heard = [fields["event"] for _, fields in await client.xrange("dsp:{default}:events")]
    assert sum('"event":"accepted"' in event and trip in event for event in heard) >= 1
    await client.aclose()


@pytest.mark.usefixtures("started_before")
async def test_replay_after_both_engines_restart(data_dir: Path) -> None:
    engines = Engines(data_dir)
    urls = engines.start()
    try:
        await migrate.up(urls.database_url)
        async with open_city(urls.redis_url, urls.database_url) as city:
            await city.online("d1")
            trip = await city.trip()
            first = await city.act(driver("d1"), "accept", trip, "k1")
        await asyncio.to_thread(engines.stop)
        engines = Engines(data_dir)
        urls = await asyncio.to_thread(engines.start)
        async with open_city(urls.redis_url, urls.database_url) as city:
            again = await city.act(driver("d1"), "accept", trip, "k1")
            assert again.replayed
            assert again.body == first.body
            await city.redis("FLUSHALL")
            again = await city.act(driver("d1"), "accept", trip, "k1")
            assert again.replayed
            assert again.body == first.body
    finally:
        engines.stop()


@pytest.mark.usefixtures("started_before")
async def test_engines_away_and_back(data_dir: Path) -> None:
    """Without Postgres bounded waiting and a clear refusal; without Redis everything goes on."""
    from dispatcher.core.errors import OutcomeUnknown, StoreUnavailable

    engines = Engines(data_dir)
    urls = engines.start()
    try:
        await migrate.up(urls.database_url)
        async with open_city(
            urls.redis_url, urls.database_url, commit_timeout_s=1, claim_lease_ms=1_500
        ) as city:
            await city.online("d1")
            trip = await city.trip()
            await asyncio.to_thread(engines.postgres.stop)
            started = time.monotonic()
            with pytest.raises((StoreUnavailable, OutcomeUnknown)):
                await city.act(driver("d1"), "accept", trip, "k1")
            assert time.monotonic() - started < 10
            await asyncio.to_thread(engines.postgres.start)

            async def accepted() -> bool:
                try:
                    answer = await city.act(driver("d1"), "accept", trip, "k1")
                except (StoreUnavailable, OutcomeUnknown):
                    return False
                return answer.status == 200

            await eventually(accepted)
            await asyncio.to_thread(engines.valkey.stop)
            assert (await city.act(driver("d1"), "arrive", trip, "k2")).status == 200
            await asyncio.to_thread(engines.valkey.start)
            assert (await city.act(driver("d1"), "arrive", trip, "k2")).replayed
            postgres = await asyncpg.connect(urls.database_url)
            events = await postgres.fetch("SELECT event FROM trip_events ORDER BY version")
            await postgres.close()
            assert [row["event"] for row in events] == ["created", "accepted", "arrived"]
    finally:
        engines.stop()


async def test_a_fleet_goes_on_without_redis(
    serve: Serve, session: aiohttp.ClientSession, data_dir: Path
) -> None:
    """Accepts go on, also on a server that starts meanwhile; then Redis decides again, and nothing drifts."""
    valkey = Valkey(data_dir / "valkey")
    await asyncio.to_thread(valkey.start)
    env = {**FAST, "DISPATCHER_REDIS_URL": valkey.url, "DISPATCHER_REDIS_TIMEOUT_S": "1"}
    try:
        first = await serve(env=env)
        drivers = [App(session, first, "driver", f"d{i}") for i in range(3)]
        customer = App(session, first, "customer", "r1")
        for driver_app in drivers:
            await driver_app.online()
        trips = [await customer.trip() for _ in range(2)]
        assert valkey.process is not None
        os.kill(valkey.process.pid, signal.SIGKILL)
        path = "/api/driver/ride/trip-action"

        async def accept(app: App, trip: str) -> tuple[int, str]:
            body = {"action": "accept", "trip_request_id": trip}
            status, answer = await app.post(path, body, **{"Idempotency-Key": f"{app.sub}-{trip}"})
            return status, answer["response_code"]

        won = await asyncio.gather(*(accept(app, trips[0]) for app in drivers))
        assert sorted(won) == [(200, "trip_accepted"), *[(409, "trip_already_assigned")] * 2]
        second = await serve(env=env)
        late = App(session, second, "driver", "d9")
        await late.online()
        assert await accept(late, trips[1]) == (200, "trip_accepted")
        for server in (first, second):
            async with session.get(server.url + "/readyz") as response:
                told = await response.json()
            assert (response.status, told["status"]) == (200, "degraded")
            assert told["degraded_zones"] == ["default"]
        await asyncio.to_thread(valkey.stop)
        await asyncio.to_thread(valkey.start)

        async def is_ready() -> bool:
            async with session.get(second.url + "/readyz") as response:
                return bool((await response.json())["status"] == "ready")

        await eventually(is_ready)
        assert await accept(drivers[0], trips[1]) == (409, "trip_already_assigned")
        assert await _fsck(env, second) == 0
    finally:
        for server in serve.servers:
            await server.stop()
        await asyncio.to_thread(valkey.stop)


async def _fsck(env: dict[str, str], server: Server) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dispatcher", "fsck",
        env={**os.environ, **env, "DISPATCHER_DATABASE_URL": server.database_url},
    )  # fmt: skip
    return await process.wait()
