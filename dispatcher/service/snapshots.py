"""What a user needs to know after a reconnect: nothing that happened meanwhile is missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from dispatcher.core.actors import Actor, Role
from dispatcher.core.drivers import Driver
from dispatcher.core.trips import ACTIVE, Status, Trip
from dispatcher.ledger.database import Database, trip_from_row
from dispatcher.live.keys import keys_of
from dispatcher.live.offers import OfferScripts
from dispatcher.live.state import StateScripts
from dispatcher.service.live_drivers import LiveDrivers

_MAX_TRIPS: Final = 50


def zones_of(snapshot: Mapping[str, Any]) -> set[str]:
    """The zones that a user's live state is in."""
    parts = [snapshot.get("driver"), snapshot.get("trip"), *snapshot.get("trips", ())]
    return {part["zone"] for part in parts if part is not None}


class Snapshots:
    """Reads the live state of a user."""

    def __init__(
        self,
        *,
        state: StateScripts,
        offers: OfferScripts,
        database: Database,
        drivers: LiveDrivers,
    ) -> None:
        self._state = state
        self._offers = offers
        self._database = database
        self._drivers = drivers

    async def of(self, actor: Actor) -> dict[str, Any]:
        """`driver`, `trip` and open `offers` of a driver; live `trips` of a customer.

        Raises StoreUnavailable.
        """
        if actor.role is Role.DRIVER:
            return await self._of_driver(actor.user_id)
        if actor.role is Role.CUSTOMER:
            rows = await self._database.rows(
                "live_trips_of_customer", customer_id=actor.user_id, max_rows=_MAX_TRIPS
            )
            return {"trips": [trip_from_row(row).to_json() for row in rows]}
        return {}

    async def _of_driver(self, driver_id: str) -> dict[str, Any]:
        driver = await self._drivers.find(driver_id)
        if driver is None:
            return {"driver": None, "trip": None, "offers": []}
        trip = await self._trip_of(driver)
        if driver.trip_id and trip is None:
            # Redis has missed how that trip ended: Postgres knows.
            driver = await self._drivers.reload(driver_id, driver.zone) or driver
            trip = await self._trip_of(driver)
            if trip is None:
                driver = replace(driver, trip_id=None)
        return {
            "driver": driver.to_json(),
            "trip": trip.to_json() if trip else None,
            "offers": await self._offers_of(driver),
        }

    async def _trip_of(self, driver: Driver) -> Trip | None:
        """The driver's trip, if it is theirs and not over."""
        if driver.trip_id is None:
            return None
        trip = await self._state.read_trip(keys_of(driver.zone), driver.trip_id)
        is_held = trip and trip.driver_id == driver.user_id and trip.current_status in ACTIVE
        return trip if is_held else None

    async def _offers_of(self, driver: Driver) -> list[dict[str, Any]]:
        keys, offers = keys_of(driver.zone), []
        for offer in await self._offers.read_offers(keys, driver.user_id):
            offered = await self._state.read_trip(keys, offer.trip_id)
            if offered is not None and offered.current_status is Status.PENDING:
                offers.append(
                    {
                        "trip": offered.to_json(),
                        "deadline_ms": offer.deadline_ms,
                        "expires_in_ms": offer.left_ms,
                    }
                )
        return offers
