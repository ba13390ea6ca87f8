"""A customer asks for a trip."""

from __future__ import annotations

import os
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from dispatcher.core.actors import Role, address_of
from dispatcher.core.callers import Caller
from dispatcher.core.errors import Refusal
from dispatcher.core.limits import LimitClass
from dispatcher.core.transitions import Event
from dispatcher.core.trips import TRIP_SUFFIX, Trip
from dispatcher.core.zones import Zone, Zones
from dispatcher.ledger.changes import Change
from dispatcher.live.claim_results import CreationClaimed, NotClaimed
from dispatcher.live.claims import Attempt
from dispatcher.live.keys import Keys
from dispatcher.live.settlement import Settlement
from dispatcher.service.commands.command import Claims, Plan, SideEffects
from dispatcher.service.messages import (
    event_payload,
    stream_event,
    trip_body,
    trip_json,
    trip_messages,
)

_CREATED: Final = 201


@dataclass(frozen=True, slots=True)
class CreateTrip:
    """Answers 201, 409 trip_exists. Positions are (lat, lng) in degrees."""

    is_race: ClassVar[bool] = False

    caller: Caller
    zone: Zone
    trip_id: str
    pickup: tuple[float, float]
    dropoff: tuple[float, float] | None
    vehicle_type: str
    driver_id: str = ""
    limit_class: LimitClass = LimitClass.GENERAL

    def claim(
        self, claims: Claims, keys: Keys, attempt: Attempt
    ) -> Coroutine[Any, Any, CreationClaimed | NotClaimed]:
        return claims.claim_creation(keys, attempt)

    def plan(self, attempt: Attempt, claimed: CreationClaimed) -> Plan:
        actor, at_ms = self.caller.actor, claimed.now_ms
        trip = Trip(
            id=self.trip_id, zone=self.zone.name, customer_id=actor.user_id,
            vehicle_type=self.vehicle_type,
            pickup_lat=self.pickup[0], pickup_lng=self.pickup[1],
            dropoff_lat=self.dropoff[0] if self.dropoff else None,
            dropoff_lng=self.dropoff[1] if self.dropoff else None,
            created_at=at_ms, updated_at=at_ms,
        )  # fmt: skip
        columns, as_json = trip.to_json(), trip_json(trip)
        change = Change(
            trip_id=trip.id, is_creation=True, to_status=trip.current_status,
            zone=trip.zone, customer_id=trip.customer_id, vehicle_type=trip.vehicle_type,
            pickup=(self.pickup[1], self.pickup[0]),
            dropoff=(self.dropoff[1], self.dropoff[0]) if self.dropoff else None,
            event=Event.CREATED, actor_id=actor.user_id, actor_role=actor.role, at_ms=at_ms,
            payload=event_payload(
                attempt.token, trip, customer_id=trip.customer_id, vehicle_type=trip.vehicle_type,
                pickup=columns["pickup"], dropoff=columns["dropoff"],
            ),
        )  # fmt: skip
        settlement = Settlement(
            trip=trip,
            event=stream_event(Event.CREATED, actor, at_ms, as_json),
            messages=trip_messages(Event.CREATED, trip, as_json),
            arrives=address_of(Role.CUSTOMER, trip.customer_id),
        )
        return Plan(change, settlement, _CREATED, trip_body(Event.CREATED.response_code, as_json))

    def committed(self, claimed: CreationClaimed, plan: Plan, effects: SideEffects) -> None:
        pass


def create_trip(
    zones: Zones,
    caller: Caller,
    *,
    pickup: tuple[float, float],
    dropoff: tuple[float, float] | None = None,
    vehicle_type: str,
    zone: str | None = None,
    trip_request_id: str | None = None,
) -> CreateTrip:
    """A trip in the zone that is named, or in the one that holds the pickup.

    Raises Refusal invalid_zone, invalid_trip_id.
    """
    where = zones.get(zone) if zone else zones.locate(*pickup)
    if where is None:
        raise Refusal("invalid_zone")
    trip_id = _trip_id(where, trip_request_id)
    return CreateTrip(caller, where, trip_id, pickup, dropoff, vehicle_type)


def _trip_id(zone: Zone, asked: str | None) -> str:
    prefix = zone.name + "_"
    if asked is None:
        return prefix + _uuid7()
    # A caller's own id may name its zone, or be the suffix alone.
    suffix = asked.removeprefix(prefix)
    if not TRIP_SUFFIX.fullmatch(suffix):
        raise Refusal("invalid_trip_id")
    return prefix + suffix


def _uuid7() -> str:
    """A UUIDv7 (RFC 9562): ids that are made later sort later, so index pages fill in order."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
