"""An operator offers a pending trip to one driver: a wave of one, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson
import structlog

from dispatcher.core.callers import Caller
from dispatcher.core.drivers import Driver
from dispatcher.core.errors import Refusal
from dispatcher.core.limits import LimitClass
from dispatcher.core.times import iso
from dispatcher.core.trips import Status, Trip
from dispatcher.core.zones import Zone, Zones
from dispatcher.ledger.database import Database
from dispatcher.live.inspection import FilterView
from dispatcher.live.keys import keys_of
from dispatcher.live.offers import Candidate, OfferScripts, WaveCode
from dispatcher.live.positions import PositionScripts
from dispatcher.service.answers import Answer, refusal_answer
from dispatcher.service.authorities import Authorities
from dispatcher.service.commands.actions import zone_of_trip
from dispatcher.service.explanation import Explanation
from dispatcher.service.ledger_offers import LedgerOffers
from dispatcher.service.offers import Offers
from dispatcher.service.rate_limits import RateLimits

log = structlog.get_logger("dispatcher.offers")

#: Refusals of their own of filters that apps know already; for any other it is driver_not_eligible.
_CODES: Final = {
    "offline": "driver_not_online",
    "unavailable": "driver_not_available",
    "active_trip": "driver_not_available",
}


class OperatorOffers:
    """Makes offers by hand."""

    def __init__(
        self,
        *,
        zones: Zones,
        offers: Offers,
        ledger_offers: LedgerOffers,
        scripts: OfferScripts,
        positions: PositionScripts,
        explanation: Explanation,
        database: Database,
        limits: RateLimits,
        authorities: Authorities,
    ) -> None:
        self._zones = zones
        self._offers = offers
        self._ledger_offers = ledger_offers
        self._authorities = authorities
        self._scripts = scripts
        self._positions = positions
        self._explanation = explanation
        self._database = database
        self._limits = limits

    async def offer(self, caller: Caller, trip_id: str, driver_id: str) -> Answer:
        """Offers a trip to a driver, wherever they are and also where they let it pass before; asked
        again while that offer is open, it is the same offer. The row of the offer says who made it.

        Answers 200, 404 trip_not_found and driver_not_found, 409 trip_already_assigned,
        trip_not_pending, driver_not_online, driver_not_available, driver_not_eligible, trip_busy.
        Raises Refusal trip_not_found, RateLimited, StoreUnavailable.
        """
        zone = zone_of_trip(self._zones, trip_id)
        limit = await self._limits.count(LimitClass.GENERAL, caller.actor, caller.ip)
        try:
            trip, driver = await self._pending(trip_id), await self._driver(zone, driver_id)
            operator, authority = caller.actor.user_id, self._authorities.of(zone.name)
            try:
                offer = await self._authorities.ask_redis(
                    zone.name, lambda: self._offer_by_redis(zone, trip, driver, operator)
                )
            except Refusal:
                if await self._authorities.still_has_redis(zone.name, authority):
                    raise
                offer = None
            if offer is None:
                offer = await self._offer_by_postgres(zone, trip, driver, operator)
        except Refusal as refusal:
            return refusal_answer(refusal, limit)
        body = {"response_code": "trip_offered", "trip": trip.to_json(), "offer": offer}
        return Answer(200, orjson.dumps(body), limit)

    async def _offer_by_redis(
        self, zone: Zone, trip: Trip, driver: Driver, operator: str
    ) -> dict[str, Any]:
        open_offer = await self._open_offer(trip, driver)
        if open_offer is not None:
            return open_offer
        # The offer itself decides; this says what it would be refused for.
        _refuse(await self._explanation.refusing(zone, trip, driver.user_id))
        return await self._make(zone, trip, driver, operator)

    async def _offer_by_postgres(
        self, zone: Zone, trip: Trip, driver: Driver, operator: str
    ) -> dict[str, Any]:
        made = await self._ledger_offers.offer_by_hand(zone, trip, driver, operator)
        if isinstance(made, list):
            _refuse(made)
            raise Refusal("trip_busy", retry_after=1)
        deadline_ms, left_ms = made
        _log_offer(trip, driver, operator)
        return _offer_json(driver.user_id, deadline_ms, left_ms)

    async def _pending(self, trip_id: str) -> Trip:
        trip = await self._database.trip(trip_id)
        if trip is None:
            raise Refusal("trip_not_found")
        if trip.current_status is not Status.PENDING:
            code = "trip_already_assigned" if trip.driver_id else "trip_not_pending"
            raise Refusal(code, version=trip.version, current_status=trip.current_status)
        return trip

    async def _driver(self, zone: Zone, driver_id: str) -> Driver:
        driver = await self._database.driver(driver_id)
        if driver is None:
            raise Refusal("driver_not_found")
        if driver.zone != zone.name:
            raise Refusal("driver_not_online")
        return driver

    async def _open_offer(self, trip: Trip, driver: Driver) -> dict[str, Any] | None:
        for offer in await self._scripts.read_offers(keys_of(trip.zone), driver.user_id):
            if offer.trip_id == trip.id:
                return _offer_json(driver.user_id, offer.deadline_ms, offer.left_ms)
        return None

    async def _make(self, zone: Zone, trip: Trip, driver: Driver, operator: str) -> dict[str, Any]:
        keys = keys_of(zone.name)
        position = await self._positions.last_position(keys, driver.user_id)
        if position is None:  # they have left meanwhile
            raise Refusal("driver_not_online")
        row = await self._database.row(
            "distance_to_pickup", trip_id=trip.id, lat=position[0], lng=position[1]
        )
        candidate = Candidate(driver.user_id, row["distance_m"])
        made = await self._offers.offer_by_hand(zone, trip.id, candidate, operator)
        if made is None or made.code is not WaveCode.OFFERED:
            # Taken, ended or busy with a change since it was looked at.
            raise Refusal("trip_busy", retry_after=1)
        _log_offer(trip, driver, operator)
        return _offer_json(driver.user_id, made.deadline_ms, made.deadline_ms - made.now_ms)


def _refuse(refusing: Sequence[FilterView]) -> None:
    """Raises Refusal where a filter refuses the driver."""
    if refusing:
        names = [view.name for view in refusing]
        text = "No offer: " + "; ".join(view.saw for view in refusing) + "."
        raise Refusal(_CODES.get(names[0], "driver_not_eligible"), text, filters=names)


def _log_offer(trip: Trip, driver: Driver, operator: str) -> None:
    log.info("Trip offered by an operator", trip_id=trip.id, driver_id=driver.user_id, operator=operator)


def _offer_json(driver_id: str, deadline_ms: int, left_ms: int) -> dict[str, Any]:
    return {"driver_id": driver_id, "deadline": iso(deadline_ms), "expires_in_ms": left_ms}
