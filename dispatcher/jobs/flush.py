"""Brings what may lag a little to Postgres, in batches: last positions, offers, their outcomes."""

from __future__ import annotations

from dispatcher.ledger.database import Database
from dispatcher.service.offer_log import OfferLog
from dispatcher.service.positions import Positions


class Flush:
    """Saves what this server has gathered since the last time."""

    name = "flush"

    def __init__(
        self, *, positions: Positions, offer_log: OfferLog, database: Database, interval_s: float
    ) -> None:
        self.interval_s = interval_s
        self._positions = positions
        self._offer_log = offer_log
        self._database = database

    async def run(self) -> None:
        await self._offer_log.save(self._database)
        await self._positions.save()
