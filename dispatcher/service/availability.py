"""Drivers go online and offline, change zone and vehicle."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import structlog

from dispatcher.core.actors import Actor, Role
from dispatcher.core.callers import Caller
from dispatcher.core.drivers import AvailabilityStatus
from dispatcher.core.errors import Refusal, StoreUnavailable
from dispatcher.core.zones import DEFAULT_ZONE, Zone, Zones
from dispatcher.live.claim_results import PROBLEM_CODES, ClaimCode
from dispatcher.service.answers import Answer, claim_refusal
from dispatcher.service.commands.availability import ChangeAvailability, DriverElsewhere
from dispatcher.service.coordinator import Coordinator
from dispatcher.service.driver_directory import DriverDirectory
from dispatcher.service.positions import Positions
from dispatcher.service.presence import Presence

log = structlog.get_logger("dispatcher.availability")

#: How often a driver is looked up who moves from zone to zone meanwhile.
_MAX_TRIES: Final = 4


class AvailabilityService:
    """Finds out where a driver works, and has their availability changed."""

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        zones: Zones,
        directory: DriverDirectory,
        positions: Positions,
        presence: Presence,
        fix_age_s: int,
    ) -> None:
        self._coordinator = coordinator
        self._zones = zones
        self._directory = directory
        self._positions = positions
        self._presence = presence
        self._fix_age_ms = fix_age_s * 1000

    async def change(
        self,
        caller: Caller,
        *,
        availability_status: str | None = None,
        is_online: bool | None = None,
        zone: str | None = None,
        vehicle_type: str | None = None,
        location: tuple[float, float] | None = None,
    ) -> Answer:
        """Changes what the driver offers; None leaves a thing as it is. `location` is (lat, lng).

        Going offline releases a trip that has not started, in the same commit. Answers 200,
        409 driver_has_active_trip where zone or vehicle change during a trip. Raises Refusal
        invalid_zone, StoreUnavailable, OutcomeUnknown.
        """
        command, answer = await self._execute(
            partial(self._command, caller, availability_status, is_online, zone, vehicle_type, location)
        )
        if answer.is_new_success:
            await self._presence.follow(command.driver_id)
            if location is not None:
                await self._take_location(command.driver_id, location)
        return answer

    async def _execute(
        self, start: Callable[[], Awaitable[ChangeAvailability]]
    ) -> tuple[ChangeAvailability, Answer]:
        """Has a change made that starts from where the driver works; whoever has moved by way of another
        server is looked up again."""
        for _ in range(_MAX_TRIES):
            command = await start()
            try:
                return command, await self._coordinator.execute(command)
            except DriverElsewhere:
                self._directory.forget(command.driver_id)
        return command, claim_refusal(PROBLEM_CODES[ClaimCode.TRIP_BUSY])

    async def _command(
        self,
        caller: Caller,
        availability_status: str | None,
        is_online: bool | None,
        zone: str | None,
        vehicle_type: str | None,
        location: tuple[float, float] | None,
    ) -> ChangeAvailability:
        driver_id = caller.actor.user_id
        entry = await self._directory.find(driver_id)
        new_zone = zone or (entry.zone if entry else None)
        if new_zone is None:
            new_zone = self._zones.locate(*location).name if location else DEFAULT_ZONE
        to_zone = self._zones.get(new_zone)
        if to_zone is None:
            raise Refusal("invalid_zone")
        from_zone = self._zones.get(entry.zone) if entry else None
        return ChangeAvailability(
            caller,
            from_zone or to_zone,
            entry.zone if entry else new_zone,
            new_zone,
            AvailabilityStatus(availability_status) if availability_status else None,
            is_online,
            vehicle_type,
            brings_position=location is not None,
            max_fix_age_ms=self._fix_age_ms,
        )

    async def force_offline(self, caller: Caller, driver_id: str) -> Answer:
        """An operator takes a driver offline, present or not; what has not started is released.

        Answers 200, 409 trip_busy. Raises Refusal driver_not_found, StoreUnavailable, OutcomeUnknown.
        """

        async def start() -> ChangeAvailability:
            entry = await self._directory.find(driver_id)
            zone = self._zones.get(entry.zone) if entry else None
            if zone is None:
                raise Refusal("driver_not_found")
            return ChangeAvailability(
                caller, zone, zone.name, zone.name, is_online=False, subject=driver_id
            )

        _, answer = await self._execute(start)
        return answer

    async def take_offline(self, zone: Zone, driver_id: str) -> Answer:
        """The driver is lost: offline, and what has not started is released.

        Raises DriverCameBack where they are present, DriverElsewhere where they work in another zone,
        StoreUnavailable, OutcomeUnknown.
        """
        caller = Caller(Actor(driver_id, Role.SYSTEM))
        return await self._coordinator.execute(
            ChangeAvailability(caller, zone, zone.name, zone.name, is_online=False, only_if_absent=True)
        )

    async def _take_location(self, driver_id: str, location: tuple[float, float]) -> None:
        """The change is committed and answered, whatever becomes of the position that came with it."""
        try:
            await self._positions.take(driver_id, [(*location, None)])
        except (Refusal, StoreUnavailable) as error:
            log.info("position not taken", driver_id=driver_id, reason=str(error))
