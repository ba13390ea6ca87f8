"""What came of offers, gathered for Postgres."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.times import moment
from dispatcher.ledger.database import Database

_OFFER_COLUMNS: Final = ("trips", "drivers", "waves", "distances", "offered", "deadlines")


@dataclass(slots=True)
class OfferLog:
    """Rows of `trip_offers` that Postgres has not seen. Outcomes wait for a round, so that the
    offer they belong to, which another server may have made, is there before them."""

    offers: list[tuple[str, str, int, float, int, int]] = field(default_factory=list)
    fresh: list[tuple[str, str, str, int]] = field(default_factory=list)
    ripe: list[tuple[str, str, str, int]] = field(default_factory=list)

    def outcome(self, trip_id: str, drivers: Iterable[str], outcome: str, at_ms: int) -> None:
        """What became of a trip's offers to these drivers."""
        self.fresh += [(trip_id, driver, outcome, at_ms) for driver in drivers]

    async def save(self, database: Database) -> None:
        """Writes what has come together, in two statements."""
        offers, self.offers = self.offers, []
        ripe, self.ripe, self.fresh = self.ripe, self.fresh, []
        try:
            if offers:
                columns = [list(column) for column in zip(*offers, strict=True)]
                columns[4] = [moment(at) for at in columns[4]]
                columns[5] = [moment(at) for at in columns[5]]
                arguments = dict(zip(_OFFER_COLUMNS, columns, strict=True))
                await database.execute("save_offers", **arguments)
                offers = []
            if ripe:
                await database.execute(
                    "save_outcomes",
                    trips=[row[0] for row in ripe],
                    drivers=[row[1] for row in ripe],
                    outcomes=[row[2] for row in ripe],
                    ats=[moment(row[3]) for row in ripe],
                )
        except StoreUnavailable:
            self.offers, self.ripe = offers + self.offers, ripe + self.ripe
            raise
