"""Tells Redis of the signs of life that this server's connections gave."""

from __future__ import annotations

from typing import Final

import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.ledger.outage_notices import OutageNotices
from dispatcher.service.presence import Presence
from dispatcher.service.presence_outages import PresenceOutages

log = structlog.get_logger("dispatcher.presence")

#: What Redis was not told, it is told soon: until then nobody can say who is absent.
_MAX_REST_AFTER_FAILURE_S: Final = 1.0


class PresenceFlush:
    """Every server does it for its own connections, and gives the others notice where it cannot."""

    name = "presence"

    def __init__(
        self,
        presence: Presence,
        outages: PresenceOutages,
        notices: OutageNotices,
        *,
        interval_s: float,
    ) -> None:
        self.interval_s = interval_s
        self._presence = presence
        self._outages = outages
        self._notices = notices

    async def run(self) -> float | None:
        started, unreached = self._outages.now(), self._outages.unreached
        report = await self._presence.flush(unreached)
        for zone in report.failed_zones:
            self._outages.began(zone)
        if await self._give_notice() and report.is_placed:
            self._outages.flushed(started, unreached.keys() - report.failed_zones)
        else:
            self._outages.all_began()
        if self._outages.unreached:
            return min(_MAX_REST_AFTER_FAILURE_S, self.interval_s)
        return None

    async def _give_notice(self) -> bool:
        """The other servers do not judge this one's drivers in zones that cannot be told of them.

        Postgres is asked without an outage, too: whoever cannot reach it cannot register a socket.
        """
        try:
            zones = self._outages.to_notice()
            await self._notices.hold(zones and zones & self._presence.zones())
        except StoreUnavailable as error:
            log.warning("no notice of outages", reason=str(error))
            return False
        return True
