"""Takes drivers offline who have been gone for longer than the grace period."""

from __future__ import annotations

import structlog

from dispatcher.core.actors import Role
from dispatcher.core.zones import Zone, Zones
from dispatcher.live.keys import keys_of
from dispatcher.live.presence import PresenceScripts
from dispatcher.live.state import StateScripts
from dispatcher.service.availability import AvailabilityService

log = structlog.get_logger("dispatcher.absent_drivers")


class AbsentDrivers:
    """Any server may do it; an absent user is handed to one of them at a time."""

    name = "absent-drivers"

    def __init__(
        self,
        *,
        zones: Zones,
        presence: PresenceScripts,
        state: StateScripts,
        availability: AvailabilityService,
        grace_s: float,
        interval_s: float,
    ) -> None:
        self.interval_s = interval_s
        self._zones = zones
        self._presence = presence
        self._state = state
        self._availability = availability
        self._grace_ms = int(grace_s * 1000)

    async def run(self) -> None:
        for name in self._zones.names():
            zone = self._zones.get(name)
            assert zone is not None
            await self._run_zone(zone)

    async def _run_zone(self, zone: Zone) -> None:
        keys = keys_of(zone.name)
        for address in await self._presence.sweep_absent(keys, grace_ms=self._grace_ms):
            role, _, user_id = address.partition(":")
            if role == Role.DRIVER and await self._state.is_online(keys, user_id):
                await self._availability.take_offline(zone, user_id)
                log.info("driver lost", zone=zone.name, driver_id=user_id)
            await self._presence.forget_absent(keys, address)
