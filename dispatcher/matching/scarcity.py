"""When `auto` matches: while drivers are scarce, and a while longer."""

from __future__ import annotations

from typing import Final

#: One trip that finds nobody gains nothing from being matched; two may want the same driver.
_TRIPS_IN_WANT: Final = 2
#: Fewer free drivers in reach for each waiting trip than this are still scarce.
_DRIVERS_A_TRIP: Final = 1.5
#: A trip with this many free drivers in reach for each waiting trip is not held for a round.
_PLENTY_A_TRIP: Final = 2
#: Rounds that a zone goes on matching after the last sign of scarcity, so that it does not swing.
_HOLD_ROUNDS: Final = 5


class Scarcity:
    """What one zone's looks say of supply. Times are ms of one clock.

    `matched_until_ms` is when matching ends; the caller keeps it for all servers of the zone.
    """

    def __init__(self, every_ms: int) -> None:
        self._every_ms = every_ms
        self._in_want: dict[str, int] = {}

    def found_nobody(self, trip_id: str, now_ms: int) -> int | None:
        """A trip's widest look found no driver. Returns `matched_until_ms` where drivers are scarce."""
        self._in_want[trip_id] = now_ms
        since_ms = now_ms - self._every_ms
        self._in_want = {trip: at_ms for trip, at_ms in self._in_want.items() if at_ms > since_ms}
        return self._until_ms(now_ms) if len(self._in_want) >= _TRIPS_IN_WANT else None

    def saw_round(self, waiting: int, in_reach: int, now_ms: int) -> int | None:
        """A round had so many trips, and free drivers in reach. Returns likewise."""
        is_scarce = waiting >= _TRIPS_IN_WANT and in_reach <= _DRIVERS_A_TRIP * waiting
        return self._until_ms(now_ms) if is_scarce else None

    def _until_ms(self, now_ms: int) -> int:
        return now_ms + _HOLD_ROUNDS * self._every_ms


def enough_around(waiting: int) -> int:
    """From how many free drivers in its reach on a new trip need not wait for a round, where so many
    trips of the zone are waiting."""
    return _PLENTY_A_TRIP * waiting + 1
