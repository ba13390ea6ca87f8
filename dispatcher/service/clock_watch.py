"""Redis' clock beside this process' own: what lives by that time must not end because it leapt."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

#: Before Redis' time was seen, no time is believed.
_NEVER: Final = 0


class ClockWatch:
    """What the clock of one Redis may show at most, as far as this process' monotonic clock tells.

    A clock leaps where somebody sets it, or where its machine was asleep.
    """

    def __init__(self, *, tolerance_ms: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._tolerance_ms = tolerance_ms
        self._clock = clock
        self._asked_at = clock()
        self._seen: tuple[float, int] | None = None

    def latest_ms(self) -> int:
        """The latest time that Redis may show to a question that is asked now, in ms since the epoch;
        0 where nothing is known of its clock."""
        self._asked_at = self._clock()
        if self._seen is None:
            return _NEVER
        asked_at, now_ms = self._seen
        return now_ms + round((self._asked_at - asked_at) * 1000) + self._tolerance_ms

    def saw(self, now_ms: int) -> None:
        """What Redis showed to the last question."""
        self._seen = (self._asked_at, now_ms)
