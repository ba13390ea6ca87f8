"""What a user needs to know after a reconnect: nothing that happened meanwhile is missed."""

from __future__ import annotations

from typing import Any, Final

from dispatcher.core.actors import Actor, Role
from dispatcher.core.drivers import Driver
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
        driver = await self._driver(keys, driver_id)
        trip = await self._state.read_trip(keys, driver.trip_id) if driver.trip_id else None
        offers = []
        for offer in await self._offers.read_offers(keys, driver_id):
            offered = await self._state.read_trip(keys, offer.trip_id)
            if offered is not None:
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

    async def _driver(self, keys: Keys, driver_id: str) -> Driver:
        driver = await self._state.read_driver(keys, driver_id)
        if driver is None:
            await self._rehydration.warm(keys.zone)
            await self._rehydration.reload_driver(keys, driver_id)
            driver = await self._state.read_driver(keys, driver_id)
        return driver or driver_from_hash(driver_id, keys.zone, {})
