"""Numbers the drivers who stand in a zone's queues, and takes out who has left them."""

from __future__ import annotations

from dispatcher.core.zones import Zone
from dispatcher.live.keys import keys_of
from dispatcher.live.queues import QueueScripts
from dispatcher.service.authorities import Authorities
from dispatcher.service.queues import Queues


class QueueNumbers:
    """One job a zone that has queues. One of all servers numbers them within `interval_s`."""

    def __init__(
        self,
        *,
        zone: Zone,
        queues: Queues,
        scripts: QueueScripts,
        authorities: Authorities,
        node: str,
        interval_s: float,
    ) -> None:
        self.name = f"queue-numbers-{zone.name}"
        self.interval_s = interval_s
        self._zone = zone
        self._queues = queues
        self._scripts = scripts
        self._authorities = authorities
        self._node = node
        self._every_ms = int(interval_s * 900)  # below the interval, whose rests vary by a tenth

    async def run(self) -> None:
        if self._authorities.of(self._zone.name).is_degraded:
            return
        keys = keys_of(self._zone.name)
        if await self._scripts.begin_look(keys, self._node, every_ms=self._every_ms):
            await self._queues.number(self._zone)
        else:
            self._queues.leave_to_others(self._zone)
