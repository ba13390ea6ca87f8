"""Offers while a zone's Redis is away: from Postgres' rows, to drivers with a socket on this server.

There are no rounds: the trips that wait longest come first, each is shown to the nearest drivers who are
free, and again once its offers have ended. Trips do not expire meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from dispatcher.core.actors import Role, address_of
from dispatcher.core.drivers import Driver
from dispatcher.core.obstacles import Obstacle
from dispatcher.core.times import millis, moment
from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zone
from dispatcher.ledger.database import Database, Statements, trip_from_row
from dispatcher.live.inspection import FilterView
from dispatcher.observe.series import OFFERS
from dispatcher.service.filters_without_redis import filters_without_redis
from dispatcher.service.hub import Hub
from dispatcher.service.offer_log import OfferLog, OfferRow, insert_offers

#: Trips that are looked at in one run.
_MAX_TRIPS: Final = 100


class LedgerOffers:
    """Offers the pending trips of zones."""

    def __init__(self, *, database: Database, hub: Hub, offer_log: OfferLog, fix_age_s: int) -> None:
        self._database = database
        self._hub = hub
        self._offer_log = offer_log
        self._fix_age_s = fix_age_s
        # Offers by hand that are being saved, or whose save broke off, by trip and driver: no socket was
        # shown them.
        self._unshown: dict[tuple[str, str], OfferRow] = {}

    async def run(self, zones: Sequence[Zone]) -> int:
        """Makes the offers that are due in these zones. Returns how many. Raises StoreUnavailable."""
        prefix = address_of(Role.DRIVER, "")
        connected = [
            each.removeprefix(prefix) for each in self._hub.addresses() if each.startswith(prefix)
        ]
        if not (zones and connected):
            return 0
        by_name = {zone.name: zone for zone in zones}
        free: dict[str, list[str]] = defaultdict(list)
        for row in await self._database.rows(
            "drivers_to_offer", zones=list(by_name), connected=connected
        ):
            free[row["zone"]].append(row["user_id"])
        return sum([await self._offer(by_name[name], drivers) for name, drivers in free.items()])

    async def _offer(self, zone: Zone, connected: list[str]) -> int:
        widest = zone.waves[-1]
        rows = await self._database.rows(
            "offers_to_make",
            zone=zone.name, connected=connected, radius_m=widest.radius_m, size=widest.size,
            fix_age_s=float(self._fix_age_s), max_offers=zone.offers_per_driver, max_rows=_MAX_TRIPS,
        )  # fmt: skip
        if not rows:
            return 0
        # By Postgres' clock, which says when they are over.
        at_ms = millis(rows[0]["offered_at"]) or 0
        deadline_ms = at_ms + int(widest.deadline_s * 1000)
        held: dict[str, int] = defaultdict(int)
        offers = []
        for row in rows:
            driver_id = row["offered_driver"]
            if held[driver_id] + row["open_offers"] >= zone.offers_per_driver:
                continue  # this run has made some since
            held[driver_id] += 1
            offers.append((row, OfferRow(
                row["id"], driver_id, row["last_wave"] + 1, row["distance_m"], at_ms, deadline_ms,
            )))  # fmt: skip
        # First the rows: where a zone lets drivers accept only what they are offered, they are asked.
        # Not by the log, which would save later what nobody was shown.
        await insert_offers(self._database, [offer for _, offer in offers])
        for row, offer in offers:
            self._show(trip_from_row(row), offer, left_ms=deadline_ms - at_ms)
        OFFERS.add(zone.name, number=len(offers))
        await self._offer_log.save(self._database)
        return len(offers)

    async def offer_by_hand(
        self, zone: Zone, trip: Trip, driver: Driver, operator: str
    ) -> tuple[int, int] | list[FilterView]:
        """Offers a trip to the driver whom an operator has chosen, or returns what refuses them.

        Returns the offer's deadline and the time left, in ms; where one is open, that one's. Nothing
        refuses a driver whose trip was taken or offered by others since it was looked at: the list is
        empty. Whoever makes the offer shows it; a driver who is connected to another server hears of it
        with their next snapshot. Raises StoreUnavailable, also where the offer may be saved.
        """
        asked = trip.id, driver.user_id
        async with self._database.offering_by_hand(driver.user_id) as statements:
            row = await statements.row(
                "offer_to_driver",
                trip_id=trip.id, driver_id=driver.user_id, fix_age_s=float(self._fix_age_s),
            )  # fmt: skip
            if row is None:
                return []
            at_ms = millis(row["offered_at"]) or 0
            deadline_ms = millis(row["open_until"])
            if deadline_ms is None:
                views = _filters_by_hand(zone, trip, driver, row)
                if refusing := [view for view in views if view.passes is False]:
                    return refusing
                deadline_ms = at_ms + int(zone.waves[-1].deadline_s * 1000)
                offer = OfferRow(
                    trip.id, driver.user_id, row["last_wave"] + 1, row["distance_m"], at_ms,
                    deadline_ms, offered_by=operator,
                )  # fmt: skip
                if not await self._add(statements, offer):
                    return []
        # Saved by this call, or by one before that was not told so: whoever is first shows it.
        unshown = self._unshown.pop(asked, None)
        if unshown is not None and unshown.deadline_ms == deadline_ms:
            self._show(trip, unshown, left_ms=deadline_ms - at_ms)
            OFFERS.add(zone.name)
        return deadline_ms, deadline_ms - at_ms

    async def _add(self, statements: Statements, offer: OfferRow) -> bool:
        for asked, other in list(self._unshown.items()):
            if other.deadline_ms < offer.offered_ms:
                del self._unshown[asked]
        self._unshown[offer.trip_id, offer.driver_id] = offer
        return bool(await statements.execute(
            "add_offer",
            trip_id=offer.trip_id, driver_id=offer.driver_id, wave=offer.wave,
            distance_m=offer.distance_m, offered_at=moment(offer.offered_ms),
            deadline=moment(offer.deadline_ms), operator=offer.offered_by,
        ))  # fmt: skip

    def _show(self, trip: Trip, offer: OfferRow, left_ms: int) -> None:
        frame = {
            "type": "offer",
            "trip": trip.to_json(),
            "wave": offer.wave,
            "distance_m": round(offer.distance_m, 1),
            "deadline_ms": offer.deadline_ms,
            "expires_in_ms": left_ms,
        }
        self._hub.deliver([address_of(Role.DRIVER, offer.driver_id)], frame)


def _filters_by_hand(zone: Zone, trip: Trip, driver: Driver, row: Any) -> list[FilterView]:
    """What an offer by hand asks of the driver, of what Postgres knows."""
    has_position, held, most = row["has_position"], row["open_offers"], zone.offers_per_driver
    return [
        *filters_without_redis(trip, driver),
        FilterView(Obstacle.NO_POSITION, has_position, "no position is known"),
        FilterView(
            Obstacle.STALE_POSITION, row["is_fresh"] or not has_position, "the last position is old"
        ),
        FilterView(Obstacle.BARRED, not row["is_barred"], "declined the trip, or gave it back"),
        FilterView(Obstacle.ENOUGH_OFFERS, held < most, f"{held} open offers of {most}"),
    ]
