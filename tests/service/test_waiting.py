"""A request has one deadline; what came to nothing is let go of at once, and costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from dispatcher.core.errors import OutcomeUnknown, StoreUnavailable
from dispatcher.service.commands.accept import AcceptTrip
from dispatcher.service.commands.command import Plan
from tests.harness.services import City, driver, open_city
from tests.lua.test_lost_connections import Proxy


@contextlib.asynccontextmanager
async def _locked(database_url: str, sql: str) -> AsyncIterator[None]:
    connection = await asyncpg.connect(database_url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(sql)
    yield
    await transaction.rollback()
    await connection.close()


@contextlib.asynccontextmanager
async def _frozen_ledger(city: City) -> AsyncIterator[None]:
    """Postgres' process that commits for this server does nothing."""
    pid = await city.postgres.fetchval(
        "SELECT pid FROM pg_stat_activity"
        " WHERE application_name = 'dispatcher-ledger' AND datname = current_database()"
    )
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def _retried(city: City, trip: str, name: str = "d1") -> int:
    """The status of a retry, once what a lost reply left behind is gone, which takes no lease."""
    async with asyncio.timeout(1.5):
        while True:
            answer = await city.act(driver(name), "accept", trip, f"k-{name}")
            if b"request_in_progress" not in answer.body:
                return answer.status
            await asyncio.sleep(0.01)


async def test_a_frozen_postgres_takes_no_longer_than_the_deadline(
    redis_url: str, database_url: str
) -> None:
    async with open_city(
        redis_url, database_url, request_deadline_s=0.5, limit_trip_accept="1/60", commit_batch=1
    ) as city:
        await city.online("d1", "d2", "d3")
        trips = [await city.trip() for _ in range(3)]
        started = time.monotonic()
        async with _frozen_ledger(city):
            found = await asyncio.gather(
                *(
                    city.act(driver(f"d{i + 1}"), "accept", trip, f"k-d{i + 1}")
                    for i, trip in enumerate(trips)
                ),
                return_exceptions=True,
            )
            assert time.monotonic() - started < 1
        # The first was at Postgres already; those behind it changed nothing, and may try again at once.
        assert [type(error) for error in found] == [OutcomeUnknown, StoreUnavailable, StoreUnavailable]
        for name, trip in zip(("d2", "d3"), trips[1:], strict=True):
            assert await _retried(city, trip, name) == 200
        assert await city.double_assignments() == 0


async def test_a_change_that_came_to_nothing_is_let_go_of_and_costs_nothing(
    redis_url: str, database_url: str
) -> None:
    async with open_city(
        redis_url, database_url, commit_timeout_s=0.3, limit_trip_accept="1/60"
    ) as city:
        await city.online("d1")
        trip = await city.trip()
        async with _locked(database_url, "SELECT FROM trip_requests FOR UPDATE"):
            with pytest.raises(StoreUnavailable):
                await city.act(driver("d1"), "accept", trip, "k-d1")
        answer = await city.act(driver("d1"), "accept", trip, "k-d1")
        assert answer.status == 200
        assert answer.limit is not None
        assert answer.limit.remaining == 0


async def test_a_full_disk_costs_nothing(redis_url: str, database_url: str) -> None:
    async with open_city(redis_url, database_url, limit_trip_accept="1/60") as city:
        await city.online("d1")
        trip = await city.trip()
        await city.postgres.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE disk_full; END $$;"
            "CREATE TRIGGER fail BEFORE INSERT ON trip_events FOR EACH ROW EXECUTE FUNCTION fail()"
        )
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await city.act(driver("d1"), "accept", trip, "k-d1")
        await city.postgres.execute("DROP TRIGGER fail ON trip_events")
        assert (await city.act(driver("d1"), "accept", trip, "k-d1")).status == 200


async def test_a_lost_reply_to_a_claim_is_let_go_of(redis_url: str, database_url: str) -> None:
    port = int(redis_url.rsplit(":", 1)[1].split("/", maxsplit=1)[0])
    async with (
        Proxy(port).listen(redis_url) as proxy,
        open_city(proxy.url, database_url, limit_trip_accept="1/60") as city,
    ):
        await city.online("d1")
        trip = await city.trip()
        doomed = True

        def doom(data: bytes) -> bool:
            nonlocal doomed
            doomed, now = (False, True) if doomed and b"EVALSHA" in data else (doomed, False)
            return now

        proxy.doom = doom
        with pytest.raises(StoreUnavailable):
            await city.act(driver("d1"), "accept", trip, "k-d1")
        assert await _retried(city, trip) == 200


async def test_a_settle_that_hangs_does_not_keep_a_success(redis_url: str, database_url: str) -> None:
    async with open_city(redis_url, database_url, request_deadline_s=0.3) as city:
        await city.online("d1")
        trip = await city.trip()
        settle = city.parts.live.settler.settle

        async def hang(*args: object, **more: object) -> bool:
            await asyncio.sleep(30)
            return await settle(*args, **more)  # type: ignore[arg-type]

        city.parts.live.settler.settle = hang  # type: ignore[method-assign]
        answer = await city.act(driver("d1"), "accept", trip, "k-d1")
        assert answer.status == 200
        assert (await city.row(trip))["driver_id"] == "d1"


async def test_a_server_that_stood_still_commits_nothing_that_others_may_have_swept(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = AcceptTrip.plan

    def stand_still(*arguments: Any) -> Plan:
        time.sleep(0.4)  # the whole process
        return plan(*arguments)

    async with open_city(redis_url, database_url, claim_lease_ms=600, commit_timeout_s=0.3) as city:
        await city.online("d1")
        trip = await city.trip()
        with monkeypatch.context() as patch:
            patch.setattr(AcceptTrip, "plan", stand_still)
            with pytest.raises(StoreUnavailable):
                await city.act(driver("d1"), "accept", trip, "k-d1")
        assert (await city.row(trip))["version"] == 0
        assert await _retried(city, trip) == 200
