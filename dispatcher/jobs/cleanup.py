"""Deletes idempotency rows that have expired: every few minutes, in chunks."""

from __future__ import annotations

import structlog

from dispatcher.ledger.cleanup import delete_expired_rows
from dispatcher.ledger.database import Database

log = structlog.get_logger("dispatcher.cleanup")


class Cleanup:
    """Every server runs it; rows that another one holds are skipped."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __call__(self) -> None:
        deleted = await delete_expired_rows(self._database)
        if deleted:
            log.info("expired idempotency keys deleted", rows=deleted)
