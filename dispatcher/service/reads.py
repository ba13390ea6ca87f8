"""Questions: what Postgres knows of trips, their history and the zones."""

from __future__ import annotations

import math
from typing import Any, Final

import orjson

from dispatcher.core.actors import Actor, Role
from dispatcher.core.drivers import AvailabilityStatus, Driver
from dispatcher.core.errors import Refusal
from dispatcher.core.times import iso, millis
from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zones
from dispatcher.ledger.database import Database, trip_from_row
from dispatcher.live.keys import keys_of
from dispatcher.live.offers import OfferScripts
from dispatcher.live.positions import PositionScripts
from dispatcher.service.authorities import Authorities
from dispatcher.service.commands.actions import zone_of_trip
from dispatcher.service.live_drivers import LiveDrivers

_MAX_ROWS: Final = 500
#: How far `pending_near` looks around a driver.
_NEAR_M: Final = 10_000.0
#: Mean length of a degree of latitude on the sphere of distance_m().
_METRES_PER_DEGREE: Final = 111_195.0
_EVERYWHERE: Final = {"west": -180.0, "east": 180.0, "south": -90.0, "north": 90.0}


class Reads:
    """Answers questions; changes nothing. All raise StoreUnavailable."""

    def __init__(
        self,
        *,
        zones: Zones,
        database: Database,
        drivers: LiveDrivers,
        offers: OfferScripts,
        positions: PositionScripts,
        authorities: Authorities,
    ) -> None:
        self._authorities = authorities
        self._zones = zones
        self._database = database
        self._drivers = drivers
        self._offers = offers
        self._positions = positions

    async def trip(self, actor: Actor, trip_id: str) -> Trip:
        """A trip of the actor's own; any trip for an admin. Raises Refusal trip_not_found."""
        zone_of_trip(self._zones, trip_id)
        trip = await self._database.trip(trip_id)
        owner = {
            Role.DRIVER: trip.driver_id if trip else None,
            Role.CUSTOMER: trip.customer_id if trip else None,
            Role.ADMIN: actor.user_id,
        }
        if trip is None or owner.get(actor.role) != actor.user_id:
            raise Refusal("trip_not_found")
        return trip

    async def timeline(self, trip_id: str) -> list[dict[str, Any]]:
        """The history of a trip, a row a version; its payload is what replaying it needs. Raises Refusal
        trip_not_found."""
        zone_of_trip(self._zones, trip_id)
        rows = await self._database.rows("timeline", trip_id=trip_id)
        if not rows:
            raise Refusal("trip_not_found")
        return [
            {
                **row,
                "payload": orjson.loads(row["payload"]),
                "created_at": iso(millis(row["created_at"])),
            }
            for row in rows
        ]

    async def offers(self, trip_id: str) -> list[dict[str, Any]]:
        """Who was asked for a trip, in that order, and what came of it.

        `score` says why a round of matching asked them: see dispatcher/matching/score.py.
        """
        rows = await self._database.rows("offers_of_trip", trip_id=trip_id, driver_id=None)
        return [offer_from_row(row) for row in rows]

    async def races(self, trip_id: str) -> list[dict[str, Any]]:
        """Who came too late to accept a trip, and when, in their order; `version` is that of the accept
        that won. They reach Postgres within some seconds of their time."""
        rows = await self._database.rows("races_of_trip", trip_id=trip_id, driver_id=None)
        return [{**row, "tried_at": iso(millis(row["tried_at"]))} for row in rows]

    async def abandoned(self, zone: str | None, older_than_s: int) -> list[dict[str, Any]]:
        """Trips that were taken longer ago than that and have not started, oldest first."""
        rows = await self._database.rows(
            "abandoned", zone=zone, older_than_s=float(older_than_s), max_rows=_MAX_ROWS
        )
        return [{**row, "locked_at": iso(millis(row["locked_at"]))} for row in rows]

    async def zone_statistics(self, zone: str) -> dict[str, Any]:
        """Live `trips` of a zone by state, and its `drivers`: those who are online, and of these who
        has a trip, is free, or unavailable. Raises Refusal invalid_zone."""
        if self._zones.get(zone) is None:
            raise Refusal("invalid_zone")
        rows = await self._database.rows("zone_statistics", zone=zone)
        drivers = await self._database.row("zone_driver_statistics", zone=zone)
        return {
            "zone": zone,
            "trips": {row["current_status"]: row["trips"] for row in rows},
            "drivers": dict(drivers),
        }

    async def pending_near(self, actor: Actor, limit: int) -> list[dict[str, Any]]:
        """The pending trips that the driver may accept now, nearest first, each with `distance_m`.

        They are of the driver's zone and vehicle type, within 10 km of their last fix, and neither
        declined nor given back by them. Where the zone lets drivers accept only what they are offered,
        they are the open offers, however far. Raises Refusal driver_not_online and
        driver_not_available, as an accept would be refused, and driver_not_online without a fix.
        """
        driver = await self._drivers.find(actor.user_id)
        if driver is None or not driver.is_online:
            raise Refusal("driver_not_online", "Go online and send a position first.")
        if driver.availability_status is not AvailabilityStatus.AVAILABLE or driver.trip_id:
            raise Refusal("driver_not_available")
        keys = keys_of(driver.zone)
        is_degraded = self._authorities.of(driver.zone).is_degraded
        position = (
            await self._saved_position(driver.user_id)
            if is_degraded
            else await self._positions.last_position(keys, driver.user_id)
        )
        if position is None:
            raise Refusal("driver_not_online", "Go online and send a position first.")
        lat, lng = position
        offered, box = None, _box_around(lat, lng)
        zone = self._zones.get(driver.zone)
        if zone is not None and zone.accept_policy == "offered":
            offered = await self._offered(driver, is_degraded=is_degraded)
            box = _EVERYWHERE
        rows = await self._database.rows(
            "pending_near",
            lat=lat, lng=lng, zone=driver.zone, vehicle_type=driver.vehicle_type,
            driver_id=driver.user_id, offered=offered, max_rows=limit, **box,
        )  # fmt: skip
        found = [
            {**trip_from_row(row).to_json(), "distance_m": round(row["distance_m"], 1)} for row in rows
        ]
        return sorted(found, key=lambda trip: trip["distance_m"])

    async def _saved_position(self, driver_id: str) -> tuple[float, float] | None:
        row = await self._database.row("position_of_driver", driver_id=driver_id)
        return (row["lat"], row["lng"]) if row else None

    async def _offered(self, driver: Driver, *, is_degraded: bool) -> list[str]:
        """The trips that the driver holds an open offer of."""
        if is_degraded:
            rows = await self._database.rows(
                "open_offers_of_driver", driver_id=driver.user_id, max_rows=_MAX_ROWS
            )
            return [row["id"] for row in rows]
        offers = await self._offers.read_offers(keys_of(driver.zone), driver.user_id)
        return [offer.trip_id for offer in offers]


def offer_from_row(row: Any) -> dict[str, Any]:
    """An offer as Postgres has it: its times in RFC 3339, its score (None: no round made it) decoded."""
    times = {name: iso(millis(row[name])) for name in ("offered_at", "deadline", "outcome_at")}
    return {**row, **times, "score": orjson.loads(row["score"]) if row["score"] else None}


def _box_around(lat: float, lng: float) -> dict[str, float]:
    """The box, in degrees, that holds the circle in which trips are near."""
    north = _NEAR_M / _METRES_PER_DEGREE
    east = north / max(0.01, math.cos(math.radians(lat)))
    return {"west": lng - east, "east": lng + east, "south": lat - north, "north": lat + north}
