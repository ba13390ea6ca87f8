"""A database with the commit on it, and the changes that its tests send there.

How a stored answer goes with a change is only here.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from dispatcher.core.idempotency import IdempotencyKey, KeyedAnswer
from dispatcher.core.times import moment
from dispatcher.core.trips import Trip
from dispatcher.ledger.changes import Change, Outcome, take_changes, to_composite
from dispatcher.ledger.commit_session import send
from dispatcher.ledger.commits import Commits

AT_MS = 1_795_000_000_000
DAY_MS = 86_400_000
FAR_MS = 4_000_000_000_000

#: The columns of `trip_requests` that hold a time, in milliseconds in a `Trip`.
TIME_COLUMNS = tuple(n for n in Trip._fields if n.endswith("_at") or n == "trip_start_time")
#: What a `Trip` has under another name, or from the row of its driver.
NOT_COLUMNS = ("pickup_lat", "pickup_lng", "dropoff_lat", "dropoff_lng", "driver_vehicle_type")


@dataclass(frozen=True)
class Keyed:
    """A change with the answer that is kept for its key."""

    change: Change
    answer: KeyedAnswer


def parts_of(change: Change | Keyed) -> tuple[Change, KeyedAnswer | None]:
    """The change, and the answer that goes with it, if any."""
    return (change.change, change.answer) if isinstance(change, Keyed) else (change, None)


@dataclass
class LedgerDatabase:
    """A migrated database: changes go in by one connection, rows come out by the other."""

    url: str
    connection: asyncpg.Connection
    committing: asyncpg.Connection

    async def commit(
        self, *changes: Change | Keyed, by: asyncpg.Connection | None = None
    ) -> list[tuple[Any, ...]]:
        """What became of each change, in the order of the changes: (outcome, status, body)."""
        rows = await self.send(*changes, by=by)
        return [(r["outcome"], r["stored_status"], r["stored_response"]) for r in rows]

    async def send(self, *changes: Change | Keyed, by: asyncpg.Connection | None = None) -> list[Any]:
        """The rows that the commit answers, in the order of the changes."""
        rows = [to_composite(i, *parts_of(change)) for i, change in enumerate(changes)]
        connection = by or self.committing
        await take_changes(connection)
        found = await send(connection, rows)
        ordered = sorted(found, key=lambda row: row["idx"])
        assert [row["idx"] for row in ordered] == list(range(len(changes))), "one row per change"
        return ordered

    async def outcomes(self, *changes: Change | Keyed) -> list[str]:
        """What became of each change, in one word."""
        return [outcome for outcome, *_ in await self.commit(*changes)]

    async def one(self, sql: str, *args: Any) -> tuple[Any, ...] | None:
        """The first row of a query."""
        row = await self.connection.fetchrow(sql, *args)
        return tuple(row) if row else None

    async def count(self, table: str) -> int:
        """How many rows a table has."""
        return int(await self.connection.fetchval(f"SELECT count(*) FROM {table}"))

    async def history(self, trip_id: str) -> list[tuple[int, str]]:
        """A trip's events with their versions."""
        rows = await self.connection.fetch(
            "SELECT version, event FROM trip_events WHERE trip_id = $1 ORDER BY version", trip_id
        )
        return [tuple(row) for row in rows]

    async def trip(self, trip_id: str) -> tuple[Any, ...] | None:
        """A trip's (state, version, driver)."""
        return await self.one(
            "SELECT current_status, version, driver_id FROM trip_requests WHERE id = $1", trip_id
        )


@asynccontextmanager
async def open_commits(url: str, batch_size: int = 256) -> AsyncIterator[Commits]:
    """The class that servers commit with, started; closed at the end."""
    commits = Commits(url, timeout_s=5, max_batch=batch_size)
    await commits.start()
    try:
        yield commits
    finally:
        await commits.close()


def key_of(text: str = "k1", asked: str = "x", user: str = "d1") -> IdempotencyKey:
    """A user's key of a request whose body is `asked`."""
    return IdempotencyKey(user, "/act", text, hashlib.sha256(asked.encode()).hexdigest(), b'{"a": 1}')


def keyed(
    change: Change, key: IdempotencyKey, body: str = "{}", ends_ms: int = FAR_MS, status: int = 200
) -> Keyed:
    """The change with the answer that is kept for the key."""
    return Keyed(change, KeyedAnswer(key, status, body, ends_ms))


async def commit(commits: Commits, change: Change | Keyed) -> Outcome:
    """Commits one change by the class that servers commit with."""
    return await commits.commit(*parts_of(change))


def create(trip_id: str = "z_1", **more: Any) -> Change:
    """A customer's new trip."""
    usual: dict[str, Any] = {
        "trip_id": trip_id, "is_creation": True, "to_status": "pending", "zone": "z",
        "customer_id": "c1", "vehicle_type": "car", "pickup": (8.6, 50.1), "event": "created",
        "actor_id": "c1", "actor_role": "customer", "payload": "{}", "at_ms": AT_MS,
    }  # fmt: skip
    return Change(**(usual | more))


def step(trip_id: str, version: int, event: str, **more: Any) -> Change:
    """What happens to a trip of this version, from a state and to a state that fit."""
    to_status, sources, driver = {
        "accepted": ("accepted", ("pending",), "d1"),
        "arrived": ("arrived", ("accepted",), "d1"),
        "started": ("ongoing", ("arrived",), "d1"),
        "completed": ("completed", ("ongoing",), "d1"),
        "released": ("pending", ("accepted", "arrived"), None),
        "cancelled": ("cancelled", ("pending", "accepted", "arrived"), None),
        "expired": ("expired", ("pending",), None),
    }[event]
    usual: dict[str, Any] = {
        "trip_id": trip_id, "expect_version": version, "sources": sources, "to_status": to_status,
        "driver_id": driver, "zone": "z", "event": event, "actor_id": "d1", "actor_role": "driver",
        "payload": "{}", "at_ms": AT_MS + version + 1,
    }  # fmt: skip
    return Change(**(usual | more))


def accept(trip_id: str = "z_1", driver: str = "d1", version: int = 0, **more: Any) -> Change:
    """A driver accepts a trip of this version."""
    usual = {"driver_id": driver, "required_driver": driver, "actor_id": driver}
    return step(trip_id, version, "accepted", **(usual | more))


def driver(name: str = "d1", version: int = -1, **more: Any) -> Change:
    """A driver's state: online and available if nothing else is said; version -1 is a new driver."""
    usual: dict[str, Any] = {
        "zone": "z", "at_ms": AT_MS, "set_driver": name, "set_zone": "z", "set_online": True,
        "set_available": "available", "set_vehicle": "car", "expect_driver_version": version,
    }  # fmt: skip
    return Change(**(usual | more))


def decline(trip_id: str = "z_1", name: str = "d1") -> Change:
    """A driver declines a pending trip."""
    return Change(
        trip_id=trip_id, sources=("pending",), zone="z", declines=name, at_ms=AT_MS,
        actor_id=name, actor_role="driver",
    )  # fmt: skip


async def start_with(ledger: LedgerDatabase, *changes: Change | Keyed) -> None:
    """Commits changes one by one; all of them must be applied."""
    for change in changes:
        assert await ledger.outcomes(change) == ["ok"], change


async def put_trip(connection: asyncpg.Connection, trip: Trip) -> None:
    """Writes a trip's row as it is, without a history."""
    row = {
        name: moment(value) if name in TIME_COLUMNS and value is not None else value
        for name, value in trip._asdict().items()
        if name not in NOT_COLUMNS
    }
    row["pickup_location"] = asyncpg.Point(trip.pickup_lng, trip.pickup_lat)
    if trip.dropoff_lat is not None and trip.dropoff_lng is not None:
        row["dropoff_location"] = asyncpg.Point(trip.dropoff_lng, trip.dropoff_lat)
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
    await connection.execute(
        f"INSERT INTO trip_requests ({', '.join(row)}) VALUES ({places})", *row.values()
    )
