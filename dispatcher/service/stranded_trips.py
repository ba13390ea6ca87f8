"""Trips that have started and whose driver has vanished: someone else has to end them."""

from __future__ import annotations

import math
from typing import Final

from dispatcher.core.actors import Role
from dispatcher.core.callers import Caller
from dispatcher.core.errors import Refusal
from dispatcher.core.limits import LimitClass
from dispatcher.core.transitions import END
from dispatcher.core.zones import Zones
from dispatcher.ledger.database import Database
from dispatcher.service.answers import Answer, refusal_answer
from dispatcher.service.commands.actions import trip_action
from dispatcher.service.coordinator import Coordinator
from dispatcher.service.rate_limits import RateLimits

#: What the history says where nobody gave a reason.
_REASONS: Final = {Role.CUSTOMER: "driver_absent", Role.ADMIN: "ended_by_admin"}


class StrandedTrips:
    """Ends trips without their drivers: an admin at any time, a customer once the driver is long gone.

    A trip that has started outlives its driver's presence: no other driver can take a passenger who
    sits in a car. So it would be `ongoing` for ever, and its driver never free, if their phone stays
    dead.
    """

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        zones: Zones,
        database: Database,
        limits: RateLimits,
        customer_may_end_after_s: float,
    ) -> None:
        self._coordinator = coordinator
        self._zones = zones
        self._database = database
        self._limits = limits
        self._customer_may_end_after_s = customer_may_end_after_s

    async def end(
        self, caller: Caller, trip_id: str, *, version: int | None = None, reason: str | None = None
    ) -> Answer:
        """Ends a trip; it counts as completed, and its history says by whom and why.

        Answers 200, 404 trip_not_found, 409 invalid_trip_status, version_conflict, trip_busy, and to a
        customer 409 driver_not_absent. Raises Refusal trip_not_found, rate_limit_exceeded,
        StoreUnavailable, OutcomeUnknown.
        """
        role = caller.actor.role
        command = trip_action(
            self._zones, caller, END.action, trip_id,
            version=version, reason=reason or _REASONS.get(role),
        )  # fmt: skip
        if role is Role.CUSTOMER:
            refused = await self._refuse_too_early(caller, trip_id)
            if refused is not None:
                return refused
        return await self._coordinator.execute(command)

    async def _refuse_too_early(self, caller: Caller, trip_id: str) -> Answer | None:
        """The refusal of a customer whose driver is there, or was until lately.

        Gone is who is offline in Postgres, by their own will or by the absent-drivers job, and since
        when is said there, too: presence in Redis says nothing after Redis was emptied. A driver who
        comes back at this very moment finds the trip ended. The question is counted as `general`; a
        trip that is not the caller's, or has ended, is left to the command, which may know the key.
        """
        limit = await self._limits.count(LimitClass.GENERAL, caller.actor, caller.ip)
        row = await self._database.row("absence_from_trip", trip_id=trip_id)
        if row is None or row["customer_id"] != caller.actor.user_id:
            return None
        absent_s = row["absent_s"]
        if absent_s is None:
            return refusal_answer(Refusal("driver_not_absent"), limit)
        left_s = math.ceil(self._customer_may_end_after_s - absent_s)
        if left_s > 0:
            return refusal_answer(Refusal("driver_not_absent", retry_after=left_s), limit)
        return None
