"""Brings what may lag a little to Postgres, in batches: last positions, offers, their outcomes."""

from __future__ import annotations

from dispatcher.ledger.database import Database
from dispatcher.service.offer_log import OfferLog
from dispatcher.service.positions import Positions


class Recorder:
    """Saves what this server has gathered since the last time."""

    def __init__(self, positions: Positions, rows: OfferLog, database: Database) -> None:
        self._positions = positions
        self._rows = rows
        self._database = database

    async def __call__(self) -> None:
        await self._rows.save(self._database)
        await self._positions.save()
