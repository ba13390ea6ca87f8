"""The questions of operators: they run as they stand, and find what they are for."""

from __future__ import annotations

from pathlib import Path

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
    """The query of a file, without its header and its semicolon."""
    lines = path.read_text().splitlines()
    assert lines[0].startswith("-- "), f"{path.name} does not say what it asks"
    return "\n".join(line for line in lines if not line.startswith("--")).strip().rstrip(";")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_says_what_the_answer_means_and_when_to_worry(path: Path) -> None:
    asks, means, worry, *query = path.read_text().splitlines()
    assert asks.startswith("-- ")
    assert means.startswith("-- ")
    assert worry.startswith("-- Worry ")
    assert not any(line.startswith("--") for line in query)


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
