"""Trips that need not wait for a round of matching, since there are drivers enough where they are.

Asked only of trips of a vehicle type of which drivers are scarce somewhere in the zone, or of some trips
whose drivers hold offers of others. What is compared is compared in a thread.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zone
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.matching import DriverPlace, MatchScripts, TripInWaiting
from dispatcher.matching.circles import Circle
from dispatcher.matching.looks import longest_wait_ms, widest_reach_m
from dispatcher.matching.model import Place, TripPlace
from dispatcher.matching.scarcity import enough_around
from dispatcher.service.drivers_around import drivers_around

if TYPE_CHECKING:
    from dispatcher.matching.plenty import Supply

#: Trips without a driver that are compared; a zone that has more of them has no trip well served.
_MOST_TRIPS: Final = 2_000
#: Trips that are remembered, of all zones.
_MOST_KNOWN: Final = 10_000


class WellServed:
    """Finds them. Where a trip begins never changes: each is read once, while it waits."""

    def __init__(self, scripts: MatchScripts) -> None:
        self._scripts = scripts
        self._known: dict[str, dict[str, TripPlace]] = {}

    async def of(self, zone: Zone, asking: Mapping[str, TripInWaiting]) -> set[str]:
        """Which of these trips have free drivers enough in their reach, for all trips without a driver
        that reach any of the same drivers. Raises StoreUnavailable."""
        if not asking:
            return set()
        keys = keys_of(zone.name)
        ids = await self._scripts.waiting_ids(keys, _MOST_TRIPS + 1)
        waiting = await self._waiting(zone, keys, ids, asking)
        if len(waiting) > _MOST_TRIPS:
            return set()
        trips = [waiting[trip_id] for trip_id in asking if trip_id in waiting]
        amounts = Counter(trip.vehicle_type for trip in waiting.values())
        each = {vehicle_type: enough_around(amount) for vehicle_type, amount in amounts.items()}
        drivers = await self._drivers(zone, trips, each)
        found = await self._supply(zone, set(asking), waiting, drivers)
        return {trip_id for trip_id, supply in found.items() if supply.is_plenty()}

    async def lack(self, zone: Zone, trips: Sequence[Trip]) -> bool:
        """Whether one of these trips, of one vehicle type, has no more free drivers in its reach than
        trips wait that reach any of these. Raises StoreUnavailable."""
        keys, reach_m = keys_of(zone.name), widest_reach_m(zone.waves)
        ids = await self._scripts.waiting_ids(keys, _MOST_TRIPS + 1)
        around = await asyncio.gather(
            *(
                self._scripts.around(
                    keys, trip.vehicle_type, (trip.pickup_lat, trip.pickup_lng),
                    radius_m=reach_m, most=len(ids) + 1,
                )
                for trip in trips
            )
        )  # fmt: skip
        # More drivers than all trips of the zone are more than those nearby.
        few = {trip.id for trip, names in zip(trips, around, strict=True) if len(names) <= len(ids)}
        if not few or len(ids) > _MOST_TRIPS:
            return False
        waiting = await self._waiting(zone, keys, ids, {})
        asking = [waiting[trip_id] for trip_id in few if trip_id in waiting]
        drivers = await self._drivers(zone, asking, {trip.vehicle_type: len(ids) + 1 for trip in asking})
        found = await self._supply(zone, few, waiting, drivers)
        return any(supply.is_short() for supply in found.values())

    async def _supply(
        self,
        zone: Zone,
        asking: set[str],
        waiting: Mapping[str, TripPlace],
        drivers: Mapping[str, Sequence[tuple[str, str]]],
    ) -> dict[str, Supply]:
        return await asyncio.to_thread(
            _supply_by_trip, asking, list(waiting.values()), drivers, widest_reach_m(zone.waves)
        )

    def forget(self, zone: str) -> None:
        """Nothing is scarce in the zone: what its trips are need not be known."""
        self._known.pop(zone, None)

    async def _drivers(
        self, zone: Zone, trips: Sequence[TripPlace], each: Mapping[str, int]
    ) -> dict[str, list[tuple[str, str]]]:
        keys, reach_m = keys_of(zone.name), widest_reach_m(zone.waves)

        async def search(vehicle_type: str, circle: Circle, most: int) -> list[tuple[str, DriverPlace]]:
            found = await self._scripts.places_around(
                keys, vehicle_type, circle.place, radius_m=circle.radius_m, most=most
            )
            return [(vehicle_type, driver) for driver in found]

        drivers: dict[str, list[tuple[str, str]]] = {}
        for vehicle_type, driver in await drivers_around(_places(trips), each, reach_m, search):
            drivers.setdefault(vehicle_type, []).append((driver.lat, driver.lng))
        return drivers

    async def _waiting(
        self, zone: Zone, keys: Keys, ids: Sequence[str], asking: Mapping[str, TripInWaiting]
    ) -> dict[str, TripPlace]:
        """Where the zone's trips without a driver are, offers or not: these, as far as they wait."""
        before = self._known.get(zone.name, {})
        unknown = [trip_id for trip_id in ids if trip_id not in before and trip_id not in asking]
        read = await self._scripts.waiting(keys, unknown, max_wait_ms=longest_wait_ms(zone.waves))
        new = {**asking, **dict(zip(unknown, read, strict=True))}
        found = {trip_id: before.get(trip_id) or _place_of(new[trip_id]) for trip_id in ids}
        known = {trip_id: place for trip_id, place in found.items() if place is not None}
        self._known.pop(zone.name, None)
        self._known[zone.name] = known
        while len(self._known) > 1 and sum(map(len, self._known.values())) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]  # of the zone that was not asked about for longest
        return known


def _places(trips: Sequence[TripPlace]) -> dict[str, list[Place]]:
    places: dict[str, list[Place]] = {}
    for trip in trips:
        places.setdefault(trip.vehicle_type, []).append(trip.place)
    return places


def _place_of(found: TripInWaiting) -> TripPlace | None:
    try:
        trip = Trip.from_hash(found.hash_)
    except (ValueError, TypeError, LookupError):
        return None  # its own wave finds out
    return TripPlace(trip.id, (trip.pickup_lat, trip.pickup_lng), trip.vehicle_type)


def _supply_by_trip(
    asking: set[str],
    waiting: Sequence[TripPlace],
    drivers: Mapping[str, Sequence[tuple[str, str]]],
    reach_m: float,
) -> dict[str, Supply]:
    # Here, since it needs the extra `matching`; it was loaded at the start.
    from dispatcher.matching.plenty import supply_by_trip  # noqa: PLC0415

    return supply_by_trip(asking, waiting, drivers, reach_m)
