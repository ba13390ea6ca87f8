"""Deletes idempotency rows that have expired: every few minutes, in batches."""

from __future__ import annotations

import structlog

from dispatcher.ledger.cleanup import delete_expired_rows
from dispatcher.ledger.database import Database

log = structlog.get_logger("dispatcher.cleanup")


class Cleanup:
    """Every server runs it; rows that another one holds are skipped."""

    name = "cleanup"

    def __init__(self, database: Database, *, interval_s: float) -> None:
        self.interval_s = interval_s
        self._database = database

    async def run(self) -> None:
        deleted = await delete_expired_rows(self._database)
        if deleted:
            log.info("expired idempotency keys deleted", rows=deleted)
