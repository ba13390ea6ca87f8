"""What is so now for a user: after a reconnect, nothing that happened meanwhile is missed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from dispatcher.core.actors import Actor, Role
from dispatcher.core.drivers import Driver
from dispatcher.core.times import millis, now_ms
from dispatcher.core.trips import ACTIVE, Status, Trip
from dispatcher.core.zones import DEFAULT_ZONE
from dispatcher.ledger.database import Database, trip_from_row
from dispatcher.live.keys import keys_of
from dispatcher.live.offers import OfferScripts
from dispatcher.live.positions import PositionScripts
from dispatcher.live.state import StateScripts
from dispatcher.service.authorities import Authorities
from dispatcher.service.live_drivers import LiveDrivers
from dispatcher.service.pages import Place, next_place
from dispatcher.service.queues import Queues

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
        positions: PositionScripts,
        database: Database,
        drivers: LiveDrivers,
        queues: Queues,
        authorities: Authorities,
        fix_age_s: int,
    ) -> None:
        self._queues = queues
        self._authorities = authorities
        self._state = state
        self._offers = offers
        self._positions = positions
        self._fix_age_ms = fix_age_s * 1000
        self._database = database
        self._drivers = drivers

    async def of(self, actor: Actor) -> dict[str, Any]:
        """`driver`, `trip`, open `offers` and place in a `queue` of a driver; `trips` of a customer.

        Raises StoreUnavailable.
        """
        if actor.role is Role.DRIVER:
            return await self._of_driver(actor.user_id, await self._drivers.find(actor.user_id))
        if actor.role is Role.CUSTOMER:
            page = await self.rides(actor, None, _MAX_TRIPS)
            return {"trips": page["trips"]}
        return {}

    async def rides(self, actor: Actor, after: str | None, limit: int) -> dict[str, Any]:
        """A page of the live trips of a customer, the newest first. Raises StoreUnavailable."""
        start = Place.latest(after)
        rows = await self._database.rows(
            "live_trips_of_customer", customer_id=actor.user_id, before=start.moment,
            before_id=start.id, max_rows=limit,
        )  # fmt: skip
        return {
            "trips": [trip_from_row(row).to_json() for row in rows],
            "next": next_place(rows, limit, time="created_at", id_="id"),
        }

    async def driver_state(self, actor: Actor) -> dict[str, Any]:
        """A driver's snapshot, and `keeps_offers_away`: what does, of what they can see and change.

        Raises StoreUnavailable.
        """
        driver = await self._drivers.find(actor.user_id)
        snapshot = await self._of_driver(actor.user_id, driver)
        if driver is None:
            driver = Driver(actor.user_id, DEFAULT_ZONE)
        driver = replace(driver, trip_id=snapshot["trip"] and snapshot["trip"]["id"])
        fix_ms = await self._last_fix_ms(driver)
        fix_age_ms = None if fix_ms is None else now_ms() - fix_ms
        return {**snapshot, "keeps_offers_away": driver.obstacles(fix_age_ms, self._fix_age_ms)}

    async def _last_fix_ms(self, driver: Driver) -> int | None:
        if self._authorities.of(driver.zone).is_degraded:
            row = await self._database.row("position_of_driver", driver_id=driver.user_id)
            return millis(row["location_updated_at"]) if row else None
        return await self._positions.last_fix_ms(keys_of(driver.zone), driver.user_id)

    async def _of_driver(self, driver_id: str, driver: Driver | None) -> dict[str, Any]:
        if driver is None:
            return {"driver": None, "trip": None, "offers": [], "queue": None}
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
            "queue": await self._place_in_queue(driver),
        }

    async def _place_in_queue(self, driver: Driver) -> dict[str, Any] | None:
        if self._authorities.of(driver.zone).is_degraded:
            return None  # trips go to the nearest; the place comes back with Redis
        return await self._queues.place_of(driver)

    async def _trip_of(self, driver: Driver) -> Trip | None:
        """The driver's trip, if it is theirs and not over."""
        if driver.trip_id is None:
            return None
        if self._authorities.of(driver.zone).is_degraded:
            return await self._database.trip(driver.trip_id)
        trip = await self._state.read_trip(keys_of(driver.zone), driver.trip_id)
        is_held = trip and trip.driver_id == driver.user_id and trip.current_status in ACTIVE
        return trip if is_held else None

    async def _offers_of(self, driver: Driver) -> list[dict[str, Any]]:
        if self._authorities.of(driver.zone).is_degraded:
            return await self._offers_by_ledger(driver)
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

    async def _offers_by_ledger(self, driver: Driver) -> list[dict[str, Any]]:
        rows = await self._database.rows(
            "open_offers_of_driver", driver_id=driver.user_id, max_rows=_MAX_TRIPS
        )
        now = now_ms()
        return [
            {
                "trip": trip_from_row(row).to_json(),
                "deadline_ms": (deadline := millis(row["deadline"]) or now),
                "expires_in_ms": max(0, deadline - now),
            }
            for row in rows
        ]
