"""The questions of operators: they run as they stand, and find what they are for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from dispatcher.resources import SQL_DIR
from tests.harness.services import driver, open_city

FILES = sorted((SQL_DIR / "monitoring").glob("*.sql"))
AS_THEY_STAND = {
    "recent_locks": "SELECT id, version, driver_id, current_status, locked_at FROM trip_requests "
    "WHERE locked_at IS NOT NULL ORDER BY locked_at DESC LIMIT 100",
    "idempotency_by_endpoint": "SELECT endpoint, COUNT(*) FROM idempotency_keys "
    "WHERE created_at > NOW() - INTERVAL '1 hour' GROUP BY endpoint",
    "abandoned_trips": "SELECT id, driver_id, locked_at, current_status FROM trip_requests "
    "WHERE locked_at < NOW() - INTERVAL '1 hour' AND current_status = 'accepted' "
    "AND trip_start_time IS NULL",
}


def _statement(path: Path) -> str:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("-- "), f"{path.name} does not say what it asks"
    return "\n".join(line for line in lines if not line.startswith("--")).strip().rstrip(";")


def test_the_files_of_the_first_questions_hold_them_to_the_letter() -> None:
    found = {path.stem: _statement(path) for path in FILES}
    assert {name: found[name] for name in AS_THEY_STAND} == AS_THEY_STAND


async def test_they_run_and_find(redis_url: str, database_url: str) -> None:
    async with open_city(redis_url, database_url) as city:
        await city.online("d1", "d2")
        first, second = await city.trip(), await city.trip()
        await city.act(driver("d1"), "accept", first, "k1")
        await city.act(driver("d2"), "accept", second)
        db = city.postgres
        rows = {path.stem: await db.fetch(_statement(path)) for path in FILES}
        assert [r["id"] for r in rows["recent_locks"]] == [second, first]
        assert [tuple(r) for r in rows["idempotency_by_endpoint"]] == [("/act", 1)]
        for clean in ("abandoned_trips", "double_assignments", "events_gap", "pending_too_long"):
            assert rows[clean] == []
        await db.execute(
            "UPDATE trip_requests SET locked_at = now() - interval '2 hours' WHERE id = $1", first
        )
        await db.execute("DELETE FROM trip_events WHERE trip_id = $1 AND version = 0", second)
        paths = {path.stem: path for path in FILES}
        assert [r["id"] for r in await db.fetch(_statement(paths["abandoned_trips"]))] == [first]
        assert [r["id"] for r in await db.fetch(_statement(paths["events_gap"]))] == [second]


async def test_a_second_active_trip_cannot_be_written(redis_url: str, database_url: str) -> None:
    async with open_city(redis_url, database_url) as city:
        trips = [await city.trip(), await city.trip()]
        take = "UPDATE trip_requests SET current_status = 'accepted', driver_id = 'd1' WHERE id = $1"
        await city.postgres.execute(take, trips[0])
        with pytest.raises(asyncpg.UniqueViolationError):
            await city.postgres.execute(take, trips[1])
        for column, value in (("current_status", "lost"), ("version", -1)):
            with pytest.raises(asyncpg.CheckViolationError):
                await city.postgres.execute(f"UPDATE trip_requests SET {column} = $1", value)
        with pytest.raises(asyncpg.CheckViolationError):
            await city.postgres.execute("UPDATE trip_requests SET pickup_location = point(0, 91)")
        metres = await city.postgres.fetchval("SELECT distance_m(point(0, 0), point(0, 1))")
        assert abs(metres - 111_195) < 1


async def test_a_poisoned_change_fails_alone(redis_url: str, database_url: str) -> None:
    """A row that breaks a constraint does not take its neighbours of the batch along."""
    async with open_city(redis_url, database_url) as city:
        await city.postgres.execute(
            "ALTER TABLE trip_requests ADD CONSTRAINT poison CHECK (customer_id <> 'poison')"
        )
        results = await asyncio.gather(
            *(city.trip(customer="poison" if n == 3 else "rider") for n in range(10)),
            return_exceptions=True,
        )
        assert [isinstance(result, Exception) for result in results].count(True) == 1
        assert isinstance(results[3], Exception)
        assert await city.postgres.fetchval("SELECT count(*) FROM trip_requests") == 9
