"""A URL that lists hosts: every connection is to the one that takes writes, also after a failover."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from dispatcher.config import SettingsError
from dispatcher.core.errors import OutcomeUnknown, StoreUnavailable
from dispatcher.embedded.engines import Engines
from dispatcher.embedded.postgres import Postgres
from dispatcher.ledger import migrate
from dispatcher.ledger.connections import connect, urls_of_hosts
from dispatcher.ledger.database import Database
from dispatcher.ledger.preflight import check_postgres
from tests.harness.services import driver, open_city
from tests.harness.standby import Standby, url_of_both
from tests.system.test_websocket import eventually


@pytest.fixture
async def primary(data_dir: Path, started_before: None) -> AsyncIterator[Postgres]:
    """A Postgres of this test alone."""
    engines = Engines(data_dir, redis=False)
    await asyncio.to_thread(engines.start)
    assert engines.postgres is not None
    yield engines.postgres
    await asyncio.to_thread(engines.stop)


@pytest.fixture
async def standby(primary: Postgres, data_dir: Path) -> AsyncIterator[Standby]:
    await migrate.up(primary.url)
    made = Standby(primary, data_dir / "standby")
    await made.start()
    yield made
    await asyncio.to_thread(made.postgres.stop)


@pytest.fixture
def silent_host() -> Iterator[str]:
    """A host that takes connections and never says a word, as one that hangs."""
    with (
        tempfile.TemporaryDirectory(prefix="silent-") as directory,
        socket.socket(socket.AF_UNIX) as sock,
    ):
        sock.bind(f"{directory}/.s.PGSQL.5432")
        sock.listen()
        yield directory


async def test_a_failover_is_followed(primary: Postgres, standby: Standby, redis_url: str) -> None:
    url = url_of_both(standby.url, primary.url)  # the primary is not the first one
    await check_postgres(url)
    assert await migrate.up(url) == []
    await _refuse_standbys(url_of_both(standby.url, standby.url))
    async with open_city(redis_url, url, commit_timeout_s=1, claim_lease_ms=1_200) as city:
        notices = city.parts.ledger.notices
        await city.online("d1")
        trip = await city.trip()
        await notices.hold(["default"])
        assert (await city.act(driver("d1"), "accept", trip, "k1")).status == 200
        await standby.caught_up_with(await _written_by(primary))

        hung = _processes_of(primary)
        for process in hung:
            process.suspend()  # nobody is told that it is gone
        await standby.promote()

        async def arrived() -> bool:
            try:
                return (await city.act(driver("d1"), "arrive", trip, "k2")).status == 200
            except (StoreUnavailable, OutcomeUnknown):
                return False

        await eventually(arrived)
        assert (await city.act(driver("d1"), "arrive", trip, "k2")).replayed
        assert await city.parts.ledger.database.trip(trip) is not None
        await eventually(lambda: _given(notices.hold(["default"])))
        assert await notices.is_given("default")
        for process in hung:
            process.kill()
    assert [item.applied_at for item in await migrate.status(url) if item.applied_at is None] == []
    after = await asyncpg.connect(standby.url)
    events = await after.fetch("SELECT event FROM trip_events WHERE trip_id = $1 ORDER BY version", trip)
    await after.close()
    assert [row["event"] for row in events] == ["created", "accepted", "arrived"]


async def test_a_host_that_hangs_holds_up_nobody(silent_host: str, database_url: str) -> None:
    silent = f"postgresql://postgres@/dispatcher?host={silent_host}"
    with pytest.raises(TimeoutError):
        await connect(url_of_both(silent, silent), timeout=0.4)
    url = database_url.replace("host=", f"host={silent_host},", 1)
    database = await Database.open(url, size=2, timeout_s=5)
    assert await database.trip("default_x") is None
    assert await database.trip("default_y") is None
    await database.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@h/db", ["postgresql://u:p@h/db"]),
        ("postgresql://u@h:1,i:2/db?a=b", ["postgresql://u@h:1/db?a=b", "postgresql://u@i:2/db?a=b"]),
        ("postgres://h,[::1]:2", ["postgres://h", "postgres://[::1]:2"]),
        ("postgresql://u@/db?host=/a,/b", ["postgresql://u@/db?host=/a", "postgresql://u@/db?host=/b"]),
        ("postgresql:///db?host=a,b&port=1,2&sslmode=require",
         ["postgresql:///db?sslmode=require&host=a&port=1",
          "postgresql:///db?sslmode=require&host=b&port=2"]),
        ("postgresql:///db?host=a,b&port=1",
         ["postgresql:///db?host=a&port=1", "postgresql:///db?host=b&port=1"]),
        ("postgresql:///db?host=/a%20b", ["postgresql:///db?host=/a%20b"]),
    ],
)  # fmt: skip
def test_one_url_a_host(url: str, expected: list[str]) -> None:
    assert urls_of_hosts(url) == expected


async def _refuse_standbys(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^DISPATCHER_DATABASE_URL: none of its hosts takes writes"):
        await check_postgres(url)
    database = await Database.open(url, size=1)
    with pytest.raises(StoreUnavailable):
        await database.trip("default_x")
    await database.close()


def _processes_of(postgres: Postgres) -> list[psutil.Process]:
    assert postgres.process is not None
    parent = psutil.Process(postgres.process.pid)
    return [parent, *parent.children(recursive=True)]


async def _written_by(primary: Postgres) -> str:
    connection = await asyncpg.connect(primary.url)
    position = str(await connection.fetchval("SELECT pg_current_wal_lsn()::text"))
    await connection.close()
    return position


async def _given(holding: object) -> bool:
    try:
        await holding  # type: ignore[misc]
    except StoreUnavailable:
        return False
    return True
