"""Whether absence can be judged: signs of life must have reached Redis for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable


class PresenceOutages:
    """Since when this server has been able to tell each zone of its connections.

    After an outage, drivers seem absent who are connected. Nobody is judged in a zone until a flush
    has told all of this server's connections there, and the grace has passed since: by then the
    others have come back, too. Times are the monotonic clock's, in s.
    """

    def __init__(
        self,
        zones: Iterable[str],
        *,
        ttl_s: float,
        grace_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._grace_s = grace_s
        self._clock = clock
        #: Without a flush for longer than this, connections that live may seem to have ended.
        self._max_pause_s = ttl_s / 2
        self._flushed_at = clock()
        #: When the last outage began, of each zone that no whole flush has reached since.
        self._unreached = dict.fromkeys(zones, self._flushed_at)
        self._steady_since: dict[str, float] = {}
        #: Zones of whose outage other servers have to know; a server that starts has had none.
        self._failed: set[str] = set()

    @property
    def unreached(self) -> dict[str, float]:
        """The zones that may not know of every connection, and since when."""
        return dict(self._unreached)

    def began(self, zone: str) -> None:
        """The zone's Redis did not take, or has lost, what it was told."""
        self._unreached[zone] = self._clock()
        self._steady_since.pop(zone, None)
        self._failed.add(zone)

    def all_began(self) -> None:
        """Postgres is away, or this server stood still: no zone knows who could not connect."""
        now = self._clock()
        for zone in self._steady_since:
            self._unreached[zone] = now
        self._steady_since.clear()
        self._failed |= self._unreached.keys()

    def flushed(self, started: float, told: Collection[str]) -> None:
        """A flush that started then has told these zones of all their connections."""
        now = self._clock()
        if now - self._flushed_at > self._max_pause_s:
            self.all_began()
        self._flushed_at = now
        for zone in told:
            if self._unreached.get(zone, now) <= started:
                del self._unreached[zone]
                self._steady_since[zone] = now

    def now(self) -> float:
        """The time by the clock of this object."""
        return self._clock()

    def can_judge(self, zone: str) -> bool:
        """Whether who seems absent in the zone is so, as far as this server knows."""
        now = self._clock()
        since = self._steady_since.get(zone)
        return (
            since is not None
            and now - since >= self._grace_s
            and now - self._flushed_at <= self._max_pause_s
        )

    def to_notice(self) -> set[str]:
        """The zones where other servers are not to judge either."""
        self._failed = {zone for zone in self._failed if not self.can_judge(zone)}
        return self._failed
