"""Waiting for Postgres: bounded, no longer than the row that is locked, and told what happened."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from dispatcher.core.errors import OutcomeUnknown, StoreUnavailable
from dispatcher.core.times import moment
from dispatcher.ledger import commits as commits_module
from dispatcher.ledger.changes import Outcome, OutcomeCode
from dispatcher.ledger.commit_session import CommitSession
from dispatcher.ledger.commits import Commits
from dispatcher.ledger.database import Database
from tests.ledger.harness import AT_MS, LedgerDatabase, create, driver, open_commits, start_with, step

OK = Outcome(OutcomeCode.OK)
_TERMINATE_POOL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name = 'dispatcher' AND datname = current_database()"
)


@asynccontextmanager
async def _held_by_another(ledger: LedgerDatabase, sql: str) -> AsyncIterator[asyncpg.Connection]:
    """A transaction of another session that has run `sql` and goes on."""
    connection = await asyncpg.connect(ledger.url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(sql)
    try:
        yield connection
    finally:
        await transaction.rollback()
        await connection.close()


async def _session_of_commits(ledger: LedgerDatabase) -> int:
    pid = await ledger.connection.fetchval(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'dispatcher-ledger'"
        " AND datname = current_database()"
    )
    return int(pid)


async def test_a_locked_row_delays_its_own_change_alone(ledger: LedgerDatabase) -> None:
    names = [f"z_{i}" for i in range(8)]
    await start_with(ledger, *(create(name) for name in names))
    async with open_commits(ledger.url) as commits:
        locked = "SELECT FROM trip_requests WHERE id = 'z_3' FOR UPDATE"
        async with _held_by_another(ledger, locked):
            started = time.monotonic()
            calls = {n: asyncio.create_task(commits.commit(step(n, 0, "expired"))) for n in names}
            neighbours = [call for name, call in calls.items() if name != "z_3"]
            assert await asyncio.gather(*neighbours) == [OK] * 7
            # Nor does it delay those that come while it waits.
            assert await commits.commit(create("z_late")) == OK
            assert time.monotonic() - started < 1
            assert not calls["z_3"].done()
        assert await calls["z_3"] == OK
        assert time.monotonic() - started < 2
    assert await ledger.history("z_3") == [(0, "created"), (1, "expired")]


async def test_a_row_that_stays_locked_is_given_up_and_nothing_was_written(
    ledger: LedgerDatabase,
) -> None:
    await start_with(ledger, driver(), create())
    commits = Commits(ledger.url, timeout_s=0.6, max_batch=64)
    await commits.start()
    async with _held_by_another(ledger, "SELECT FROM driver_details FOR UPDATE"):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await commits.commit(driver(version=0, set_online=False))
        assert time.monotonic() - started < 1.5
    assert await commits.commit(driver(version=0, set_online=False)) == OK
    await commits.close()


async def test_a_look_that_fails_as_nobody_foresaw_ends_no_commits(
    ledger: LedgerDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start_with(ledger, create())
    async with open_commits(ledger.url) as commits:
        look, failures = CommitSession.locked, [RuntimeError("what is this?")] * 2

        async def fail_first(self: CommitSession, subjects: Any) -> Any:
            if failures:
                raise failures.pop()
            return await look(self, subjects)

        async with _held_by_another(ledger, "SELECT FROM trip_requests FOR UPDATE"):
            waiting = asyncio.create_task(commits.commit(step("z_1", 0, "expired")))
            async with asyncio.timeout(5):
                while not commits.queue()["held"]:
                    await asyncio.sleep(0.01)
            monkeypatch.setattr(CommitSession, "locked", fail_first)
            async with asyncio.timeout(5):
                while failures:
                    await asyncio.sleep(0.01)
            assert await commits.commit(create("z_2")) == OK
        assert await waiting == OK


async def test_what_is_to_be_sent_by_a_time_is_not_sent_later(ledger: LedgerDatabase) -> None:
    await start_with(ledger, create())
    async with open_commits(ledger.url) as commits:
        with pytest.raises(StoreUnavailable):
            await commits.commit(create("z_late"), send_by=time.monotonic() - 0.01)
        assert await ledger.trip("z_late") is None
        async with _held_by_another(ledger, "SELECT FROM trip_requests FOR UPDATE"):
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await commits.commit(step("z_1", 0, "expired"), send_by=started + 0.4)
            assert time.monotonic() - started < 2
        assert await commits.commit(create("z_late"), send_by=time.monotonic() + 5) == OK
    assert await ledger.history("z_1") == [(0, "created")]


async def test_a_locked_table_is_given_up_too(ledger: LedgerDatabase) -> None:
    commits = Commits(ledger.url, timeout_s=0.6, max_batch=64)
    await commits.start()
    async with _held_by_another(ledger, "LOCK TABLE trip_events IN SHARE MODE"):
        found = await asyncio.gather(
            *(commits.commit(create(f"z_{i}")) for i in range(3)), return_exceptions=True
        )
        assert [type(error) for error in found] == [StoreUnavailable] * 3
    assert await commits.commit(create()) == OK
    await commits.close()


@pytest.mark.parametrize(
    ("sqlstate", "error"),
    [("53100", StoreUnavailable), ("25006", StoreUnavailable), ("57014", StoreUnavailable)],
)
async def test_an_error_that_says_nothing_was_written(
    ledger: LedgerDatabase, sqlstate: str, error: type[Exception]
) -> None:
    """A full disk, a standby, a statement that took too long: the claim can be let go at once."""
    await ledger.connection.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END $$;"
        "CREATE TRIGGER fail BEFORE INSERT ON trip_events FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    async with open_commits(ledger.url) as commits:
        with pytest.raises(error):
            await commits.commit(create())
        # As one of a batch that another one takes apart, too.
        found = await asyncio.gather(
            commits.commit(create("z_1")),
            commits.commit(create("z_2", vehicle_type=None)),
            return_exceptions=True,
        )
        assert isinstance(found[0], StoreUnavailable)
    assert await ledger.count("trip_requests") == 0


async def test_a_session_that_is_terminated_is_no_error_of_ours(ledger: LedgerDatabase) -> None:
    async with open_commits(ledger.url) as commits:
        await commits.commit(create())
        await ledger.connection.execute(
            "SELECT pg_terminate_backend($1)", await _session_of_commits(ledger)
        )
        found: list[Any] = await asyncio.gather(commits.commit(create("z_2")), return_exceptions=True)
        assert found == [OK] or isinstance(found[0], StoreUnavailable | OutcomeUnknown)
        # In the middle of a statement: it may have been right after the commit.
        async with _held_by_another(ledger, "SELECT FROM trip_requests FOR UPDATE"):
            call = asyncio.create_task(commits.commit(step("z_1", 0, "expired")))
            await asyncio.sleep(0.02)
            await ledger.connection.execute(
                "SELECT pg_terminate_backend($1)", await _session_of_commits(ledger)
            )
            with pytest.raises((OutcomeUnknown, StoreUnavailable)):
                await call
        assert await commits.commit(create("z_3")) == OK


async def test_a_terminated_session_of_the_pool_is_no_error_of_ours(ledger: LedgerDatabase) -> None:
    database = await Database.open(ledger.url, size=1)
    await database.trip("z_1")
    await ledger.connection.execute(_TERMINATE_POOL)
    for _ in range(2):
        try:
            await database.trip("z_1")
        except StoreUnavailable:
            continue
    async with _held_by_another(ledger, "LOCK TABLE trip_requests"):
        call = asyncio.create_task(database.trip("z_1"))
        await asyncio.sleep(0.05)
        await ledger.connection.execute(_TERMINATE_POOL)
        with pytest.raises(StoreUnavailable):
            await call
    assert await database.trip("z_1") is None
    await database.close()


async def test_a_query_of_the_pool_is_all_that_its_session_is_sent(ledger: LedgerDatabase) -> None:
    database = await Database.open(ledger.url, size=1)
    await database.trip("z_1")
    [last] = await ledger.connection.fetch(
        "SELECT query FROM pg_stat_activity WHERE application_name = 'dispatcher'"
        " AND datname = current_database()"
    )
    assert "FROM trip_requests" in last["query"]
    await database.close()


async def test_sessions_that_are_terminated_all_the_time(ledger: LedgerDatabase) -> None:
    """Whatever they were at: no error but those that make a 503."""
    database = await Database.open(ledger.url, size=2)
    answered = asyncio.Event()

    async def work() -> None:
        while not answered.is_set():
            with contextlib.suppress(StoreUnavailable):
                await database.save_positions(["d1"], [1.0], [1.0], [moment(AT_MS)])

    async def ask() -> None:
        while not answered.is_set():
            with contextlib.suppress(StoreUnavailable):
                await database.trip("z_1")

    working = [asyncio.create_task(f()) for f in (work, work, ask, ask)]
    for _ in range(100):
        await asyncio.sleep(0.01)
        await ledger.connection.execute(_TERMINATE_POOL)
    answered.set()
    await asyncio.gather(*working)
    await database.close()


async def test_a_question_to_a_silent_postgres_has_one_end(ledger: LedgerDatabase) -> None:
    """One for the wait for a connection, the question and the goodbye together."""
    database = await Database.open(ledger.url, size=1, timeout_s=0.5)
    await database.trip("z_1")
    pid = await ledger.connection.fetchval(
        "SELECT pid FROM pg_stat_activity"
        " WHERE application_name = 'dispatcher' AND datname = current_database()"
    )
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        found = await asyncio.gather(*(database.trip("z_1") for _ in range(3)), return_exceptions=True)
        assert {type(error) for error in found} <= {StoreUnavailable, type(None)}
        assert StoreUnavailable in map(type, found)
        assert time.monotonic() - started < 1
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await database.trip("z_1") is None
    await database.close()


async def test_who_goes_away_before_the_change_is_sent_changes_nothing(ledger: LedgerDatabase) -> None:
    await start_with(ledger, create(), create("z_2"))
    async with open_commits(ledger.url, batch_size=1) as commits:
        async with _held_by_another(ledger, "SELECT FROM trip_requests WHERE id = 'z_1' FOR UPDATE"):
            held = asyncio.create_task(commits.commit(step("z_1", 0, "expired")))
            await asyncio.sleep(0.01)
            waiting = asyncio.create_task(commits.commit(step("z_2", 0, "expired")))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            held.cancel()
            with pytest.raises(OutcomeUnknown):  # it is at Postgres, which waits for the lock
                await held
        assert await commits.commit(create("z_3")) == OK
    assert await ledger.trip("z_2") == ("pending", 0, None)


async def test_the_queue_is_bounded(ledger: LedgerDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits_module, "_MAX_WAITING", 5)
    async with open_commits(ledger.url) as commits:
        found = await asyncio.gather(
            *(commits.commit(create(f"z_{i}")) for i in range(9)), return_exceptions=True
        )
    assert found[:5] == [OK] * 5
    assert [type(error) for error in found[5:]] == [StoreUnavailable] * 4
