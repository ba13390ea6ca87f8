"""Takes drivers offline who have been gone for longer than the grace period."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import structlog

from dispatcher.core.actors import Role, address_of
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.zones import Zone
from dispatcher.ledger.database import Database
from dispatcher.ledger.outage_notices import OutageNotices
from dispatcher.live.keys import keys_of
from dispatcher.live.presence import PresenceScripts
from dispatcher.live.servers import Survey
from dispatcher.live.state import StateScripts
from dispatcher.observe.series import REPAIRED
from dispatcher.service.authorities import Authorities
from dispatcher.service.availability import AvailabilityService
from dispatcher.service.clock_watch import ClockWatch
from dispatcher.service.commands.availability import DriverCameBack, DriverElsewhere
from dispatcher.service.commands.transition import OK
from dispatcher.service.presence_outages import PresenceOutages
from dispatcher.service.rehydration import Rehydration

log = structlog.get_logger("dispatcher.absent_drivers")

#: Postgres is asked who is online this often within the life of a presence.
_LOOKS_PER_LIFE: Final = 4
_PAGE_ROWS: Final = 1_000


class AbsentDrivers:
    """Looks after one zone. The server that holds it does; an absent user is handed to one at a time.

    Nobody is judged after an outage that this server or another one has seen, or a leap of Redis' clock,
    until all is told again and the grace has passed.
    """

    def __init__(
        self,
        *,
        zone: Zone,
        presence: PresenceScripts,
        state: StateScripts,
        rehydration: Rehydration,
        database: Database,
        availability: AvailabilityService,
        outages: PresenceOutages,
        notices: OutageNotices,
        authorities: Authorities,
        node: str,
        ttl_s: int,
        grace_s: float,
        interval_s: float,
    ) -> None:
        self.name = f"absent-drivers-{zone.name}"
        self.interval_s = interval_s
        self._zone = zone
        self._keys = keys_of(zone.name)
        self._presence = presence
        self._state = state
        self._rehydration = rehydration
        self._database = database
        self._availability = availability
        self._outages = outages
        self._notices = notices
        self._authorities = authorities
        self._epoch: str | None = None
        # Whoever is connected has that much left of their life, at least.
        self._clock = ClockWatch(tolerance_ms=ttl_s * 1000 // _LOOKS_PER_LIFE)
        self._node = node
        self._life_ms = ttl_s * 1000
        self._grace_ms = int(grace_s * 1000)
        self._look_at_s = 0.0

    def is_due(self, survey: Survey) -> bool:
        """Whether there is anything to do in the zone: somebody is absent, the zone was loaded anew, or
        Postgres is to be asked who is online."""
        if survey.epoch != self._epoch or time.monotonic() >= self._look_at_s:
            return True
        ends_ms = survey.first_absence_ms
        return ends_ms is not None and ends_ms + self._grace_ms <= survey.now_ms

    async def run(self) -> None:
        self._look_at_s = time.monotonic() + self._life_ms / 1000 / _LOOKS_PER_LIFE
        if self._authorities.of(self._zone.name).is_degraded:
            self._outages.began(self._zone.name)
            return
        try:
            await self._expect_online()
            await self._release_absent()
        except StoreUnavailable:
            self._outages.began(self._zone.name)
            raise

    async def _expect_online(self) -> None:
        """Whoever is online has a presence, which may end.

        Postgres knows who is online; their server may have died before it told of them, or Redis
        have been emptied.
        """
        every_ms = self._life_ms // _LOOKS_PER_LIFE
        if not await self._presence.begin_look(self._keys, self._node, every_ms=every_ms):
            return
        after = ""
        while page := await self._database.rows(
            "online_driver_ids_of_zone", zone=self._zone.name, after=after, page_size=_PAGE_ROWS
        ):
            addresses = [address_of(Role.DRIVER, row["user_id"]) for row in page]
            added = await self._presence.expect_present(self._keys, addresses, life_ms=self._life_ms)
            if added:
                REPAIRED.add("presence_expected", number=added)
                log.info("drivers without a presence", zone=self._zone.name, drivers=added)
            after = page[-1]["user_id"]

    async def _release_absent(self) -> None:
        zone = self._zone.name
        expected = self._epoch if self._outages.can_judge(zone) else ""
        latest_ms = self._clock.latest_ms()
        epoch, now_ms, addresses = await self._presence.sweep_absent(
            self._keys, grace_ms=self._grace_ms, epoch=expected or "", latest_ms=latest_ms,
            life_ms=self._life_ms,
        )  # fmt: skip
        self._clock.saw(now_ms)
        if latest_ms and now_ms > latest_ms:
            log.warning("Redis' clock has leapt", zone=zone, by_ms=now_ms - latest_ms)
            self._outages.began(zone)
        if epoch != self._epoch:
            if self._epoch is not None:
                self._outages.began(zone)  # the zone was loaded anew, or is about to be
            self._epoch = epoch
        if not addresses:
            return
        if await self._notices.is_given(zone):
            log.info("absent drivers wait for another server", zone=zone, users=len(addresses))
            return
        online = await self._online_among(addresses)
        ended = await asyncio.gather(
            *(self._release(address, is_online=address in online) for address in addresses),
            return_exceptions=True,
        )
        failures = [end for end in ended if isinstance(end, BaseException)]
        for failure in failures[1:]:
            log.warning("driver not released", zone=self._zone.name, reason=repr(failure))
        if failures:
            raise failures[0]

    async def _online_among(self, addresses: Sequence[str]) -> set[str]:
        """The drivers of these whom Postgres says to be online in the zone."""
        users = [address.partition(":") for address in addresses]
        drivers = [user_id for role, _, user_id in users if role == Role.DRIVER]
        rows = await self._database.rows("online_among", zone=self._zone.name, driver_ids=drivers)
        return {address_of(Role.DRIVER, row["user_id"]) for row in rows}

    async def _release(self, address: str, *, is_online: bool) -> None:
        """Forgets an absent user, once the change is done that their absence asks for."""
        role, _, user_id = address.partition(":")
        if is_online:
            try:
                answer = await self._availability.take_offline(self._zone, user_id)
            except (DriverCameBack, DriverElsewhere):
                return  # the next sweep finds them present, or not online in this zone
            if answer.status != OK:
                return  # they are handed out again
            REPAIRED.add("absent_driver")
            log.info("driver lost", zone=self._zone.name, driver_id=user_id)
        elif role == Role.DRIVER and await self._state.is_online(self._keys, user_id):
            # Postgres knows better: the news was lost on its way to this zone.
            await self._rehydration.reload_driver(self._keys, user_id)
            REPAIRED.add("reloaded_driver")
        await self._presence.forget_absent(self._keys, address)
