"""Which version of a trip an app has seen: answers and events come over several ways, in any order."""

from __future__ import annotations

from typing import Final

from dispatcher.client.models import Trip

#: Far more than are on their way at once.
_MAX_TRIPS: Final = 512


class KnownTrips:
    """The versions of the trips that were seen last."""

    def __init__(self) -> None:
        self._versions: dict[str, int] = {}

    def take(self, trip: Trip) -> bool:
        """Whether the trip is newer than what was known of it; then it is what is known."""
        if trip.version <= self._versions.get(trip.id, -1):
            return False
        self._versions.pop(trip.id, None)  # so that the order is that of the last change
        self._versions[trip.id] = trip.version
        if len(self._versions) > _MAX_TRIPS:
            del self._versions[next(iter(self._versions))]
        return True
