"""What came of offers, gathered for Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

import structlog

from dispatcher.core.times import moment, now_ms
from dispatcher.ledger.database import Database
from dispatcher.observe.series import OFFER_OUTCOMES_SEEN

#: How long an outcome waits for its offer. An offer that is saved later is closed by the trip's history,
#: a minute after its deadline (`close_overdue_offers`).
_WAITS_MS: Final = 60_000
#: Rows of each kind that wait at most while Postgres is away, some minutes of a large city. The newest
#: are kept. Trips, drivers and events are none of them.
_MAX_ROWS: Final = 100_000
#: Rows in one statement: some 50 ms of Postgres' time.
_ROWS_AT_ONCE: Final = 5_000

log = structlog.get_logger("dispatcher.offers")


class OfferOutcome(StrEnum):
    """`trip_offers.outcome`, once the offer is not open any more."""

    ACCEPTED = "accepted"
    DECLINED = "declined"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


class OfferRow(NamedTuple):
    """One trip shown to one driver; times in ms since the epoch. `score` is JSON: why a round of
    matching asked this driver."""

    trip_id: str
    driver_id: str
    wave: int
    distance_m: float
    offered_ms: int
    deadline_ms: int
    score: str | None = None
    #: The operator who made the offer by hand.
    offered_by: str | None = None


class OutcomeRow(NamedTuple):
    """What became of a trip's offer to a driver, and when, in ms since the epoch."""

    trip_id: str
    driver_id: str
    outcome: OfferOutcome
    at_ms: int


class OfferLog:
    """Rows of `trip_offers` that Postgres has not seen. An outcome waits for one more round, so that
    the offer it belongs to, which another server may have made, is there before it; and longer where
    it is not.

    Times are those of the zone's Redis, so that an outcome of one server and an offer of another are in
    order. While Redis is away, they are the servers' own.
    """

    def __init__(self) -> None:
        self._offers: list[OfferRow] = []
        self._new_outcomes: list[OutcomeRow] = []
        self._due_outcomes: list[OutcomeRow] = []
        # One save at a time: it takes the rows away while Postgres is asked, and puts back what is left,
        # also where its caller's time was over. To save a row once more changes nothing.
        self._saving = asyncio.Lock()

    def add_offers(self, offers: Iterable[OfferRow]) -> None:
        """Offers that went out."""
        self._offers += offers
        _keep_newest(self._offers, "offers")

    async def save_offers(self, database: Database) -> None:
        """Writes the offers at once, so that they are durable; also those that another save had begun
        with. What Postgres could not take is kept. Raises StoreUnavailable."""
        async with self._saving:
            await self._save_offers(database)

    async def _save_offers(self, database: Database) -> None:
        offers, self._offers = self._offers, []
        saved = 0
        try:
            while saved < len(offers):
                rows = offers[saved : saved + _ROWS_AT_ONCE]
                await insert_offers(database, rows)
                saved += len(rows)
        finally:
            self._offers = offers[saved:] + self._offers
            _keep_newest(self._offers, "offers")

    def record(self, trip_id: str, drivers: Iterable[str], outcome: OfferOutcome, at_ms: int) -> None:
        """What became of a trip's offers to these drivers."""
        rows = [OutcomeRow(trip_id, driver, outcome, at_ms) for driver in drivers]
        self._new_outcomes += rows
        _keep_newest(self._new_outcomes, "outcomes")
        OFFER_OUTCOMES_SEEN.numbers[(outcome,)] += len(rows)

    def record_withdrawn(self, driver_id: str, trip_ids: Sequence[str], at_ms: int) -> None:
        """The driver is not free any more: their offers of these trips have ended."""
        for trip_id in trip_ids:
            self.record(trip_id, [driver_id], OfferOutcome.WITHDRAWN, at_ms)

    def unsaved(self) -> dict[str, int]:
        """How many rows wait for Postgres."""
        outcomes = len(self._new_outcomes) + len(self._due_outcomes)
        return {"offers": len(self._offers), "outcomes": outcomes}

    async def save(self, database: Database) -> None:
        """Writes what has come together. What Postgres could not take is kept for the next time. Raises
        StoreUnavailable."""
        async with self._saving:
            due, self._due_outcomes, self._new_outcomes = self._due_outcomes, self._new_outcomes, []
            saved = 0
            without_offer: list[OutcomeRow] = []
            try:
                await self._save_offers(database)
                while saved < len(due):
                    rows = due[saved : saved + _ROWS_AT_ONCE]
                    without_offer.extend(await _save_outcomes(database, rows))
                    saved += len(rows)
            finally:
                self._due_outcomes = without_offer + due[saved:] + self._due_outcomes
                _keep_newest(self._due_outcomes, "outcomes")


def _keep_newest(rows: list[Any], kind: str) -> None:
    if len(rows) > _MAX_ROWS:
        # Some more than has to go, so that it is seldom done.
        dropped = len(rows) - _MAX_ROWS * 9 // 10
        del rows[:dropped]
        log.warning("rows for postgres are dropped", kind=kind, rows=dropped)


async def insert_offers(database: Database, offers: Sequence[OfferRow]) -> None:
    """Writes these offers in one statement. Raises StoreUnavailable."""
    await database.execute(
        "save_offers",
        trips=[offer.trip_id for offer in offers],
        drivers=[offer.driver_id for offer in offers],
        waves=[offer.wave for offer in offers],
        distances=[offer.distance_m for offer in offers],
        offered=[moment(offer.offered_ms) for offer in offers],
        deadlines=[moment(offer.deadline_ms) for offer in offers],
        scores=[offer.score for offer in offers],
        operators=[offer.offered_by for offer in offers],
    )


async def _save_outcomes(database: Database, outcomes: Sequence[OutcomeRow]) -> list[OutcomeRow]:
    """Those whose offer is not there, and may yet come."""
    without_offer = await database.rows(
        "save_outcomes",
        trips=[row.trip_id for row in outcomes],
        drivers=[row.driver_id for row in outcomes],
        outcomes=[row.outcome for row in outcomes],
        ats=[moment(row.at_ms) for row in outcomes],
    )
    oldest_ms = now_ms() - _WAITS_MS
    waiting = [outcomes[row["place"] - 1] for row in without_offer]
    return [row for row in waiting if row.at_ms > oldest_ms]
