"""A driver accepts a trip: of all who try, one wins."""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.core.callers import Caller
from dispatcher.core.limits import LimitClass
from dispatcher.core.times import now_ms
from dispatcher.core.transitions import ACCEPT
from dispatcher.core.zones import Zone
from dispatcher.ledger.changes import Change
from dispatcher.live.claim_results import AcceptClaimed, NotClaimed
from dispatcher.live.claims import Attempt, ClaimScripts
from dispatcher.live.keys import Keys
from dispatcher.service.commands.command import Plan, SideEffects
from dispatcher.service.commands.transition import OK, transition_columns, transition_settlement
from dispatcher.service.messages import trip_body, trip_json
from dispatcher.service.offer_log import OfferOutcome


@dataclass(frozen=True, slots=True)
class AcceptTrip:
    """Answers 200, 404 trip_not_found, 403 not_offered, 409 with the reason."""

    caller: Caller
    zone: Zone
    trip_id: str
    version: int | None = None
    limit_class: LimitClass = ACCEPT.limit_class

    @property
    def driver_id(self) -> str:
        return self.caller.actor.user_id

    async def claim(
        self, claims: ClaimScripts, keys: Keys, attempt: Attempt
    ) -> AcceptClaimed | NotClaimed:
        return await claims.claim_accept(
            keys, attempt, version=self.version, policy=self.zone.accept_policy
        )

    def plan(self, attempt: Attempt, claimed: AcceptClaimed) -> Plan:
        trip, actor = claimed.trip, self.caller.actor
        after = ACCEPT.apply(
            trip, claimed.now_ms,
            driver_id=actor.user_id, driver_vehicle_type=claimed.vehicle_type,
        )  # fmt: skip
        as_json = trip_json(after)
        change = Change(
            **transition_columns(attempt, actor, ACCEPT, trip, after), required_driver=actor.user_id
        )
        settlement = transition_settlement(ACCEPT, actor, trip, after, as_json, claimed.offered)
        return Plan(change, settlement, OK, trip_body(ACCEPT.event.response_code, as_json))

    def committed(self, claimed: AcceptClaimed, plan: Plan, effects: SideEffects) -> None:
        if not claimed.offered:
            return
        winner, at_ms = self.driver_id, now_ms()
        others = [driver for driver in claimed.offered if driver != winner]
        effects.offer_log.record(self.trip_id, others, OfferOutcome.WITHDRAWN, at_ms)
        if winner in claimed.offered:
            effects.offer_log.record(self.trip_id, [winner], OfferOutcome.ACCEPTED, at_ms)
