"""Takes drivers offline who have been gone for longer than the grace period."""

from __future__ import annotations

import asyncio

import structlog

from dispatcher.core.actors import Role
from dispatcher.core.zones import Zone
from dispatcher.live.keys import keys_of
from dispatcher.live.presence import PresenceScripts
from dispatcher.live.state import StateScripts
from dispatcher.service.availability import AvailabilityService
from dispatcher.service.commands.transition import OK

log = structlog.get_logger("dispatcher.absent_drivers")


class AbsentDrivers:
    """Looks after one zone. Any server may; an absent user is handed to one of them at a time."""

    def __init__(
        self,
        *,
        zone: Zone,
        presence: PresenceScripts,
        state: StateScripts,
        availability: AvailabilityService,
        grace_s: float,
        interval_s: float,
    ) -> None:
        self.name = f"absent-drivers-{zone.name}"
        self.interval_s = interval_s
        self._zone = zone
        self._keys = keys_of(zone.name)
        self._presence = presence
        self._state = state
        self._availability = availability
        self._grace_ms = int(grace_s * 1000)

    async def run(self) -> None:
        addresses = await self._presence.sweep_absent(self._keys, grace_ms=self._grace_ms)
        ended = await asyncio.gather(*map(self._release, addresses), return_exceptions=True)
        failures = [end for end in ended if isinstance(end, BaseException)]
        for failure in failures[1:]:
            log.warning("driver not released", zone=self._zone.name, reason=repr(failure))
        if failures:
            raise failures[0]

    async def _release(self, address: str) -> None:
        """Forgets an absent user, once the change is done that their absence asks for."""
        role, _, user_id = address.partition(":")
        if role == Role.DRIVER and await self._state.is_online(self._keys, user_id):
            answer = await self._availability.take_offline(self._zone, user_id)
            if answer.status != OK:
                return  # they are handed out again
            log.info("driver lost", zone=self._zone.name, driver_id=user_id)
        await self._presence.forget_absent(self._keys, address)
