"""Trips that need not wait for a round of matching, since there are drivers enough where they are.

Asked only while drivers of the zone are scarce somewhere. What is compared is compared in a thread.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zone
from dispatcher.live.keys import Keys, keys_of
from dispatcher.live.matching import MatchScripts, TripInWaiting
from dispatcher.matching.looks import longest_wait_ms, widest_reach_m
from dispatcher.matching.model import Place, TripPlace
from dispatcher.matching.scarcity import enough_around

#: Trips without a driver that are compared; a zone that has more of them has no trip well served.
_MOST_TRIPS: Final = 2_000


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
        waiting = await self._waiting(zone, keys, asking)
        if len(waiting) > _MOST_TRIPS:
            return set()
        reach_m = widest_reach_m(zone.waves)
        amounts = Counter(trip.vehicle_type for trip in waiting.values())
        trips = [waiting[trip_id] for trip_id in asking if trip_id in waiting]
        around = await asyncio.gather(
            *(
                self._scripts.places_around(
                    keys, trip.vehicle_type, trip.place,
                    radius_m=reach_m, most=enough_around(amounts[trip.vehicle_type]),
                )
                for trip in trips
            )
        )  # fmt: skip
        found = dict(zip(trips, around, strict=True))
        return await asyncio.to_thread(_with_plenty, found, list(waiting.values()), reach_m)

    async def _waiting(
        self, zone: Zone, keys: Keys, asking: Mapping[str, TripInWaiting]
    ) -> dict[str, TripPlace]:
        """Where the zone's trips without a driver are, offers or not."""
        ids = await self._scripts.waiting_ids(keys, _MOST_TRIPS + 1)
        before = self._known.get(zone.name, {})
        unknown = [trip_id for trip_id in ids if trip_id not in before and trip_id not in asking]
        read = await self._scripts.waiting(keys, unknown, max_wait_ms=longest_wait_ms(zone.waves))
        new = {**asking, **dict(zip(unknown, read, strict=True))}
        found = {trip_id: before.get(trip_id) or _place_of(new[trip_id]) for trip_id in ids}
        known = {trip_id: place for trip_id, place in found.items() if place is not None}
        self._known[zone.name] = known
        return known


def _place_of(found: TripInWaiting) -> TripPlace | None:
    try:
        trip = Trip.from_hash(found.hash_)
    except (ValueError, TypeError, LookupError):
        return None  # its own wave finds out
    return TripPlace(trip.id, (trip.pickup_lat, trip.pickup_lng), trip.vehicle_type)


def _with_plenty(
    around: Mapping[TripPlace, Sequence[Place]], waiting: Sequence[TripPlace], reach_m: float
) -> set[str]:
    # Here, since it needs the extra `matching`; it was loaded at the start.
    from dispatcher.matching.plenty import trips_with_plenty  # noqa: PLC0415

    return trips_with_plenty(around, waiting, reach_m)
