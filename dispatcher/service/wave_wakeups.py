"""Wakes the loop of a zone where a wave has become due here, so that it need not look all the time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable


class WaveWakeups:
    """Who is to be woken, by zone."""

    def __init__(self) -> None:
        self._subscribers: dict[str, list[Callable[[], None]]] = defaultdict(list)

    def subscribe(self, zone: str, wake: Callable[[], None]) -> None:
        """`wake` is called whenever a trip of the zone begins to wait for a driver on this server."""
        self._subscribers[zone].append(wake)

    def notify_all(self) -> None:
        """Every zone is to be looked at."""
        for zone in self._subscribers:
            self.notify(zone)

    def notify(self, zone: str) -> None:
        """A trip of the zone waits for a driver."""
        for wake in self._subscribers.get(zone, ()):
            wake()
