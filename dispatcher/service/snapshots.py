"""What a user needs to know after a reconnect: nothing that happened meanwhile is missed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from dispatcher.core.actors import Actor, Role
from dispatcher.core.drivers import Driver
from dispatcher.core.trips import ACTIVE, Status, Trip
from dispatcher.ledger.database import Database, trip_from_row
from dispatcher.live.hashes import driver_from_hash
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.offers import OfferScripts
from dispatcher.live.state import StateScripts
from dispatcher.service.driver_directory import DriverDirectory
from dispatcher.service.rehydration import Rehydration

_MAX_TRIPS: Final = 50


class Snapshots:
    """Reads the live state of a user."""

    def __init__(
        self,
        *,
        state: StateScripts,
        offers: OfferScripts,
        rehydration: Rehydration,
        database: Database,
        directory: DriverDirectory,
    ) -> None:
        self._state = state
        self._offers = offers
        self._rehydration = rehydration
        self._database = database
        self._directory = directory

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
        entry = await self._directory.find(driver_id)
        if entry is None:
            return {"driver": None, "trip": None, "offers": []}
        keys = keys_of(entry.zone)
        driver, trip = await self._driver(keys, driver_id)
        if driver.trip_id and not _holds(driver_id, trip):
            # Redis has missed how that trip ended: Postgres knows.
            await self._rehydration.reload_driver(keys, driver_id)
            driver, trip = await self._driver(keys, driver_id)
            if not _holds(driver_id, trip):
                driver, trip = replace(driver, trip_id=None), None
        offers = []
        for offer in await self._offers.read_offers(keys, driver_id):
            offered = await self._state.read_trip(keys, offer.trip_id)
            if offered is not None and offered.current_status is Status.PENDING:
                offers.append(
                    {
                        "trip": offered.to_json(),
                        "deadline_ms": offer.deadline_ms,
                        "expires_in_ms": offer.left_ms,
                    }
                )
        return {
            "driver": driver.to_json(),
            "trip": trip.to_json() if trip else None,
            "offers": offers,
        }

    async def _driver(self, keys: Keys, driver_id: str) -> tuple[Driver, Trip | None]:
        driver = await self._state.read_driver(keys, driver_id)
        if driver is None:
            await self._rehydration.warm(keys.zone)
            await self._rehydration.reload_driver(keys, driver_id)
            driver = await self._state.read_driver(keys, driver_id)
        driver = driver or driver_from_hash(driver_id, keys.zone, {})
        trip = await self._state.read_trip(keys, driver.trip_id) if driver.trip_id else None
        return driver, trip


def _holds(driver_id: str, trip: Trip | None) -> bool:
    """Whether the trip is the driver's, and not over."""
    return trip is not None and trip.driver_id == driver_id and trip.current_status in ACTIVE
