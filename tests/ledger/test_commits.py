"""The class that gathers changes into batches: order, changes that cannot be sent, its plans."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.ledger.changes import Outcome, OutcomeCode
from dispatcher.ledger.commit_session import CommitSession
from tests.ledger.harness import (
    LedgerDatabase,
    accept,
    commit,
    create,
    driver,
    key_of,
    keyed,
    open_commits,
    start_with,
    step,
)


async def test_changes_that_touch_the_same_row_go_in_different_batches(ledger: LedgerDatabase) -> None:
    """What touches the same trip, driver or key waits for the next batch, in its order."""
    await start_with(ledger, create(), driver())
    changes = [accept(), step("z_1", 1, "arrived"), step("z_1", 2, "started")]
    async with open_commits(ledger.url) as commits:
        results = await asyncio.gather(
            *(commit(commits, keyed(c, key_of(str(i)))) for i, c in enumerate(changes)),
            commit(commits, keyed(changes[0], key_of("0"))),
        )
        assert [r.code for r in results] == ["ok", "ok", "ok", "replay"]
        assert commits.batches >= 3
    with pytest.raises(StoreUnavailable):
        await commits.commit(create("z_9"))


async def test_what_cannot_be_sent_fails_alone(ledger: LedgerDatabase) -> None:
    """Postgres, or the client, refuses these before any statement could set them apart."""
    unreadable = IdempotencyKey("d1", "/act", "k", "0" * 64, b'{"a":"\\u0000"}')
    poison = [
        create("z_p0", customer_id="c" + chr(0)),
        create("z_p1", customer_id="c" + chr(0xD800)),
        create("z_p2", payload='{"reason": "\\u0000"}'),
        keyed(create("z_p3"), unreadable),
        accept("z_p4", version=2**40),
    ]
    changes = [create(f"z_{i}") for i in range(5)]
    both = [change for pair in zip(changes, poison, strict=True) for change in pair]
    async with open_commits(ledger.url) as commits:
        results = await asyncio.gather(*(commit(commits, c) for c in both), return_exceptions=True)
        assert results[::2] == [Outcome(OutcomeCode.OK)] * 5
        assert [type(result) for result in results[1::2]] == [RuntimeError] * 5
        assert await commits.commit(create("z_after")) == Outcome(OutcomeCode.OK)
    assert await ledger.count("trip_requests") == 6


_HISTORY = """
    INSERT INTO trip_requests (id, zone, customer_id, driver_id, current_status, version, vehicle_type,
                               pickup_location, completed_at)
    SELECT 'z_old-' || n, 'z', 'c' || n, 'd' || n % 50, 'completed', 4, 'car', point(8.6, 50.1), now()
      FROM generate_series(1, 3000) n
"""
_READ = """
    SELECT sum(idx_tup_read) FROM pg_stat_user_indexes
     WHERE relname IN ('trip_requests', 'driver_details')
"""


async def test_a_change_reads_as_little_as_ever_once_the_tables_have_grown(
    ledger: LedgerDatabase,
) -> None:
    # A quiet night: all that is live is gone, and autovacuum has noted how little there is.
    await ledger.connection.execute(_HISTORY)
    await ledger.connection.execute("VACUUM ANALYZE")
    before = await ledger.connection.fetchval(_READ)
    # The morning: plans are made with the first change, and kept.
    names = [str(n) for n in range(600)]
    made = [change for n in names for change in (driver(f"d{n}"), create(f"z_{n}"))]
    taken = [accept(f"z_{n}", f"d{n}") for n in names]
    async with open_commits(ledger.url, batch_size=16) as commits:
        outcomes = await asyncio.gather(*map(commits.commit, made))
        outcomes += await asyncio.gather(*map(commits.commit, taken))
    assert {outcome.code for outcome in outcomes} == {"ok"}
    # A connection's counts are told when it ends, which is after the client has closed it.
    async with asyncio.timeout(10):
        while await ledger.connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dispatcher-ledger'"
            " AND datname = current_database()"
        ):
            await asyncio.sleep(0.01)
    read = await ledger.connection.fetchval(_READ) - before
    assert read / len(outcomes) < 40


async def test_a_session_that_hangs_while_it_is_set_up_is_given_up(
    ledger: LedgerDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    async def hang(connection: Any) -> None:
        made.append(connection)
        await asyncio.Event().wait()

    monkeypatch.setattr("dispatcher.ledger.commit_session.take_changes", hang)
    session = CommitSession(ledger.url, timeout_s=0.5)
    with pytest.raises(StoreUnavailable):
        await session.connected()
    assert [connection.is_closed() for connection in made] == [True]
    monkeypatch.undo()
    assert await (await session.connected()).fetchval("SELECT 1") == 1
    await session.close()


async def test_a_session_that_cannot_look_at_the_catalog_is_a_postgres_that_is_away(
    ledger: LedgerDatabase,
) -> None:
    session = CommitSession(ledger.url, timeout_s=5)
    async with ledger.connection.transaction():
        await ledger.connection.execute("LOCK TABLE pg_class IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailable):
            await session.connected()
    assert await (await session.connected()).fetchval("SELECT 1") == 1
    await session.close()
