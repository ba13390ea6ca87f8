"""Brings what may lag a little to Postgres, in batches: last positions, places in queues, offers and
their outcomes, races that were lost."""

from __future__ import annotations

import asyncio

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.ledger.database import Database
from dispatcher.service.offer_log import OfferLog
from dispatcher.service.positions import Positions
from dispatcher.service.queue_log import QueueLog
from dispatcher.service.race_log import RaceLog

log = structlog.get_logger("dispatcher.flush")


class Flush:
    """Saves what this server has gathered since the last time.

    Positions, places, offers and races are saved apart: what stops one of them stops no other.
    """

    name = "flush"

    def __init__(
        self,
        *,
        positions: Positions,
        queue_log: QueueLog,
        offer_log: OfferLog,
        race_log: RaceLog,
        database: Database,
        interval_s: float,
    ) -> None:
        self.interval_s = interval_s
        self._positions = positions
        self._queue_log = queue_log
        self._offer_log = offer_log
        self._race_log = race_log
        self._database = database

    async def run(self) -> None:
        ended = await asyncio.gather(
            self._positions.save(),
            self._queue_log.save(),
            self._offer_log.save(self._database),
            self._race_log.save(self._database),
            return_exceptions=True,
        )
        failures = [end for end in ended if isinstance(end, BaseException)]
        # An engine that is away puts the job off; a fault of ours is told with its traceback.
        failures.sort(key=lambda failure: isinstance(failure, StoreUnavailable))
        for failure in failures[1:]:
            log.warning("not all is saved", reason=repr(failure))
        if failures:
            raise failures[0]
