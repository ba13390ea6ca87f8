"""A driver accepts a trip: of all who try, one wins. An operator may do it for them."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar

from dispatcher.core.callers import Caller
from dispatcher.core.limits import LimitClass
from dispatcher.core.transitions import ACCEPT, ASSIGN, Transition
from dispatcher.core.zones import Zone
from dispatcher.ledger.changes import Change
from dispatcher.live.claim_results import AcceptClaimed, NotClaimed
from dispatcher.live.claims import Attempt
from dispatcher.live.keys import Keys
from dispatcher.observe.series import TIME_TO_ASSIGNMENT
from dispatcher.observe.straight_lines import STRAIGHT_LINES
from dispatcher.service.commands.command import Claims, Plan, SideEffects
from dispatcher.service.commands.transition import OK, transition_columns, transition_settlement
from dispatcher.service.messages import trip_body, trip_json
from dispatcher.service.offer_log import OfferOutcome


# Not frozen: that takes three times as long to make, and there is one for each driver of a crowd.
@dataclass(slots=True)
class AcceptTrip:
    """Answers 200, 404 trip_not_found, 403 not_offered, 409 with the reason.

    The driver is the caller, or whom an operator has chosen, by the transition ASSIGN: they need no
    offer, and everything else as if they had accepted.
    """

    is_race: ClassVar[bool] = True

    caller: Caller
    zone: Zone
    trip_id: str
    version: int | None
    driver_id: str
    transition: Transition = ACCEPT

    @property
    def limit_class(self) -> LimitClass:
        return self.transition.limit_class

    def claim(
        self, claims: Claims, keys: Keys, attempt: Attempt
    ) -> Coroutine[Any, Any, AcceptClaimed | NotClaimed]:
        return claims.claim_accept(
            keys, attempt, version=self.version,
            policy=self.zone.accept_policy if self.transition is ACCEPT else "open",
        )  # fmt: skip

    def plan(self, attempt: Attempt, claimed: AcceptClaimed) -> Plan:
        trip, actor, driver_id, transition = (
            claimed.trip, self.caller.actor, self.driver_id, self.transition,
        )  # fmt: skip
        after = transition.apply(
            trip, claimed.now_ms, driver_id=driver_id, driver_vehicle_type=claimed.vehicle_type
        )
        as_json = trip_json(after)
        change = Change(
            **transition_columns(attempt, actor, transition, trip, after), required_driver=driver_id
        )
        settlement = transition_settlement(transition, actor, trip, after, as_json, claimed.offered)
        return Plan(change, settlement, OK, trip_body(transition.event.response_code, as_json))

    def committed(self, claimed: AcceptClaimed, plan: Plan, effects: SideEffects) -> None:
        trip = claimed.trip
        # A trip that waits has not changed since it was created or released.
        waited_ms = claimed.now_ms - trip.updated_at
        TIME_TO_ASSIGNMENT.of(trip.zone).observe(waited_ms / 1000)
        line: dict[str, Any] = {
            "trip_id": trip.id, "driver_id": self.driver_id, "version": trip.version + 1,
            "zone": trip.zone, "by": self.caller.actor.role, "waited_ms": waited_ms,
            "offered": len(claimed.offered),
        }  # fmt: skip
        if self.transition is ASSIGN:
            line["operator"] = self.caller.actor.user_id
        STRAIGHT_LINES.write(logging.INFO, "dispatcher.trips", "Trip assigned", line)
        if not claimed.offered:
            return
        winner, at_ms = self.driver_id, claimed.now_ms
        others = [driver for driver in claimed.offered if driver != winner]
        effects.offer_log.record(self.trip_id, others, OfferOutcome.WITHDRAWN, at_ms)
        if winner in claimed.offered:
            effects.offer_log.record(self.trip_id, [winner], OfferOutcome.ACCEPTED, at_ms)
