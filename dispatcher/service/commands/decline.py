"""A driver declines a trip: it is not offered to them any more."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from dispatcher.core.callers import Caller
from dispatcher.core.limits import LimitClass
from dispatcher.core.trips import Status
from dispatcher.core.zones import Zone
from dispatcher.ledger.changes import Change
from dispatcher.live.claim_results import DeclineClaimed, NotClaimed
from dispatcher.live.claims import Attempt
from dispatcher.live.keys import Keys
from dispatcher.live.settlement import Settlement
from dispatcher.service.commands.command import Claims, Plan, SideEffects
from dispatcher.service.commands.transition import OK
from dispatcher.service.messages import trip_body, trip_json
from dispatcher.service.offer_log import OfferOutcome

_RESPONSE_CODE: Final = "trip_declined"


@dataclass(frozen=True, slots=True)
class DeclineTrip:
    """Answers 200, 404 trip_not_found, 409 trip_already_assigned, trip_not_pending, version_conflict."""

    is_race: ClassVar[bool] = False

    caller: Caller
    zone: Zone
    trip_id: str
    version: int | None = None
    driver_id: str = ""
    limit_class: LimitClass = LimitClass.GENERAL

    def claim(
        self, claims: Claims, keys: Keys, attempt: Attempt
    ) -> Coroutine[Any, Any, DeclineClaimed | NotClaimed]:
        return claims.claim_decline(keys, attempt, version=self.version)

    def plan(self, attempt: Attempt, claimed: DeclineClaimed) -> Plan:
        driver_id = self.caller.actor.user_id
        change = Change(
            trip_id=self.trip_id, sources=(Status.PENDING,), zone=self.zone.name,
            declines=driver_id, at_ms=claimed.now_ms,
        )  # fmt: skip
        settlement = Settlement(barred_driver=driver_id, inboxes=[driver_id])
        return Plan(change, settlement, OK, trip_body(_RESPONSE_CODE, trip_json(claimed.trip)))

    def committed(self, claimed: DeclineClaimed, plan: Plan, effects: SideEffects) -> None:
        # The offer's own row may reach Postgres only after this commit, so the log closes it then.
        effects.offer_log.record(
            self.trip_id, [self.caller.actor.user_id], OfferOutcome.DECLINED, claimed.now_ms
        )
