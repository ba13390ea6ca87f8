"""A driver's availability changes; what they hold and have not started is released with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import structlog

from dispatcher.core.actors import Role, address_of
from dispatcher.core.callers import Caller
from dispatcher.core.drivers import AvailabilityStatus, Driver
from dispatcher.core.limits import LimitClass
from dispatcher.core.transitions import RELEASE
from dispatcher.core.trips import DEFAULT_VEHICLE_TYPE, Trip
from dispatcher.core.zones import Zone
from dispatcher.ledger.changes import Change
from dispatcher.live.claim_results import AvailabilityClaimed, ClaimCode, NotClaimed, Unresolved
from dispatcher.live.claims import Attempt, Resolved
from dispatcher.live.keys import Keys
from dispatcher.live.settlement import SettleEffect, Settlement
from dispatcher.service.commands.command import Claims, Plan, SideEffects
from dispatcher.service.commands.transition import OK, transition_columns, transition_settlement
from dispatcher.service.driver_directory import DirectoryEntry
from dispatcher.service.messages import driver_body, driver_message, trip_json

log = structlog.get_logger("dispatcher.availability")


class DriverElsewhere(Exception):
    """The driver works in another zone than the change starts from. Nothing was claimed."""


class DriverCameBack(Exception):
    """The driver who was to be taken offline is present. Nothing was claimed."""


@dataclass(frozen=True, slots=True)
class ChangeAvailability:
    """Answers 200, 409 driver_has_active_trip where zone or vehicle change during a trip, trip_busy.

    None leaves a thing as it is. `zone` is where the driver works now, `new_zone` where they will. The
    change starts from `from_zone`, which is another than `zone` only where it is not configured any
    more; who works elsewhere raises DriverElsewhere. With `only_if_absent`, a driver who is present
    raises DriverCameBack. `brings_position` says that a position came with the change. The driver is
    the caller, or the one whom an operator has named as `subject`.
    """

    is_race: ClassVar[bool] = False

    caller: Caller
    zone: Zone
    from_zone: str
    new_zone: str
    availability_status: AvailabilityStatus | None = None
    is_online: bool | None = None
    vehicle_type: str | None = None
    only_if_absent: bool = False
    brings_position: bool = False
    max_fix_age_ms: int = 60_000
    trip_id: str = ""
    limit_class: LimitClass = LimitClass.GENERAL
    subject: str = ""

    @property
    def driver_id(self) -> str:
        return self.subject or self.caller.actor.user_id

    @property
    def changes_zone(self) -> bool:
        return self.new_zone != self.zone.name

    async def claim(
        self, claims: Claims, keys: Keys, attempt: Attempt
    ) -> AvailabilityClaimed | NotClaimed:
        claimed = await claims.claim_availability(
            keys, attempt, goes_offline=self.is_online is False, changes_zone=self.changes_zone,
            vehicle_type=self.vehicle_type, from_zone=self.from_zone,
            absentee=address_of(Role.DRIVER, self.driver_id) if self.only_if_absent else "",
        )  # fmt: skip
        if isinstance(claimed, Unresolved):
            if claimed.code is ClaimCode.CAME_BACK:
                raise DriverCameBack(self.driver_id)
            if claimed.code is ClaimCode.DRIVER_ELSEWHERE and Resolved.DRIVER in attempt.resolved:
                raise DriverElsewhere(self.driver_id)
        return claimed

    def plan(self, attempt: Attempt, claimed: AvailabilityClaimed) -> Plan:
        before, trip, at_ms = claimed.driver, claimed.released, claimed.now_ms
        after = self._driver_after(before, at_ms)
        released: Trip | None = None
        columns: dict[str, Any] = {"zone": self.from_zone, "at_ms": at_ms}
        settlement = Settlement(effect=SettleEffect.STATE)
        if trip is not None:
            actor = self.caller.actor
            released = RELEASE.apply(trip, at_ms)
            after = replace(after, trip_id=None)
            # An operator's id says who did it, so the history names the driver as well.
            named = {"former_driver": self.subject} if self.subject else {}
            columns = transition_columns(
                attempt, actor, RELEASE, trip, released, "driver_offline", **named
            )
            settlement = transition_settlement(RELEASE, actor, trip, released, trip_json(released), ())
        change = Change(
            **columns,
            set_driver=after.user_id, set_zone=after.zone, set_online=after.is_online,
            set_available=after.availability_status, set_vehicle=after.vehicle_type,
            expect_driver_version=before.version,
        )  # fmt: skip
        settlement = replace(
            settlement,
            driver_id=after.user_id,
            driver_vehicle_type=before.vehicle_type or after.vehicle_type,
            driver=replace(after, is_online=False) if self.changes_zone else after,
            arrives="" if self.changes_zone or not after.is_online else _address(after),
        )
        if self.subject:
            told = [*settlement.messages, driver_message(after)]
            settlement = replace(settlement, messages=told)
        return Plan(
            change, settlement, OK, self._body(claimed, after, released),
            other_zone=after.zone if self.changes_zone else "",
            other_settlement=_arrival(after) if self.changes_zone else None,
        )  # fmt: skip

    def _body(self, claimed: AvailabilityClaimed, after: Driver, released: Trip | None) -> bytes:
        # A fix belongs to the zone it was sent to; one that comes with this very call is taken next.
        fix_ms = None if self.changes_zone else claimed.fix_ms
        fix_ms = claimed.now_ms if self.brings_position else fix_ms
        fix_age_ms = None if fix_ms is None else claimed.now_ms - fix_ms
        return driver_body(after, released, after.obstacles(fix_age_ms, self.max_fix_age_ms))

    def _driver_after(self, before: Driver, at_ms: int) -> Driver:
        is_online = before.is_online if self.is_online is None else self.is_online
        status = self.availability_status or before.availability_status
        if before.version < 0 and is_online and self.availability_status is None:
            status = AvailabilityStatus.AVAILABLE  # who goes online for the first time means it
        return Driver(
            user_id=self.driver_id,
            zone=self.new_zone,
            availability_status=status,
            is_online=is_online,
            vehicle_type=self.vehicle_type or before.vehicle_type or DEFAULT_VEHICLE_TYPE,
            version=before.version + 1,
            updated_at=at_ms,
            trip_id=before.trip_id,
        )

    def committed(self, claimed: AvailabilityClaimed, plan: Plan, effects: SideEffects) -> None:
        vehicle_type = plan.change.set_vehicle or DEFAULT_VEHICLE_TYPE
        entry = DirectoryEntry(self.new_zone, vehicle_type, claimed.driver.version + 1)
        effects.directory.learn(self.driver_id, entry)
        if self.subject:
            released = {"trip_id": claimed.released.id} if claimed.released else {}
            log.info(
                "Driver taken offline by an operator",
                operator=self.caller.actor.user_id, driver_id=self.subject, zone=self.zone.name,
                **released,
            )  # fmt: skip


def _arrival(driver: Driver) -> Settlement:
    """What the live state of the driver's new zone is told."""
    return Settlement(
        driver_id=driver.user_id,
        driver_vehicle_type=driver.vehicle_type,
        effect=SettleEffect.STATE,
        driver=driver,
        arrives=_address(driver) if driver.is_online else "",
    )


def _address(driver: Driver) -> str:
    return address_of(Role.DRIVER, driver.user_id)
