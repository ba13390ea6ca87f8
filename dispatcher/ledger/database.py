"""The named queries of `sql/queries/`, and the pool they run on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import aiosql
import asyncpg

from dispatcher.core.drivers import AvailabilityStatus, Driver
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.idempotency import IdempotencyKey, StoredAnswer
from dispatcher.core.times import millis
from dispatcher.core.trips import Status, Trip
from dispatcher.ledger.connections import create_pool
from dispatcher.observe.series import ENGINE_ERRORS, POSTGRES_QUERY_SECONDS
from dispatcher.resources import SQL_DIR

#: What a Postgres that cannot answer raises, as against one that refuses a statement.
UNAVAILABLE_ERRORS: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    # asyncpg's state where a session was terminated between two messages.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
)

_BROKEN_OFF: tuple[type[BaseException], ...] = (*UNAVAILABLE_ERRORS, asyncio.CancelledError)

QUERIES: Any = aiosql.from_path(SQL_DIR / "queries", "asyncpg")


def trip_from_row(row: Any) -> Trip:
    """A trip from a row of `trip_requests` with its driver's vehicle type."""
    pickup, dropoff = row["pickup_location"], row["dropoff_location"]
    return Trip(
        id=row["id"],
        zone=row["zone"],
        customer_id=row["customer_id"],
        vehicle_type=row["vehicle_type"],
        pickup_lat=pickup.y,
        pickup_lng=pickup.x,
        dropoff_lat=dropoff.y if dropoff else None,
        dropoff_lng=dropoff.x if dropoff else None,
        created_at=millis(row["created_at"]) or 0,
        updated_at=millis(row["updated_at"]) or 0,
        current_status=Status(row["current_status"]),
        version=row["version"],
        driver_id=row["driver_id"],
        locked_at=millis(row["locked_at"]),
        accepted_at=millis(row["accepted_at"]),
        arrived_at=millis(row["arrived_at"]),
        trip_start_time=millis(row["trip_start_time"]),
        completed_at=millis(row["completed_at"]),
        cancelled_at=millis(row["cancelled_at"]),
        expired_at=millis(row["expired_at"]),
        cancel_reason=row["cancel_reason"],
        driver_vehicle_type=row["driver_vehicle_type"],
    )


def driver_from_row(row: Any) -> Driver:
    """A driver from a row of `driver_details` with their active trip."""
    return Driver(
        user_id=row["user_id"],
        zone=row["zone"],
        availability_status=AvailabilityStatus(row["availability_status"]),
        is_online=row["is_online"],
        vehicle_type=row["vehicle_type"],
        version=row["version"],
        updated_at=millis(row["updated_at"]) or 0,
        trip_id=row["trip_id"],
    )


def answer_from_row(row: Any) -> StoredAnswer:
    """A stored answer from a row of `idempotency_keys`."""
    return StoredAnswer(
        row["request_fingerprint"],
        row["status_code"],
        row["response_payload"],
        millis(row["expires_at"]) or 0,
    )


def key_from_row(row: Any) -> IdempotencyKey:
    """The key of a stored answer from a row of `idempotency_keys`."""
    return IdempotencyKey(
        row["user_id"], row["endpoint"], row["idempotency_key"], row["request_fingerprint"]
    )


class Statements:
    """Named queries on one connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def row(self, name: str, **arguments: Any) -> Any:
        """The one row of a named query, or None."""
        return await getattr(QUERIES, name)(self._connection, **arguments)

    async def execute(self, name: str, **arguments: Any) -> int:
        """How many rows a named statement changed."""
        tag = await getattr(QUERIES, name)(self._connection, **arguments)
        return int(str(tag).rpartition(" ")[2])


async def _leave_as_it_is(_connection: Any) -> None:
    """A connection goes back to the pool."""


class Database:
    """A small pool for everything but the ledger. Raises StoreUnavailable where Postgres is away."""

    def __init__(self, pool: Any, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s

    @classmethod
    async def open(cls, url: str, *, size: int, timeout_s: float = 5.0) -> Database:
        """Opens the pool; the first connection is made when it is needed."""
        pool = await create_pool(
            url,
            min_size=0,
            max_size=size,
            command_timeout=timeout_s,
            # asyncpg would reset each session with a call of its own after every query. No query here
            # leaves anything in its session: settings are local to a transaction, locks end with it.
            reset=_leave_as_it_is,
            # A plan that is kept was made for the tables as they were then, which may have been empty.
            server_settings={
                "application_name": "dispatcher",
                "plan_cache_mode": "force_custom_plan",
            },
        )
        return cls(pool, timeout_s)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection of the pool, for as long as the timeout, the wait for one included."""
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s), self._pool.acquire() as connection:
                try:
                    yield connection
                except _BROKEN_OFF:
                    # A goodbye would wait for a Postgres that is silent.
                    connection.terminate()
                    raise
        except UNAVAILABLE_ERRORS as error:
            ENGINE_ERRORS.add("postgres")
            raise StoreUnavailable("postgres") from error
        POSTGRES_QUERY_SECONDS.observe(time.perf_counter() - began_s)

    async def rows(self, name: str, **arguments: Any) -> list[Any]:
        """The rows of a named query."""
        async with self.connection() as connection:
            result = getattr(QUERIES, name)(connection, **arguments)
            if hasattr(result, "__aiter__"):
                return [row async for row in result]
            return list(await result)

    async def row(self, name: str, **arguments: Any) -> Any:
        """The one row of a named query, or None."""
        async with self.connection() as connection:
            return await Statements(connection).row(name, **arguments)

    async def execute(self, name: str, **arguments: Any) -> int:
        """How many rows a named statement changed."""
        async with self.connection() as connection:
            return await Statements(connection).execute(name, **arguments)

    @asynccontextmanager
    async def offering_by_hand(self, driver_id: str) -> AsyncIterator[Statements]:
        """A transaction; one at a time for each driver, so that what it sees of their offers stands."""
        try:
            # Each statement has to see what was committed while the first one waited.
            async with (
                self.connection() as connection,
                connection.transaction(isolation="read_committed"),
            ):
                await QUERIES.lock_offers_of_driver(connection, driver_id=driver_id)
                yield Statements(connection)
        except asyncpg.LockNotAvailableError as error:
            raise StoreUnavailable("locked") from error

    async def save_positions(
        self, ids: list[str], lats: list[float], lngs: list[float], ats: list[datetime]
    ) -> int:
        """Saves drivers' last positions, without waiting for the disk: the next ones come soon."""
        try:
            async with self.connection() as connection, connection.transaction():
                await QUERIES.commit_without_waiting(connection)
                tag = await QUERIES.save_positions(connection, ids=ids, lats=lats, lngs=lngs, ats=ats)
                return int(str(tag).rpartition(" ")[2])
        except asyncpg.DeadlockDetectedError as error:  # commits lock drivers in an order of their own
            raise StoreUnavailable("deadlock") from error

    async def trip(self, trip_id: str) -> Trip | None:
        """A trip as Postgres has it."""
        row = await self.row("get_trip", trip_id=trip_id)
        return None if row is None else trip_from_row(row)

    async def driver(self, driver_id: str) -> Driver | None:
        """A driver as Postgres has them."""
        row = await self.row("get_driver", driver_id=driver_id)
        return None if row is None else driver_from_row(row)

    async def stored_answer(self, key: IdempotencyKey) -> StoredAnswer | None:
        """The answer that is kept for a key, unless it has expired."""
        row = await self.row("get_answer", user_id=key.user_id, endpoint=key.endpoint, key=key.key)
        return None if row is None else answer_from_row(row)

    async def check_writable(self) -> None:
        """Raises StoreUnavailable where a commit could not write: read_only, locked or no_schema."""
        async with self.connection() as connection, connection.transaction():
            if not await QUERIES.can_write(connection):
                raise StoreUnavailable("read_only")
            await QUERIES.limit_lock_wait(connection)
            try:
                await QUERIES.lock_written_tables(connection)
            except asyncpg.LockNotAvailableError as error:
                raise StoreUnavailable("locked") from error
            except asyncpg.UndefinedTableError as error:
                raise StoreUnavailable("no_schema") from error

    async def close(self) -> None:
        """Closes the pool, by force after its timeout."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()
