"""Trips whose drivers hold offers of other trips: where `auto` looks whether drivers are too few."""

from __future__ import annotations

import random
from typing import Final

from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zone
from dispatcher.service.well_served import WellServed

#: Such trips of a vehicle type, as far as they are remembered: any of them tells of its neighbourhood.
_MOST_TRIPS: Final = 100
#: Of these so many are looked at together, which keeps Redis busy for some ms.
_AT_ONCE: Final = 8


class SharedDrivers:
    """Remembers them, and looks at some of them, once in the time of a round at most."""

    def __init__(self, well_served: WellServed) -> None:
        self._well_served = well_served
        #: By zone, then by vehicle type.
        self._trips: dict[str, dict[str, dict[str, Trip]]] = {}
        self._looked_ms: dict[str, int] = {}

    def note(self, zone: Zone, trip: Trip) -> None:
        """Drivers who were offered the trip hold offers of others."""
        of_type = self._trips.setdefault(zone.name, {}).setdefault(trip.vehicle_type, {})
        of_type[trip.id] = trip
        if len(of_type) > _MOST_TRIPS:
            del of_type[next(iter(of_type))]

    async def short_types(self, zone: Zone, now_ms: int) -> list[str]:
        """The vehicle types of which free drivers are no more than trips somewhere. Raises
        StoreUnavailable."""
        since_ms = now_ms - self._looked_ms.get(zone.name, 0)
        # A clock that stepped back must not put it off.
        if zone.name not in self._trips or 0 <= since_ms < zone.matching.every_ms:
            return []
        self._looked_ms[zone.name] = now_ms
        short = []
        for vehicle_type, trips in self._trips.pop(zone.name).items():
            some = random.sample(list(trips.values()), min(len(trips), _AT_ONCE))
            if await self._well_served.lack(zone, some):
                short.append(vehicle_type)
        return short
