"""Migrations that wait for tables which others use, in turns."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from dispatcher.ledger import migrate
from dispatcher.ledger.migrate import MigrationError
from tests.ledger.small_migrations import query, write


async def _holds_a_table(url: str) -> asyncpg.Connection:
    """Somebody's long transaction that has read a table, as a dump or a report."""
    session = await asyncpg.connect(url)
    await session.execute("BEGIN; SELECT FROM first")
    return session


async def test_a_migration_that_waits_for_a_table_lets_others_use_it(
    empty_database_url: str, small: Path
) -> None:
    """A lock that is waited for is in the way of everybody who comes later."""
    await migrate.up(empty_database_url, small)
    write(small, "0004_fourth", "ALTER TABLE first ADD note text;", "ALTER TABLE first DROP note;")
    holder = await _holds_a_table(empty_database_url)
    migrating = asyncio.create_task(migrate.up(empty_database_url, small))
    waits = (
        "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE first%'"
    )
    async with asyncio.timeout(10):
        while not await query(empty_database_url, waits):
            await asyncio.sleep(0.01)
        assert await query(empty_database_url, "SELECT count(*) FROM first") == [(0,)]
    await holder.close()
    assert await migrating == ["0004_fourth"]


async def test_a_table_that_is_in_use_all_the_time_is_named(
    empty_database_url: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_GIVE_UP_S", 0.1)
    await migrate.up(empty_database_url, small)
    write(small, "0004_fourth", "ALTER TABLE first ADD note text;", "ALTER TABLE first DROP note;")
    holder = await _holds_a_table(empty_database_url)
    with pytest.raises(
        MigrationError, match="0004_fourth was rolled back: another transaction is in its way"
    ):
        await migrate.up(empty_database_url, small)
    await holder.close()
    assert await migrate.up(empty_database_url, small) == ["0004_fourth"]


async def test_an_autovacuum_makes_way(
    empty_database_url: str, small: Path, admin: asyncpg.Connection
) -> None:
    """Postgres ends one for whoever has waited for it as long as deadlock_timeout, and not before."""
    await migrate.up(empty_database_url, small)
    write(small, "0004_fourth", "ALTER TABLE first ADD note text;", "ALTER TABLE first DROP note;")
    slow = (
        "autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,"
        "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1"
    )
    await query(empty_database_url, f"ALTER TABLE first SET ({slow})")
    await query(empty_database_url, "INSERT INTO first SELECT generate_series(1, 200_000)")
    await query(empty_database_url, "DELETE FROM first WHERE id % 2 = 0")
    await admin.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
    await admin.execute("SELECT pg_reload_conf()")
    try:
        vacuums = "SELECT FROM pg_stat_progress_vacuum WHERE relid = to_regclass('first')"
        async with asyncio.timeout(30):
            while not await query(empty_database_url, vacuums):
                await asyncio.sleep(0.1)
        async with asyncio.timeout(10):
            assert await migrate.up(empty_database_url, small) == ["0004_fourth"]
    finally:
        await admin.execute("ALTER SYSTEM RESET autovacuum_naptime")
        await admin.execute("SELECT pg_reload_conf()")


async def test_a_preview_says_what_is_in_its_way(
    empty_database_url: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_GIVE_UP_S", 0.1)
    await migrate.up(empty_database_url, small)
    holder = await _holds_a_table(empty_database_url)
    with pytest.raises(MigrationError, match="0001_first was rolled back: another transaction is"):
        await migrate.preview_down(empty_database_url, 3, small)
    await holder.close()
