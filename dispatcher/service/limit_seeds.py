"""A Redis that has lost its limits' logs, or was away, is told what this server has admitted."""

from __future__ import annotations

from typing import Final

import structlog

from dispatcher.core.zones import DEFAULT_ZONE
from dispatcher.live.keys import keys_of
from dispatcher.live.limits import LimitScripts
from dispatcher.service.local_limits import LocalLimits

log = structlog.get_logger("dispatcher.limits")

#: Logs in one call: some 2 ms of Redis' time.
_MAX_LOGS: Final = 100


class LimitSeeds:
    """Seeds the logs that decide about a zone's calls: its own, and, on one node, the default zone's."""

    def __init__(self, local: LocalLimits, scripts: LimitScripts, *, has_one_node: bool) -> None:
        self._local = local
        self._scripts = scripts
        self._has_one_node = has_one_node

    async def seed(self, zone: str) -> int:
        """Returns how many admissions were added. Raises StoreUnavailable."""
        added = 0
        for kept_by in {zone, DEFAULT_ZONE} if self._has_one_node else {zone}:
            keys = keys_of(kept_by)
            logs = [
                (keys.limit(name, subject), known.window_ms // 1000, list(known.times_ms))
                for name, subject, known in self._local.logs_of(kept_by)
            ]
            for start in range(0, len(logs), _MAX_LOGS):
                added += await self._scripts.seed_limits(logs[start : start + _MAX_LOGS])
        if added:
            log.info("limits seeded", zone=zone, admissions=added)
        return added
