"""What a round left behind: the clients' history, and what both engines hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import asyncpg
import redis.asyncio

from dispatcher.live.keys import keys_of
from tests.faults.history import History


class Event(NamedTuple):
    """A row of trip_events; `at` in seconds since the epoch, `role` that of the actor."""

    version: int
    event: str
    actor: str
    driver: str | None
    at: float
    role: str = ""


@dataclass
class Evidence:
    """Postgres by its tables, Redis by its keys: what the checker reads, and tests tamper with."""

    history: History
    trips: dict[str, dict[str, Any]] = field(default_factory=dict)
    drivers: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: dict[str, list[Event]] = field(default_factory=dict)
    answers: dict[tuple[str, str, str], str] = field(default_factory=dict)
    #: Offers that have ended before they were made, as (trip, driver, wave).
    offers_too_late: list[tuple[str, str, int]] = field(default_factory=list)
    live_trips: dict[str, dict[str, str]] = field(default_factory=dict)
    live_drivers: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    #: Claims, offers and waves that stand, as (kind, zone, name).
    pending_work: set[tuple[str, str, str]] = field(default_factory=set)
    #: Who may be offered a trip, as (zone, vehicle type, driver).
    on_map: set[tuple[str, str, str]] = field(default_factory=set)


async def gather(
    history: History, database_url: str, redis_client: redis.asyncio.Redis, zones: Iterable[str]
) -> Evidence:
    """Reads both engines; `redis_client` decodes its answers."""
    evidence = Evidence(history)
    await _read_postgres(evidence, database_url)
    for zone in zones:
        await _read_zone(evidence, redis_client, zone)
    return evidence


async def _read_postgres(evidence: Evidence, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            for row in await connection.fetch("SELECT * FROM trip_requests"):
                evidence.trips[row["id"]] = _plain(row)
            for row in await connection.fetch("SELECT * FROM driver_details"):
                evidence.drivers[row["user_id"]] = _plain(row)
            for row in await connection.fetch(
                "SELECT trip_id, version, event, actor_id, payload ->> 'driver_id' AS driver,"
                " extract(epoch FROM created_at)::float8 AS at, actor_role FROM trip_events"
                " ORDER BY trip_id, version"
            ):
                trip_id, *event = row.values()
                evidence.events.setdefault(trip_id, []).append(Event(*event))
            for row in await connection.fetch("SELECT * FROM idempotency_keys"):
                key = (row["user_id"], row["endpoint"], row["idempotency_key"])
                evidence.answers[key] = row["response_payload"]
            evidence.offers_too_late = [
                tuple(row)
                for row in await connection.fetch(
                    "SELECT trip_id, driver_id, wave FROM trip_offers WHERE outcome_at < offered_at"
                )
            ]
    finally:
        await connection.close()


def _plain(row: asyncpg.Record) -> dict[str, Any]:
    # asyncpg's Point does not come back from pickle, and the checker is another process.
    return {
        name: tuple(value) if isinstance(value, asyncpg.Point) else value for name, value in row.items()
    }


async def _read_zone(evidence: Evidence, client: redis.asyncio.Redis, zone: str) -> None:
    keys = keys_of(zone)
    evidence.history.read_stream(await client.xrange(keys.events))
    for trip in await client.zrange(keys.waves, 0, -1):
        evidence.pending_work.add(("wave", zone, trip))
    for vehicle in await client.smembers(keys.vehicles):
        for driver in await client.zrange(keys.geo(vehicle), 0, -1):
            evidence.on_map.add((zone, vehicle, driver))
    async for name in client.scan_iter(match=f"dsp:{{{zone}}}:*", count=1000):
        kind, _, rest = name.removeprefix(keys.prefix).partition(":")
        if kind == "trip":
            evidence.live_trips[rest] = await client.hgetall(name)
        elif kind == "driver":
            evidence.live_drivers[zone, rest] = await client.hgetall(name)
        elif kind in ("claim", "offers"):
            evidence.pending_work.add((kind, zone, rest))
