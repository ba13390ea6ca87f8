"""Migrations: the runner on small ones, and the real ones forward, back and forward again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from dispatcher.ledger import migrate
from dispatcher.ledger.migrate import MigrationError
from tests.ledger.catalog import CATALOG
from tests.ledger.small_migrations import query, write


async def test_up_applies_what_is_missing(empty_database_url: str, small: Path) -> None:
    labels = ["0001_first", "0002_second", "0003_third"]
    before = await migrate.status(empty_database_url, small)
    assert [(item.version, item.applied_at) for item in before] == [(1, None), (2, None), (3, None)]
    assert await query(empty_database_url, CATALOG) == []

    assert await migrate.up(empty_database_url, small) == labels
    assert await migrate.up(empty_database_url, small) == []
    assert all(item.applied_at for item in await migrate.status(empty_database_url, small))

    write(small, "0004_fourth", "CREATE TABLE fourth (id int);", "DROP TABLE fourth;")
    assert await migrate.up(empty_database_url, small) == ["0004_fourth"]


async def test_down_takes_back_the_last_ones(empty_database_url: str, small: Path) -> None:
    await migrate.up(empty_database_url, small)
    assert await migrate.down(empty_database_url, 2, small) == ["0003_third", "0002_second"]
    applied = [bool(item.applied_at) for item in await migrate.status(empty_database_url, small)]
    assert applied == [True, False, False]
    assert await migrate.up(empty_database_url, small) == ["0002_second", "0003_third"]


async def test_down_past_the_first_leaves_nothing(empty_database_url: str, small: Path) -> None:
    await migrate.up(empty_database_url, small)
    assert len(await migrate.down(empty_database_url, 99, small)) == 3
    assert await query(empty_database_url, CATALOG) == []
    assert await migrate.down(empty_database_url, 1, small) == []


async def test_a_preview_names_what_goes_and_takes_nothing(empty_database_url: str, small: Path) -> None:
    write(small, "0002_second",
           "CREATE TABLE \"Second one\" (id int); ALTER TABLE first ADD note text;"
           " CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1';",
           "DROP TABLE \"Second one\"; ALTER TABLE first DROP note; DROP FUNCTION one();")  # fmt: skip
    write(small, "0003_third", "CREATE OR REPLACE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 3';",
           "CREATE OR REPLACE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1';")  # fmt: skip
    await migrate.up(empty_database_url, small)
    await query(empty_database_url, 'INSERT INTO "Second one" SELECT generate_series(1, 3)')
    before = await query(empty_database_url, CATALOG)

    last = await migrate.preview_down(empty_database_url, 1, small)
    assert last.labels == ["0003_third"]
    assert last.losses == ["function one(): its former text comes back"]
    two = await migrate.preview_down(empty_database_url, 2, small)
    assert two.labels == ["0003_third", "0002_second"]
    assert sorted(two.losses) == ["column first.note", "function one()", "table Second one: 3 rows"]
    assert await query(empty_database_url, CATALOG) == before
    assert (await migrate.preview_down(empty_database_url, 9, small)).labels[-1] == "0001_first"


async def test_a_way_back_that_fails_is_found_by_the_preview(
    empty_database_url: str, small: Path
) -> None:
    write(small, "0003_third", "CREATE TABLE third (id int);", "DROP TABLE fourth;")
    await migrate.up(empty_database_url, small)
    with pytest.raises(MigrationError, match=r"0003_third failed and was rolled back: .*fourth"):
        await migrate.preview_down(empty_database_url, 3, small)


async def test_down_is_refused_while_servers_are_connected(empty_database_url: str, small: Path) -> None:
    await migrate.up(empty_database_url, small)
    for name in ("dispatcher", "dispatcher-ledger"):
        server = await asyncpg.connect(empty_database_url, server_settings={"application_name": name})
        for call in (migrate.down, migrate.preview_down):
            with pytest.raises(MigrationError, match=r"servers are connected .*1 session.*--force"):
                await call(empty_database_url, 1, small)
        assert (await migrate.preview_down(empty_database_url, 1, small, force=True)).labels
        assert len(await migrate.down(empty_database_url, 1, small, force=True)) == 1
        await server.close()
        await migrate.up(empty_database_url, small)


async def test_a_migration_that_fails_leaves_no_trace(empty_database_url: str, small: Path) -> None:
    write(small, "0002_second", "CREATE TABLE half (id int); SELECT 1 / 0;", "DROP TABLE half;")
    with pytest.raises(MigrationError, match=r"0002_second failed and was rolled back: division"):
        await migrate.up(empty_database_url, small)
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
    names = await query(empty_database_url, tables)
    assert names == [("first",), ("schema_migrations",)]
    write(small, "0002_second", "CREATE TABLE half (id int);", "DROP TABLE half;")
    assert await migrate.up(empty_database_url, small) == ["0002_second", "0003_third"]


async def test_a_first_migration_that_fails_leaves_no_trace(
    empty_database_url: str, small: Path
) -> None:
    write(small, "0001_first", "SELECT 1 / 0;", "")
    with pytest.raises(MigrationError, match="0001_first failed"):
        await migrate.up(empty_database_url, small)
    assert await query(empty_database_url, CATALOG) == []


async def test_an_edited_migration_is_refused(empty_database_url: str, small: Path) -> None:
    await migrate.up(empty_database_url, small)
    write(small, "0002_second", "CREATE TABLE second (id bigint);", "DROP TABLE second;")
    for call in (
        migrate.up(empty_database_url, small),
        migrate.down(empty_database_url, 1, small),
        migrate.status(empty_database_url, small),
    ):
        with pytest.raises(MigrationError, match="0002_second was changed after it was applied"):
            await call


async def test_a_database_of_a_newer_version_is_refused(empty_database_url: str, small: Path) -> None:
    await migrate.up(empty_database_url, small)
    for file in small.glob("0003_*"):
        file.unlink()
    with pytest.raises(MigrationError, match=r"from a newer version.*0003_third.*knows 2"):
        await migrate.up(empty_database_url, small)


async def test_a_gap_in_the_database_is_refused(empty_database_url: str, small: Path) -> None:
    await migrate.up(empty_database_url, small)
    await query(empty_database_url, "DELETE FROM schema_migrations WHERE version = 2")
    with pytest.raises(MigrationError, match="0002 was not applied, but 0003_third was"):
        await migrate.up(empty_database_url, small)


def test_a_gap_in_the_files_is_refused(small: Path) -> None:
    for file in small.glob("0002_*"):
        file.unlink()
    with pytest.raises(MigrationError, match="0002 is missing"):
        migrate.read_migrations(small)


def test_a_number_that_is_there_twice_is_refused(small: Path) -> None:
    write(small, "0002_other", "SELECT 1;", "SELECT 1;")
    with pytest.raises(MigrationError, match="there twice: see 0002_second"):
        migrate.read_migrations(small)


def test_a_migration_without_a_way_back_is_refused(small: Path) -> None:
    (small / "0003_third.down.sql").unlink()
    with pytest.raises(MigrationError, match="0003_third needs both"):
        migrate.read_migrations(small)


def test_a_file_with_another_name_is_refused(small: Path) -> None:
    (small / "4_fourth.sql").write_text("")
    with pytest.raises(MigrationError, match=r"4_fourth\.sql: a migration is named"):
        migrate.read_migrations(small)


async def test_servers_that_start_at_once_migrate_once(empty_database_url: str, small: Path) -> None:
    write(small, "0002_second", "SELECT pg_sleep(0.2); CREATE TABLE second ();", "")
    calls = [migrate.up(empty_database_url, small) for _ in range(8)]
    applied = [labels for labels in await asyncio.gather(*calls) if labels]
    assert applied == [["0001_first", "0002_second", "0003_third"]]


async def test_the_real_ones_go_forward_back_and_forward_again(empty_database_url: str) -> None:
    count = len(migrate.read_migrations(migrate.MIGRATIONS_DIR))
    snapshots = [await query(empty_database_url, CATALOG)]
    assert len(await migrate.up(empty_database_url)) == count
    snapshots.append(await query(empty_database_url, CATALOG))
    assert len(await migrate.down(empty_database_url, count)) == count
    assert await query(empty_database_url, CATALOG) == snapshots[0] == []
    assert len(await migrate.up(empty_database_url)) == count
    assert await query(empty_database_url, CATALOG) == snapshots[1]


async def test_each_real_one_is_taken_back_to_what_was_before(
    empty_database_url: str, tmp_path: Path
) -> None:
    snapshots = []
    for migration in migrate.read_migrations(migrate.MIGRATIONS_DIR):
        snapshots.append(await query(empty_database_url, CATALOG))
        write(tmp_path, migration.label, migration.up_sql, migration.down_sql)
        assert await migrate.up(empty_database_url, tmp_path) == [migration.label]
    while snapshots:
        await migrate.down(empty_database_url, 1)
        assert await query(empty_database_url, CATALOG) == snapshots.pop()


@pytest.mark.parametrize("steps", [2, 3])
async def test_steps_back_and_forward_with_data_in_the_tables(database_url: str, steps: int) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("""
        INSERT INTO trip_requests (id, zone, customer_id, driver_id, current_status, version,
                                   pickup_location)
        VALUES ('default_1', 'default', 'c1', 'd1', 'accepted', 1, point(8.68, 50.11));
        INSERT INTO driver_details (user_id, zone) VALUES ('d1', 'default');
        INSERT INTO trip_events (trip_id, version, event, actor_id, actor_role)
        VALUES ('default_1', 0, 'created', 'c1', 'customer'),
               ('default_1', 1, 'accepted', 'd1', 'driver');
        INSERT INTO trip_offers (trip_id, driver_id, wave, offered_at)
        VALUES ('default_1', 'd1', 1, now());
    """)
    kept = """
        SELECT * FROM trip_requests
          JOIN trip_events ON trip_id = id JOIN driver_details ON user_id = driver_id
    """
    before = await connection.fetch(kept)
    assert len(before) == 2
    await connection.close()

    reverted = await migrate.down(database_url, steps)
    assert len(reverted) == steps
    assert await migrate.up(database_url) == reverted[::-1]
    assert await query(database_url, kept) == [tuple(row) for row in before]


async def test_outcomes_from_before_their_offer_are_put_right(database_url: str) -> None:
    migrations = migrate.read_migrations(migrate.MIGRATIONS_DIR)
    later = [each for each in migrations if each.label >= "0013"]
    await migrate.down(database_url, len(later))
    connection = await asyncpg.connect(database_url)
    await connection.execute("""
        INSERT INTO trip_offers (trip_id, driver_id, wave, offered_at, deadline, outcome, outcome_at)
        VALUES ('z_1', 'd1', 1, now(), now(), 'withdrawn', now() + interval '1 s'),
               ('z_1', 'd1', 2, now(), now(), 'withdrawn', now() - interval '1 s');
    """)
    await connection.close()
    await migrate.up(database_url)
    rows = await query(database_url, "SELECT wave, outcome FROM trip_offers ORDER BY wave")
    assert rows == [(1, "withdrawn"), (2, "open")]
