"""What a user needs to know after a reconnect: nothing that happened meanwhile is missed."""

from __future__ import annotations

from typing import Any

from dispatcher.core.actors import Actor, Role
from dispatcher.core.drivers import Driver
from dispatcher.core.trips import Trip
from dispatcher.ledger.database import Database, trip_from_row
from dispatcher.live.keys import keys_of
from dispatcher.live.scripts import Scripts, driver_from_hash, flat_to_dict
from dispatcher.service.driver_directory import Homes
from dispatcher.service.rehydration import Picture

_MOST_TRIPS = 50


class Snapshots:
    """Reads the live state of a user."""

    def __init__(self, *, scripts: Scripts, picture: Picture, database: Database, homes: Homes) -> None:
        self._scripts = scripts
        self._picture = picture
        self._database = database
        self._homes = homes

    async def of(self, actor: Actor) -> dict[str, Any]:
        """`driver`, `trip` and open `offers` of a driver; live `trips` of a customer."""
        if actor.role is Role.DRIVER:
            return await self._of_driver(actor.user_id)
        if actor.role is Role.CUSTOMER:
            rows = await self._database.rows(
                "live_trips_of_customer", customer_id=actor.user_id, most=_MOST_TRIPS
            )
            return {"trips": [trip_from_row(row).to_json() for row in rows]}
        return {}

    async def _of_driver(self, driver_id: str) -> dict[str, Any]:
        home = await self._homes.of(driver_id)
        if home is None:
            return {"driver": None, "trip": None, "offers": []}
        keys = keys_of(home[0])
        state = await self._scripts.read_driver(keys, driver_id)
        if not state:
            await self._picture.warm(home[0])
            await self._picture.load_driver(keys, driver_id)
            state = await self._scripts.read_driver(keys, driver_id)
        driver: Driver = driver_from_hash(driver_id, home[0], state)
        trip = await self._trip(home[0], driver.trip_id) if driver.trip_id else None
        offers = []
        for trip_id, deadline_ms, left_ms in await self._scripts.read_offers(keys, driver_id):
            offered = await self._trip(home[0], trip_id)
            if offered is not None:
                offers.append(
                    {
                        "trip": offered.to_json(),
                        "deadline_ms": deadline_ms,
                        "expires_in_ms": left_ms,
                    }
                )
        return {
            "driver": driver.to_json(),
            "trip": trip.to_json() if trip else None,
            "offers": offers,
        }

    async def _trip(self, zone: str, trip_id: str) -> Trip | None:
        hash_ = flat_to_dict(await self._scripts.read_trip(keys_of(zone), trip_id))
        return Trip.from_hash(hash_) if hash_.get("id") else None
