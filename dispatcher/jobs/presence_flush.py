"""Tells Redis of the signs of life that this server's connections gave."""

from __future__ import annotations

from typing import Final

from dispatcher.service.presence import Presence

#: What Redis was not told, it is told soon: until then nobody can say who is absent.
_MAX_REST_AFTER_FAILURE_S: Final = 1.0


class PresenceFlush:
    """Every server does it for its own connections."""

    name = "presence"

    def __init__(self, presence: Presence, *, interval_s: float) -> None:
        self.interval_s = interval_s
        self._presence = presence

    async def run(self) -> float | None:
        report = await self._presence.flush()
        if report.failed_zones or not report.is_placed:
            return min(_MAX_REST_AFTER_FAILURE_S, self.interval_s)
        return None
