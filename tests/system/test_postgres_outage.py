"""Postgres is gone, or silent, under load: no success meanwhile, bounded waits, and all is well after.

POSTGRES_OUTAGE_S=30 uv run pytest -n 0 -s tests/system/test_postgres_outage.py shows the figures of a
longer one, with the settings that servers have by default.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import psutil
import pytest
import redis.asyncio

from dispatcher.embedded.engines import Engines
from dispatcher.embedded.postgres import Postgres
from dispatcher.ledger import migrate
from tests.harness.servers import Serve, Server, make_token
from tests.system.test_websocket import eventually, session

__all__ = ["session"]  # the fixture

OUTAGE_S = float(os.environ.get("POSTGRES_OUTAGE_S", "1.5"))
IS_SHORT = OUTAGE_S < 10
WORKERS = 16
OFF = {f"DISPATCHER_LIMIT_{n}": "off" for n in ("TRIP_ACCEPT", "TRIP_CANCEL", "GENERAL", "ANONYMOUS")}
QUICK = {
    "DISPATCHER_COMMIT_TIMEOUT_S": "0.3", "DISPATCHER_CLAIM_LEASE_MS": "500",
    "DISPATCHER_REQUEST_DEADLINE_S": "0.5",
}  # fmt: skip
DEADLINE_S = 0.5 if IS_SHORT else 8.0
#: A machine that does other things, too, takes its time to send an answer that is due.
MARGIN_S = 5.0
#: After a long outage, each second of these is shown.
_WATCHED_S = 8


class Call(NamedTuple):
    """One call of an app: whose, when it was sent and answered, on the monotonic clock, and how."""

    user: str
    began_s: float
    ended_s: float
    status: int
    retry_after: str | None


class People:
    """A rider and a driver each worker: create, accept, cancel, and a retry with the key after a `503`."""

    def __init__(self, session: aiohttp.ClientSession, server: Server) -> None:
        self._session = session
        self._server = server
        self.calls: list[Call] = []
        self.stopping = False

    async def work(self, name: str) -> int:
        """Until it is told to stop; returns how many trips came to their end."""
        await self._until_answered(
            f"driver-{name}", "driver", "/api/driver/availability",
            {"is_online": True, "availability_status": "available"},
        )  # fmt: skip
        ended = 0
        while not self.stopping:
            place = {"pickup": {"lat": 40.75, "lng": -73.98}}
            _, made = await self._until_answered(
                f"rider-{name}", "customer", "/api/customer/ride/create", place
            )
            trip = made["trip"]["id"]
            body = {"trip_request_id": trip}
            status, _ = await self._until_answered(
                f"driver-{name}", "driver", "/api/driver/ride/trip-action", {**body, "action": "accept"}
            )
            assert status == 200
            status, _ = await self._until_answered(
                f"rider-{name}", "customer", "/api/customer/ride/cancel", body
            )
            assert status == 200
            ended += 1
        return ended

    async def _until_answered(
        self, user: str, role: str, path: str, body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        headers = {
            "Authorization": f"Bearer {make_token(user, role)}",
            "Idempotency-Key": secrets.token_hex(8),
        }
        while True:
            began_s = time.monotonic()
            async with self._session.post(self._server.url + path, json=body, headers=headers) as answer:
                found = await answer.json()
                self.calls.append(
                    Call(
                        user, began_s, time.monotonic(), answer.status, answer.headers.get("Retry-After")
                    )
                )
                # As apps do: what is under way or could not be decided is sent again, with its key.
                if answer.status != 503 and found["response_code"] not in (
                    "request_in_progress",
                    "trip_busy",
                ):
                    return answer.status, found
            await asyncio.sleep(0.05)


class Outage:
    """How Postgres goes away, and comes back."""

    def __init__(self, engines: Engines, kind: str) -> None:
        assert engines.postgres is not None
        self._postgres: Postgres = engines.postgres
        self._kind = kind
        self._hung: list[psutil.Process] = []

    async def begin(self) -> None:
        if self._kind == "killed":
            for process in self._processes():
                process.kill()
            await asyncio.to_thread(self._postgres.stop)
        else:
            self._hung = self._processes()
            for process in self._hung:
                process.suspend()

    async def end(self) -> None:
        if self._kind == "killed":
            await asyncio.to_thread(self._postgres.start)
        for process in self._hung:
            process.resume()

    def _processes(self) -> list[psutil.Process]:
        assert self._postgres.process is not None
        parent = psutil.Process(self._postgres.process.pid)
        return [parent, *parent.children(recursive=True)]


@pytest.fixture
async def own_engines(data_dir: Path, started_before: None) -> AsyncIterator[Engines]:
    made = Engines(data_dir, redis=False)
    urls = await asyncio.to_thread(made.start)
    await migrate.up(urls.database_url)
    yield made
    await asyncio.to_thread(made.stop)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["killed", "silent"])
async def test_postgres_goes_away_under_load(
    own_engines: Engines, serve: Serve, session: aiohttp.ClientSession, redis_url: str, kind: str
) -> None:
    url = own_engines.urls.database_url
    server = await serve(env={**OFF, **(QUICK if IS_SHORT else {}), "DISPATCHER_DATABASE_URL": url})
    people = People(session, server)
    workers = [asyncio.create_task(people.work(str(i))) for i in range(WORKERS)]
    started_s = time.monotonic()
    await asyncio.sleep(OUTAGE_S / 2 if IS_SHORT else 5.0)
    outage = Outage(own_engines, kind)
    await outage.begin()
    gone_s = time.monotonic()
    await asyncio.sleep(OUTAGE_S)
    back_began_s = time.monotonic()
    await outage.end()
    back_s = time.monotonic()
    before = _rate(people.calls, started_s + 0.25, gone_s)

    async def all_are_served() -> bool:
        return len(_first_successes(people.calls, back_s)) == 2 * WORKERS

    # Nobody is kept waiting by what the outage has left: leases, sessions, breakers, queues. How much is
    # done in a second then says more of what else the machine does.
    await eventually(all_are_served, within_s=60)
    recovered_s = max(_first_successes(people.calls, back_s).values()) - back_s
    if not IS_SHORT:
        await asyncio.sleep(max(0.0, back_s + _WATCHED_S - time.monotonic()))
    people.stopping = True
    ended = await asyncio.gather(*workers)

    meanwhile = [call for call in people.calls if call.began_s > gone_s and call.ended_s < back_began_s]
    assert meanwhile, "somebody has to ask"
    assert {call.status for call in meanwhile} <= {503, 409}, Counter(call.status for call in meanwhile)
    assert [call for call in people.calls if call.status == 503 and call.retry_after is None] == []
    slowest_s = max(call.ended_s - call.began_s for call in people.calls)
    assert slowest_s < DEADLINE_S + MARGIN_S
    await _check(url, redis_url, trips=sum(ended))
    after = [_rate(people.calls, back_s + i, back_s + i + 1) for i in range(_WATCHED_S)]
    print(
        f"\n{kind} for {OUTAGE_S:g} s: {before:.0f} successes a second before, {len(meanwhile)} refusals "
        f"meanwhile, slowest call {slowest_s:.2f} s, everybody served {recovered_s:.1f} s after; "
        f"successes in each second after: {after}"
    )
    assert await server.stop(signal.SIGTERM) == 0


def _first_successes(calls: list[Call], since_s: float) -> dict[str, float]:
    """When each user was first served again."""
    first: dict[str, float] = {}
    for call in calls:
        if call.status < 300 and call.ended_s > since_s:
            first.setdefault(call.user, call.ended_s)
    return first


def _rate(calls: list[Call], since_s: float, until_s: float) -> float:
    good = sum(call.status < 300 for call in calls if since_s <= call.ended_s < until_s)
    return good / max(until_s - since_s, 0.001)


async def _check(url: str, redis_url: str, *, trips: int) -> None:
    """Every retry had one outcome, and nothing is held any more."""
    connection = await asyncpg.connect(url)
    try:
        counts = await connection.fetchrow(
            """
            SELECT count(*) AS all,
                   count(*) FILTER (WHERE current_status = 'cancelled' AND version = 2) AS ended,
                   (SELECT count(*) FROM trip_events) AS events
              FROM trip_requests
            """
        )
    finally:
        await connection.close()
    assert counts is not None
    assert tuple(counts) == (trips, trips, 3 * trips)
    async with redis.asyncio.Redis.from_url(redis_url) as client:

        async def nothing_is_claimed() -> bool:
            return not await client.exists("dsp:{default}:claims") and not await client.keys("*:claim:*")

        await eventually(nothing_is_claimed, within_s=60)
