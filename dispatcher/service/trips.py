"""Trips: created, taken, driven, cancelled, and looked at."""

from __future__ import annotations

import os
import time
from typing import Any, Final

import orjson

from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import Refusal
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.times import iso, millis
from dispatcher.core.transitions import (
    ACCEPT,
    CANCEL,
    DRIVER_ACTIONS,
    EXPIRE,
    GIVE_BACK,
    DriverEffect,
    Transition,
)
from dispatcher.core.trips import TRIP_ID, TRIP_SUFFIX, Status, Trip, zone_of
from dispatcher.core.zones import Zone, Zones
from dispatcher.ledger.commits import Change
from dispatcher.live.keys import keys_of
from dispatcher.live.scripts import Attempt, Settlement, Verdict, flat_to_dict
from dispatcher.service.answers import Answer
from dispatcher.service.coordinator import Plan, Road
from dispatcher.service.messages import (
    event_name,
    event_payload,
    shown,
    stream_event,
    trip_body,
    trip_messages,
)
from dispatcher.service.offer_log import OfferLog
from dispatcher.service.rate_limits import Limits
from dispatcher.service.wave_wakeups import Bell

SYSTEM: Final = Actor("dispatcher", Role.SYSTEM)
_MOST_ROWS: Final = 500


def new_suffix() -> str:
    """A UUIDv7 (RFC 9562): ids that are made later sort later, so index pages fill in order."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class Trips:
    """All changes of trips. Answers are ready to be sent; Refusals are raised before a claim."""

    def __init__(
        self,
        *,
        road: Road,
        zones: Zones,
        limits: Limits,
        bell: Bell,
        rows: OfferLog,
        key_ttl_s: int,
    ) -> None:
        self._bell = bell
        self._rows = rows
        self._road = road
        self._zones = zones
        self._limits = limits
        self._key_ttl_ms = key_ttl_s * 1000

    def _zone(self, trip_id: str) -> Zone:
        zone = self._zones.get(zone_of(trip_id)) if TRIP_ID.fullmatch(trip_id) else None
        if zone is None:
            raise Refusal("trip_not_found")
        return zone

    async def create(
        self,
        actor: Actor,
        *,
        pickup: tuple[float, float],
        dropoff: tuple[float, float] | None,
        vehicle_type: str,
        zone: str | None,
        trip_request_id: str | None,
        key: IdempotencyKey | None,
        ip: str | None,
    ) -> Answer:
        """Creates a trip; places are (lat, lng). Answers 201, 409 trip_exists."""
        where = self._zones.get(zone) if zone else self._zones.locate(*pickup)
        if where is None:
            raise Refusal("invalid_zone")
        trip_id = self._id_for(where, trip_request_id)
        keys = keys_of(where.name)
        attempt = self._road.attempt(trip_id, "", key, self._limits.of("general", actor, ip, where))

        def plan(verdict: Verdict) -> Plan:
            now = verdict.now_ms
            trip = Trip(
                id=trip_id, zone=where.name, customer_id=actor.user_id, vehicle_type=vehicle_type,
                pickup_lat=pickup[0], pickup_lng=pickup[1],
                dropoff_lat=dropoff[0] if dropoff else None,
                dropoff_lng=dropoff[1] if dropoff else None,
                created_at=now, updated_at=now,
            )  # fmt: skip
            as_json = shown(trip)
            body = trip_body("trip_created", as_json)
            change = Change(
                trip_id=trip_id, is_creation=True, to_status=trip.current_status,
                zone=where.name, customer_id=actor.user_id, vehicle_type=vehicle_type,
                pickup=(pickup[1], pickup[0]),
                dropoff=(dropoff[1], dropoff[0]) if dropoff else None,
                event="created", actor_id=actor.user_id, actor_role=actor.role, at_ms=now,
                payload=event_payload(
                    attempt.token, trip, customer_id=trip.customer_id,
                    vehicle_type=vehicle_type, pickup=trip.to_json()["pickup"],
                    dropoff=trip.to_json()["dropoff"],
                ),
                key=key, response=body.decode(), status_code=201,
                expires_at_ms=now + self._key_ttl_ms,
            )  # fmt: skip
            settlement = Settlement(
                trip=trip,
                event=stream_event("created", actor, now, as_json),
                message=trip_messages("created", trip, as_json, former_driver=None, offered=()),
            )
            return Plan(change, settlement, 201, body)

        answer = await self._road.travel(
            keys, actor, attempt, lambda a: self._road.scripts.claim_creation(keys, a), plan
        )
        if answer.status == 201 and not answer.replayed:
            self._bell.ring(where.name)
        return answer

    def _id_for(self, zone: Zone, wanted: str | None) -> str:
        if wanted is None:
            return f"{zone.name}_{new_suffix()}"
        prefix = zone.name + "_"
        suffix = wanted.removeprefix(prefix)
        if not TRIP_SUFFIX.fullmatch(suffix):
            raise Refusal("invalid_trip_id")
        return prefix + suffix

    async def act(
        self,
        actor: Actor,
        action: str,
        trip_id: str,
        *,
        version: int | None,
        key: IdempotencyKey | None,
        ip: str | None,
        reason: str | None = None,
    ) -> Answer:
        """Takes one step with a trip, as driver, customer or admin; see model.TRANSITIONS."""
        try:
            zone = self._zone(trip_id)
        except Refusal as refusal:
            # No zone, no script that would count the call: whoever tries ids is limited all the same.
            refusal.limit = await self._limits.check("general", actor, ip)
            raise
        if actor.role is Role.DRIVER:
            if action == "decline":
                return await self._decline(actor, trip_id, zone, version, key, ip)
            transition = DRIVER_ACTIONS.get(action)
        else:
            transition = CANCEL if action == "cancel" else None
        if transition is None:
            raise Refusal("unknown_action")
        return await self._take(actor, transition, trip_id, zone, version, key, ip, reason)

    async def expire(self, trip_id: str) -> Answer:
        """No driver after the last wave: the trip is over, and its customer is told."""
        return await self._take(SYSTEM, EXPIRE, trip_id, self._zone(trip_id), None, None, None)

    async def _take(
        self,
        actor: Actor,
        transition: Transition,
        trip_id: str,
        zone: Zone,
        version: int | None,
        key: IdempotencyKey | None,
        ip: str | None,
        reason: str | None = None,
    ) -> Answer:
        keys, scripts = keys_of(zone.name), self._road.scripts
        limits = (
            [] if actor.role is Role.SYSTEM else self._limits.of(transition.limit_class, actor, ip, zone)
        )
        accepting = transition is ACCEPT
        attempt = self._road.attempt(trip_id, actor.user_id if accepting else "", key, limits)

        async def claim(a: Attempt) -> Verdict:
            if accepting:
                return await scripts.claim_accept(keys, a, version=version, policy=zone.accept_policy)
            return await scripts.claim_transition(
                keys, a, version=version, role=actor.role, actor=actor.user_id,
                sources=transition.sources,
            )  # fmt: skip

        offered: list[str] = []

        def plan(verdict: Verdict) -> Plan:
            trip = Trip.from_hash(flat_to_dict(verdict.detail[0]))
            offered[:] = verdict.detail[-1]
            vehicle = str(verdict.detail[1]) if accepting else (trip.driver_vehicle_type or "")
            return self._plan_transition(
                attempt, actor, transition, trip, verdict.now_ms,
                vehicle=vehicle, offered=offered, reason=reason,
            )  # fmt: skip

        answer = await self._road.travel(keys, actor, attempt, claim, plan)
        if answer.status == 200 and not answer.replayed:
            if transition is GIVE_BACK:
                self._bell.ring(zone.name)
            if offered:
                now_ms = time.time_ns() // 1_000_000
                winner = actor.user_id if accepting else None
                others = [driver for driver in offered if driver != winner]
                self._rows.outcome(trip_id, others, "withdrawn", now_ms)
                if winner in offered:
                    self._rows.outcome(trip_id, [winner], "accepted", now_ms)
        return answer

    def _plan_transition(
        self,
        attempt: Attempt,
        actor: Actor,
        transition: Transition,
        trip: Trip,
        now: int,
        *,
        vehicle: str,
        offered: list[str],
        reason: str | None,
    ) -> Plan:
        accepting = transition is ACCEPT
        changes: dict[str, Any] = {}
        if accepting:
            changes = {"driver_id": actor.user_id, "driver_vehicle_type": vehicle}
        if transition is CANCEL:
            changes["cancel_reason"] = reason
        after = transition.apply(trip, now, **changes)
        as_json = shown(after)
        body = trip_body(event_name(transition), as_json)
        change = Change(
            **transition_columns(attempt, actor, transition, trip, after, reason),
            required_driver=actor.user_id if accepting else None,
            key=attempt.key, response=body.decode(), status_code=200,
            expires_at_ms=now + self._key_ttl_ms,
        )  # fmt: skip
        settlement = settlement_of(transition, actor, trip, after, as_json, offered, vehicle)
        return Plan(change, settlement, 200, body)

    async def _decline(
        self,
        actor: Actor,
        trip_id: str,
        zone: Zone,
        version: int | None,
        key: IdempotencyKey | None,
        ip: str | None,
    ) -> Answer:
        keys, scripts = keys_of(zone.name), self._road.scripts
        attempt = self._road.attempt(trip_id, "", key, self._limits.of("general", actor, ip, zone))

        def plan(verdict: Verdict) -> Plan:
            trip = Trip.from_hash(flat_to_dict(verdict.detail[0]))
            body = trip_body("trip_declined", shown(trip))
            change = Change(
                trip_id=trip_id, sources=(Status.PENDING,), zone=zone.name,
                declines=actor.user_id, at_ms=verdict.now_ms,
                key=key, response=body.decode(), status_code=200,
                expires_at_ms=verdict.now_ms + self._key_ttl_ms,
            )  # fmt: skip
            self._rows.outcome(trip_id, [actor.user_id], "declined", verdict.now_ms)
            settlement = Settlement(bars=actor.user_id, inboxes=[actor.user_id])
            return Plan(change, settlement, 200, body)

        answer = await self._road.travel(
            keys, actor, attempt, lambda a: scripts.claim_decline(keys, a, version=version), plan
        )
        if answer.status == 200:
            self._bell.ring(zone.name)
        return answer

    async def read(self, actor: Actor, trip_id: str) -> Trip:
        """A trip of the actor's own, as Postgres has it; any trip for an admin."""
        self._zone(trip_id)
        trip = await self._road.database.trip(trip_id)
        owner = {
            Role.DRIVER: trip.driver_id if trip else None,
            Role.CUSTOMER: trip.customer_id if trip else None,
            Role.ADMIN: actor.user_id,
        }
        if trip is None or owner.get(actor.role) != actor.user_id:
            raise Refusal("trip_not_found")
        return trip

    async def timeline(self, trip_id: str) -> list[dict[str, Any]]:
        """The history of a trip, a row a version."""
        self._zone(trip_id)
        rows = await self._road.database.rows("timeline", trip_id=trip_id)
        if not rows:
            raise Refusal("trip_not_found")
        return [{**row, "created_at": iso(millis(row["created_at"]))} for row in rows]

    async def abandoned(self, zone: str | None, older_than_s: int) -> list[dict[str, Any]]:
        """Trips that were taken longer ago than that and have not started, oldest first."""
        rows = await self._road.database.rows(
            "abandoned", zone=zone, older_than_s=float(older_than_s), most=_MOST_ROWS
        )
        return [{**row, "locked_at": iso(millis(row["locked_at"]))} for row in rows]

    async def zone_statistics(self, zone: str) -> dict[str, Any]:
        """Live trips by state, and drivers, of a zone."""
        if self._zones.get(zone) is None:
            raise Refusal("invalid_zone")
        rows = await self._road.database.rows("zone_statistics", zone=zone)
        return {"zone": zone, "trips": {row["current_status"]: row["trips"] for row in rows}}


def transition_columns(
    attempt: Attempt, actor: Actor, transition: Transition, trip: Trip, after: Trip,
    reason: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The columns of a `Change` that move a trip from `trip` to `after`."""
    more = {"reason": reason} if reason else {}
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


def settlement_of(
    transition: Transition,
    actor: Actor,
    trip: Trip,
    after: Trip,
    as_json: orjson.Fragment,
    offered: list[str],
    vehicle: str,
) -> Settlement:
    """What the picture and the sockets learn of a transition."""
    taken = transition.driver is DriverEffect.TAKES
    freed = transition.driver in (DriverEffect.FREED, DriverEffect.CLEARED)
    former = trip.driver_id if freed else None
    return Settlement(
        trip=after._replace(driver_vehicle_type=None) if freed else after,
        before=trip,
        driver_id=(after.driver_id if taken else former) or "",
        driver_vehicle=vehicle,
        effect="take" if taken else "free" if former else "",
        bars=former if former and transition.driver is DriverEffect.CLEARED else "",
        inboxes=offered,
        event=stream_event(transition.event, actor, after.updated_at, as_json),
        message=trip_messages(transition.event, after, as_json, former_driver=former, offered=offered),
    )
