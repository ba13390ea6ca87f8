"""When `auto` matches: while drivers are scarce, and a while longer."""

from __future__ import annotations

from typing import Final

from dispatcher.matching.looks import LOOK_AGAIN_MS

#: One trip that finds nobody gains nothing from being matched; two may want the same driver.
_TRIPS_IN_WANT: Final = 2
#: So few free drivers for each trip of those that compete for them are still scarce.
_DRIVERS_A_TRIP: Final = 1.5
#: A trip with more free drivers than this for each trip that reaches them is not held for a round: a
#: wave asks several at once, who are then not there for the next one.
_PLENTY_A_TRIP: Final = 2
#: A trip that still finds nobody has said so within this, however short the rounds are.
_STILL_IN_WANT_MS: Final = 2 * LOOK_AGAIN_MS
#: Rounds that a zone goes on matching after the last sign of scarcity, so that it does not swing.
_HOLD_ROUNDS: Final = 5


class Scarcity:
    """What the looks of one zone say of the supply of one vehicle type. Times are ms of one clock.

    `matched_until_ms` is when matching ends; the caller keeps it for all servers of the zone.
    """

    def __init__(self, every_ms: int) -> None:
        self._every_ms = every_ms
        self._in_want: dict[str, int] = {}

    def found_nobody(self, trip_id: str, now_ms: int) -> int | None:
        """A trip's widest look found no driver. Returns `matched_until_ms` where drivers are scarce."""
        self._in_want[trip_id] = now_ms
        since_ms = now_ms - max(self._every_ms, _STILL_IN_WANT_MS)
        self._in_want = {trip: at_ms for trip, at_ms in self._in_want.items() if at_ms > since_ms}
        return self._until_ms(now_ms) if len(self._in_want) >= _TRIPS_IN_WANT else None

    def saw_shortage(self, now_ms: int) -> int:
        """A trip was outnumbered (`is_outnumbered`). Returns `matched_until_ms`."""
        return self._until_ms(now_ms)

    def saw_round(self, in_want: int, now_ms: int) -> int | None:
        """So many trips of a round were in want of drivers (`RoundPlan`). Returns likewise."""
        return self._until_ms(now_ms) if in_want >= _TRIPS_IN_WANT else None

    def _until_ms(self, now_ms: int) -> int:
        return now_ms + _HOLD_ROUNDS * self._every_ms


def are_scarce(trips: int, drivers: int) -> bool:
    """Whether so many free drivers are scarce for the trips that compete for them."""
    return trips >= _TRIPS_IN_WANT and drivers <= _DRIVERS_A_TRIP * trips


def is_outnumbered(trips: int, drivers: int) -> bool:
    """Whether a trip has no more free drivers in its reach than there are trips, it among them, that
    reach any of these."""
    return trips >= _TRIPS_IN_WANT and drivers <= trips


def enough_around(trips: int) -> int:
    """From how many free drivers in its reach on a trip need not wait for a round, where so many trips,
    it among them, reach any of these. A trip that nobody competes with gains nothing by waiting."""
    return _PLENTY_A_TRIP * trips + 1 if trips >= _TRIPS_IN_WANT else 1
