"""What the schema itself refuses, knows and finds quickly, whatever the code above it does."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

import asyncpg
import pytest

from dispatcher.resources import SQL_DIR

ACTIVE = ("accepted", "arrived", "ongoing")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def _trip(
    database: asyncpg.Connection, suffix: str, status: str = "pending", driver: str | None = None
) -> None:
    await database.execute(
        "INSERT INTO trip_requests (id, zone, customer_id, driver_id, current_status, pickup_location)"
        " VALUES ('z_' || $1, 'z', 'c1', $2, $3, point(8.6, 50.1))",
        suffix, driver, status,
    )  # fmt: skip


@pytest.mark.parametrize("first", ACTIVE)
@pytest.mark.parametrize("second", ACTIVE)
async def test_a_second_active_trip_of_a_driver(
    database: asyncpg.Connection, first: str, second: str
) -> None:
    await _trip(database, "1", first, "d1")
    with pytest.raises(asyncpg.UniqueViolationError, match="one_active_per_driver"):
        await _trip(database, "2", second, "d1")
    await _trip(database, "3")
    with pytest.raises(asyncpg.UniqueViolationError, match="one_active_per_driver"):
        await database.execute(
            "UPDATE trip_requests SET current_status = $1, driver_id = 'd1' WHERE id = 'z_3'", second
        )
    await _trip(database, "4", second, "d2")
    for i, done in enumerate(("completed", "cancelled", "completed")):
        await _trip(database, f"past{i}", done, "d1")


async def test_a_second_active_trip_and_values_that_are_none(database: asyncpg.Connection) -> None:
    await _trip(database, "1")
    await _trip(database, "2")
    take = "UPDATE trip_requests SET current_status = 'accepted', driver_id = 'd1' WHERE id = $1"
    await database.execute(take, "z_1")
    with pytest.raises(asyncpg.UniqueViolationError):
        await database.execute(take, "z_2")
    for column, value in (("current_status", "lost"), ("version", -1)):
        with pytest.raises(asyncpg.CheckViolationError):
            await database.execute(f"UPDATE trip_requests SET {column} = $1", value)
    with pytest.raises(asyncpg.CheckViolationError):
        await database.execute("UPDATE trip_requests SET pickup_location = point(0, 91)")
    metres = await database.fetchval("SELECT distance_m(point(0, 0), point(0, 1))")
    assert abs(metres - 111_195) < 1


@pytest.mark.parametrize(
    ("status", "driver"),
    [(s, None) for s in (*ACTIVE, "completed")] + [(s, "d1") for s in ("pending", "expired")],
)
async def test_a_driver_where_there_must_be_one_and_none_where_there_must_not(
    database: asyncpg.Connection, status: str, driver: str | None
) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await _trip(database, "1", status, driver)


@pytest.mark.parametrize("garbage", ["", "PENDING", "lost", " accepted"])
async def test_every_status_column_is_checked(database: asyncpg.Connection, garbage: str) -> None:
    writes = (
        "INSERT INTO trip_requests (id, zone, customer_id, pickup_location, current_status)"
        " VALUES ('z_1', 'z', 'c', point(0, 0), $1)",
        "INSERT INTO driver_details (user_id, zone, availability_status) VALUES ('d', 'z', $1)",
        "INSERT INTO trip_events (trip_id, version, event, actor_id, actor_role)"
        " VALUES ('z_1', 0, $1, 'c', 'customer')",
        "INSERT INTO trip_events (trip_id, version, event, actor_id, actor_role)"
        " VALUES ('z_1', 0, 'created', 'c', $1)",
        "INSERT INTO trip_offers (trip_id, driver_id, wave, offered_at, outcome)"
        " VALUES ('z_1', 'd', 1, now(), $1)",
    )
    for write in writes:
        with pytest.raises(asyncpg.CheckViolationError):
            await database.execute(write, garbage)


@pytest.mark.parametrize(
    "point",
    [(math.nan, 0.0), (0.0, math.nan), (math.inf, 0.0), (0.0, -math.inf), (180.1, 0.0), (-180.1, 0.0),
     (0.0, 90.1), (0.0, -90.1)],
)  # fmt: skip
async def test_a_place_that_is_none(database: asyncpg.Connection, point: tuple[float, float]) -> None:
    await _trip(database, "1")
    await database.execute("INSERT INTO driver_details (user_id, zone) VALUES ('d1', 'z')")
    for table, column in (
        ("trip_requests", "pickup_location"), ("trip_requests", "dropoff_location"),
        ("driver_details", "current_location"),
    ):  # fmt: skip
        with pytest.raises(asyncpg.CheckViolationError):
            await database.execute(f"UPDATE {table} SET {column} = $1", asyncpg.Point(*point))
        await database.execute(f"UPDATE {table} SET {column} = $1", asyncpg.Point(-180, 90))


@pytest.mark.parametrize(
    ("a", "b", "metres"),
    [
        # A degree is pi / 180 of the mean radius, 6,371,008.8 m, anywhere along a great circle.
        ((0, 0), (0, 1), 111_195.1),
        ((0, 0), (1, 0), 111_195.1),
        ((0, 60), (1, 60), 55_595.4),
        ((179.5, 0), (-179.5, 0), 111_195.1),
        ((0, 0), (180, 0), 20_015_114.4),
        ((10, 90), (-100, 90), 0.0),
        ((8.6, 50.1), (8.6, 50.1), 0.0),
        # Paris to London: 343.5 km on the sphere, 343.9 km on the ellipsoid.
        ((2.3522, 48.8566), (-0.1276, 51.5072), 343_557.0),
    ],
)
async def test_distances(
    database: asyncpg.Connection,
    a: tuple[float, float],
    b: tuple[float, float],
    metres: float,
) -> None:
    for one, other in ((a, b), (b, a)):
        found = await database.fetchval(
            "SELECT distance_m($1, $2)", asyncpg.Point(*one), asyncpg.Point(*other)
        )
        assert found == pytest.approx(metres, rel=1e-4, abs=0.01)


async def _plan(database: asyncpg.Connection, sql: str) -> str:
    """How a query is answered where there is a way around reading everything."""
    await database.execute("SET enable_seqscan = off")
    return "\n".join(row[0] for row in await database.fetch(f"EXPLAIN {sql}"))


def _monitoring(name: str) -> str:
    return (SQL_DIR / "monitoring" / f"{name}.sql").read_text()


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        (_monitoring("recent_locks"), "trip_requests_locked"),
        # Either will do: by state, or by the time of the lock.
        (_monitoring("abandoned_trips"), "trip_requests_"),
        (_monitoring("idempotency_by_endpoint"), "idempotency_keys_created"),
        (_monitoring("expired_keys_backlog"), "idempotency_keys_expires"),
        ("SELECT 1 FROM trip_requests WHERE current_status = 'pending'"
         " AND pickup_location <@ box(point(8, 50), point(9, 51))", "trip_requests_pickup"),
        ("SELECT 1 FROM trip_requests WHERE current_status = 'pending'"
         " ORDER BY pickup_location <-> point(8, 50) LIMIT 5", "trip_requests_pickup"),
        ("SELECT 1 FROM driver_details ORDER BY current_location <-> point(8, 50) LIMIT 5",
         "driver_details_location"),
        ("SELECT 1 FROM trip_requests WHERE driver_id = 'd1'"
         " AND current_status IN ('accepted', 'arrived', 'ongoing')", "one_active_per_driver"),
        ("SELECT 1 FROM trip_requests WHERE current_status = 'completed' AND driver_id = 'd1'"
         " AND version = 1", "trip_requests_status_driver_version"),
        ("SELECT 1 FROM idempotency_keys WHERE user_id = 'u' AND endpoint = 'e'"
         " AND idempotency_key = 'k'", "idempotency_keys_user_id_endpoint_idempotency_key_key"),
    ],
    ids=range(10),
)  # fmt: skip
async def test_the_questions_that_are_asked_often_have_an_index(
    database: asyncpg.Connection, sql: str, index: str
) -> None:
    plan = await _plan(database, sql)
    assert index in plan, plan
    assert "Seq Scan" not in plan


async def test_spatial_columns_are_points_under_gist(database: asyncpg.Connection) -> None:
    rows = await database.fetch(
        "SELECT table_name || '.' || column_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND data_type = 'point'"
        " AND table_name IN (SELECT tablename FROM pg_tables WHERE schemaname = 'public') ORDER BY 1"
    )
    assert [row[0] for row in rows] == [
        "driver_details.current_location", "trip_requests.dropoff_location",
        "trip_requests.pickup_location",
    ]  # fmt: skip
    gist = await database.fetch("SELECT indexname FROM pg_indexes WHERE indexdef LIKE '%USING gist%'")
    assert {row[0] for row in gist} == {"driver_details_location", "trip_requests_pickup"}
