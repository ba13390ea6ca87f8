"""Deletes idempotency rows that have expired, in chunks."""

from __future__ import annotations

from dispatcher.ledger.database import Database

#: Small enough that a chunk's locks and WAL are nothing to wait for.
CHUNK = 1_000


async def delete_expired_rows(database: Database, chunk: int = CHUNK) -> int:
    """Deletes every expired row and returns how many; chunk by chunk, so nobody waits for it.

    Also closes offers whose outcome was lost.
    """
    deleted = 0
    while count := await database.execute("delete_expired", chunk=chunk):
        deleted += count
    await database.execute("close_overdue_offers")
    return deleted


async def delete_expired(database_url: str, chunk: int = CHUNK) -> int:
    """The same on a connection of its own, for the command line."""
    database = await Database.open(database_url, size=1, timeout_s=60)
    try:
        return await delete_expired_rows(database, chunk)
    finally:
        await database.close()
