"""Deletes idempotency rows that have expired, in batches."""

from __future__ import annotations

from dispatcher.ledger.database import Database

#: Small enough that a batch's locks and WAL are nothing to wait for.
BATCH_SIZE = 1_000


async def delete_expired_rows(database: Database, batch_size: int = BATCH_SIZE) -> int:
    """Deletes every expired row and returns how many; batch by batch, so that nobody waits for it.

    Also closes offers whose outcome was lost.
    """
    deleted = 0
    while count := await database.execute("delete_expired", batch_size=batch_size):
        deleted += count
    await database.execute("close_overdue_offers")
    return deleted


async def delete_expired(database_url: str, batch_size: int = BATCH_SIZE) -> int:
    """The same on a connection of its own, for the command line."""
    database = await Database.open(database_url, size=1, timeout_s=60)
    try:
        return await delete_expired_rows(database, batch_size)
    finally:
        await database.close()
