"""The drivers and trips of the rival *lock*, written straight into its tables."""

from __future__ import annotations

from typing import Any

import asyncpg

from harness import engines

DATABASE = "bench_lock"


def fill(database_url: str, drivers: list[str], trips: list[str]) -> None:
    """Insert available drivers and pending trips."""

    async def work(connection: Any) -> None:
        pickup = asyncpg.Point(-74.15, 40.58)
        dropoff = asyncpg.Point(-73.78, 40.64)
        await connection.copy_records_to_table(
            "drivers",
            columns=["id", "is_online", "availability_status"],
            records=[(driver, True, "available") for driver in drivers],
        )
        await connection.copy_records_to_table(
            "trips",
            columns=["id", "customer_id", "vehicle_type", "pickup", "dropoff"],
            records=[(trip, f"c-{n // 100}", "car", pickup, dropoff)
                     for n, trip in enumerate(trips)],
        )  # fmt: skip

    engines.in_postgres(database_url, work, database=DATABASE)
