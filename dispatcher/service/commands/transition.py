"""A trip takes a step of the table of transitions: arrive, start, complete, cancel, expire."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import orjson
import structlog

from dispatcher.core.actors import Actor, Role
from dispatcher.core.callers import Caller
from dispatcher.core.limits import LimitClass
from dispatcher.core.transitions import CANCEL, DriverEffect, Transition
from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zone
from dispatcher.ledger.changes import Change
from dispatcher.live.claim_results import NotClaimed, TransitionClaimed
from dispatcher.live.claims import Attempt
from dispatcher.live.keys import Keys
from dispatcher.live.settlement import SettleEffect, Settlement
from dispatcher.service.commands.command import Claims, Plan, SideEffects
from dispatcher.service.messages import (
    event_payload,
    stream_event,
    trip_body,
    trip_json,
    trip_messages,
)
from dispatcher.service.offer_log import OfferOutcome

log = structlog.get_logger("dispatcher.trips")

OK: Final = 200


@dataclass(frozen=True, slots=True)
class TakeTransition:
    """Answers 200, 404 trip_not_found, 409 invalid_trip_status, version_conflict, trip_busy."""

    is_race: ClassVar[bool] = False

    caller: Caller
    zone: Zone
    trip_id: str
    transition: Transition
    version: int | None = None
    reason: str | None = None
    driver_id: str = ""

    @property
    def limit_class(self) -> LimitClass:
        return self.transition.limit_class

    def claim(
        self, claims: Claims, keys: Keys, attempt: Attempt
    ) -> Coroutine[Any, Any, TransitionClaimed | NotClaimed]:
        return claims.claim_transition(
            keys, attempt, version=self.version, actor=self.caller.actor,
            sources=self.transition.sources,
        )  # fmt: skip

    def plan(self, attempt: Attempt, claimed: TransitionClaimed) -> Plan:
        trip, transition, actor = claimed.trip, self.transition, self.caller.actor
        columns = {"cancel_reason": self.reason} if transition is CANCEL else {}
        after = transition.apply(trip, claimed.now_ms, **columns)
        as_json = trip_json(after)
        change = Change(**transition_columns(attempt, actor, transition, trip, after, self.reason))
        settlement = transition_settlement(transition, actor, trip, after, as_json, claimed.offered)
        return Plan(change, settlement, OK, trip_body(transition.event.response_code, as_json))

    def committed(self, claimed: TransitionClaimed, plan: Plan, effects: SideEffects) -> None:
        effects.offer_log.record(self.trip_id, claimed.offered, OfferOutcome.WITHDRAWN, claimed.now_ms)
        actor = self.caller.actor
        if actor.role is Role.ADMIN:
            trip = claimed.trip
            log.info(
                f"Trip {self.transition.event} by an operator",
                operator=actor.user_id, trip_id=trip.id, driver_id=trip.driver_id, zone=trip.zone,
                version=trip.version + 1,
            )  # fmt: skip


def transition_columns(
    attempt: Attempt,
    actor: Actor,
    transition: Transition,
    trip: Trip,
    after: Trip,
    reason: str | None = None,
    **details: str,
) -> dict[str, Any]:
    """The columns of a `Change` that move a trip from `trip` to `after`; `details` go into its event."""
    more = details | {"reason": reason} if reason else details
    return {
        "trip_id": trip.id,
        "expect_version": trip.version,
        "sources": tuple(transition.sources),
        "to_status": after.current_status,
        "driver_id": after.driver_id,
        "zone": trip.zone,
        "reason": reason,
        "event": transition.event,
        "actor_id": actor.user_id,
        "actor_role": actor.role,
        "payload": event_payload(attempt.token, after, **more),
        "at_ms": after.updated_at,
    }


def transition_settlement(
    transition: Transition,
    actor: Actor,
    trip: Trip,
    after: Trip,
    as_json: orjson.Fragment,
    offered: Sequence[str],
) -> Settlement:
    """What the live state and the sockets learn of a transition.

    A driver who is free again returns to the geo set of their vehicle type, which the trip names.
    """
    frees_driver = transition.frees_driver
    former = trip.driver_id if frees_driver else None
    driver_id, effect = "", None
    if transition.driver is DriverEffect.TAKES:
        driver_id, effect = after.driver_id or "", SettleEffect.TAKE
    elif former:
        driver_id, effect = former, SettleEffect.FREE
    return Settlement(
        trip=after._replace(driver_vehicle_type=None) if frees_driver else after,
        before=trip,
        driver_id=driver_id,
        driver_vehicle_type=after.driver_vehicle_type or trip.driver_vehicle_type or "",
        effect=effect,
        barred_driver=former if former and transition.driver is DriverEffect.CLEARED else "",
        inboxes=offered,
        event=stream_event(transition.event, actor, after.updated_at, as_json),
        messages=trip_messages(transition.event, after, as_json, former_driver=former, offered=offered),
    )
