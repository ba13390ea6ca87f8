"""Drivers: their availability, their positions, and the trips around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from dispatcher.core.actors import Actor, Role
from dispatcher.core.drivers import AvailabilityStatus, Driver
from dispatcher.core.errors import Refusal
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.transitions import RELEASE
from dispatcher.core.trips import DEFAULT_VEHICLE_TYPE, Trip
from dispatcher.core.zones import DEFAULT_ZONE, Zones
from dispatcher.ledger.commits import Change
from dispatcher.ledger.database import trip_from_row
from dispatcher.live.keys import keys_of
from dispatcher.live.scripts import (
    Attempt,
    Settlement,
    Verdict,
    driver_fields,
    driver_from_hash,
    flat_to_dict,
)
from dispatcher.service.answers import Answer, RateLimited, driver_body, refusal_answer
from dispatcher.service.coordinator import Plan, Road
from dispatcher.service.driver_directory import Homes
from dispatcher.service.messages import shown
from dispatcher.service.positions import Positions
from dispatcher.service.rate_limits import Limits
from dispatcher.service.trips import settlement_of, transition_columns
from dispatcher.service.wave_wakeups import Bell

#: How far `pending` looks around a driver.
_NEAR_M: Final = 10_000.0
_METRES_PER_DEGREE: Final = 111_195.0


class Drivers:
    """All changes of drivers."""

    def __init__(
        self,
        *,
        road: Road,
        zones: Zones,
        limits: Limits,
        homes: Homes,
        positions: Positions,
        bell: Bell,
        key_ttl_s: int,
    ) -> None:
        self._bell = bell
        self._road = road
        self._zones = zones
        self._limits = limits
        self._homes = homes
        self._positions = positions
        self._key_ttl_ms = key_ttl_s * 1000

    async def set_availability(
        self,
        actor: Actor,
        *,
        availability_status: str | None,
        is_online: bool | None,
        zone: str | None,
        vehicle_type: str | None,
        location: tuple[float, float] | None,
        key: IdempotencyKey | None,
        ip: str | None,
    ) -> Answer:
        """Changes what a driver offers; None leaves a thing as it is.

        Going offline releases a trip that has not started, in the same commit. Answers 200,
        409 driver_has_active_trip where zone or vehicle change during a trip.
        """
        home = await self._homes.of(actor.user_id)
        goal = zone or (home[0] if home else None)
        if goal is None:
            goal = self._zones.locate(*location).name if location else DEFAULT_ZONE
        if self._zones.get(goal) is None:
            raise Refusal("invalid_zone")
        source = home[0] if home and self._zones.get(home[0]) else goal
        answer = await self._change(
            actor, source, goal, availability_status, is_online, vehicle_type, key, ip
        )
        if answer.status == 200 and location is not None and not answer.replayed:
            await self._positions.take(actor.user_id, [(*location, None)])
        return answer

    async def _change(
        self,
        actor: Actor,
        source: str,
        goal: str,
        availability_status: str | None,
        is_online: bool | None,
        vehicle_type: str | None,
        key: IdempotencyKey | None,
        ip: str | None,
    ) -> Answer:
        keys, scripts = keys_of(source), self._road.scripts
        limits = (
            []
            if actor.role is Role.SYSTEM
            else self._limits.of("general", actor, ip, self._zones.get(source))
        )
        attempt = self._road.attempt("", actor.user_id, key, limits)
        moved: list[tuple[Driver, Trip | None]] = []

        async def claim(a: Attempt) -> Verdict:
            return await scripts.claim_availability(
                keys, a, goes_offline=is_online is False, changes_zone=goal != source,
                vehicle_type=vehicle_type or "",
            )  # fmt: skip

        def plan(verdict: Verdict) -> Plan:
            now = verdict.now_ms
            before = driver_from_hash(actor.user_id, source, flat_to_dict(verdict.detail[0]))
            online = before.is_online if is_online is None else is_online
            first = before.version < 0  # going online without a word means available
            after = Driver(
                user_id=actor.user_id,
                zone=goal,
                availability_status=AvailabilityStatus(
                    availability_status
                    or ("available" if first and online else before.availability_status)
                ),
                is_online=online,
                vehicle_type=vehicle_type or before.vehicle_type or DEFAULT_VEHICLE_TYPE,
                version=before.version + 1,
                updated_at=now,
                trip_id=before.trip_id,
            )
            columns: dict[str, Any] = {"zone": source, "at_ms": now}
            settlement = Settlement()
            released = None
            if verdict.detail[1]:
                trip = Trip.from_hash(flat_to_dict(verdict.detail[1]))
                released = RELEASE.apply(trip, now)
                after = replace(after, trip_id=None)
                columns = transition_columns(attempt, actor, RELEASE, trip, released, "driver_offline")
                settlement = settlement_of(RELEASE, actor, trip, released, shown(released), [], "")
            settlement.driver_id = actor.user_id
            settlement.driver_vehicle = before.vehicle_type or after.vehicle_type
            settlement.effect = "free" if released else "state"
            here = after if goal == source else replace(after, is_online=False)
            settlement.driver_fields = driver_fields(here)
            body = driver_body(after, released)
            change = Change(
                **columns,
                set_driver=actor.user_id, set_zone=goal, set_online=online,
                set_available=after.availability_status, set_vehicle=after.vehicle_type,
                expect_driver_version=before.version,
                key=key, response=body.decode(), status_code=200,
                expires_at_ms=now + self._key_ttl_ms,
            )  # fmt: skip
            moved[:] = [(after, released)]
            return Plan(change, settlement, 200, body)

        answer = await self._road.travel(keys, actor, attempt, claim, plan)
        if answer.status == 200 and not answer.replayed:
            after, released = moved[0]
            self._homes.learn(actor.user_id, goal, after.vehicle_type)
            if released:
                self._bell.ring(source)
            if goal != source:
                there = Settlement(
                    driver_id=actor.user_id, driver_vehicle=after.vehicle_type, effect="state",
                    driver_fields=driver_fields(after),
                )  # fmt: skip
                await self._road.announce(keys_of(goal), attempt, there)
        else:
            self._homes.forget(actor.user_id)
        return answer

    async def is_online(self, zone: str, driver_id: str) -> bool:
        """Whether the live picture has the driver online in the zone."""
        return await self._road.scripts.is_online(keys_of(zone), driver_id)

    async def go_offline(self, zone: str, driver_id: str) -> Answer:
        """The driver is lost: offline, and what has not started is released."""
        return await self._change(
            Actor(driver_id, Role.SYSTEM), zone, zone, None, False, None, None, None
        )

    async def positions(
        self, actor: Actor, points: Sequence[tuple[float, float, int | None]], *, ip: str | None
    ) -> Answer:
        """Takes a driver's fixes: (lat, lng, ms or None for now). Answers 202."""
        limits = self._limits.of("location_update", actor, ip)
        try:
            taken, limit = await self._positions.take(actor.user_id, points, limits)
        except RateLimited as refusal:
            return refusal_answer(refusal)
        body = orjson.dumps({"response_code": "location_updated", "taken": taken})
        return Answer(202, body, limit)

    async def pending_near(self, actor: Actor, limit: int) -> list[dict[str, Any]]:
        """Pending trips of the driver's vehicle type around their last fix, nearest first.

        Each with `distance_m`. Raises Refusal driver_not_online where there is no fix.
        """
        home = await self._homes.of(actor.user_id)
        fix = await self._positions.last(home[0], actor.user_id) if home else None
        if home is None or fix is None:
            raise Refusal("driver_not_online", "Go online and send a position first.")
        lat, lng = fix
        north = _NEAR_M / _METRES_PER_DEGREE
        east = north / max(0.01, math.cos(math.radians(lat)))
        rows = await self._road.database.rows(
            "pending_near",
            lat=lat, lng=lng, zone=home[0], vehicle_type=home[1], driver_id=actor.user_id,
            west=lng - east, east=lng + east, south=lat - north, north=lat + north, most=limit,
        )  # fmt: skip
        found = [
            {**trip_from_row(row).to_json(), "distance_m": round(row["distance_m"], 1)} for row in rows
        ]
        return sorted(found, key=lambda trip: trip["distance_m"])
