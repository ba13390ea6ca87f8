"""The frames that ask for something: the same commands, keys and limits as over HTTP."""

from __future__ import annotations

from collections.abc import Collection

from dispatcher.core.actors import Actor
from dispatcher.core.callers import Caller
from dispatcher.core.errors import Refusal
from dispatcher.core.zones import Zones
from dispatcher.observe.call_ids import TRIP_ID
from dispatcher.service.answers import Answer
from dispatcher.service.availability import AvailabilityService
from dispatcher.service.commands.actions import trip_action
from dispatcher.service.coordinator import Coordinator
from dispatcher.service.positions import Positions
from dispatcher.service.rate_limits import RateLimits
from dispatcher.web.availability_change import AvailabilityChange, read_availability
from dispatcher.web.problems import counted_answer
from dispatcher.web.protocol import Frame, read_positions, read_trip_action
from dispatcher.web.request_ids import name_trip


class FrameHandlers:
    """One method a frame; refusals are answers here, and counted like those over HTTP."""

    def __init__(
        self,
        *,
        zones: Zones,
        coordinator: Coordinator,
        positions: Positions,
        availability: AvailabilityService,
        vehicle_types: Collection[str],
        limits: RateLimits,
        idempotency_required: bool = False,
    ) -> None:
        self._zones = zones
        self._coordinator = coordinator
        self._positions = positions
        self._availability = AvailabilityChange(availability, vehicle_types)
        self._limits = limits
        self._idempotency_required = idempotency_required

    async def trip_action(self, actor: Actor, frame: Frame, ip: str | None) -> Answer:
        """A step with a trip. Raises StoreUnavailable, OutcomeUnknown."""
        try:
            asked = read_trip_action(actor, frame, key_required=self._idempotency_required)
            TRIP_ID.set(asked.trip_id)
            command = trip_action(
                self._zones, Caller(actor, asked.key, ip), asked.action, asked.trip_id,
                version=asked.version, reason=asked.reason,
            )  # fmt: skip
            return await self._coordinator.execute(command)
        except Refusal as refusal:
            name_trip(frame.get("trip_request_id"))
            return await counted_answer(refusal, self._limits, actor, ip)

    async def availability(self, actor: Actor, frame: Frame, ip: str | None) -> Answer:
        """A change of availability. Raises StoreUnavailable, OutcomeUnknown."""
        try:
            body, key = read_availability(actor, frame, key_required=self._idempotency_required)
            return await self._availability.make(Caller(actor, key, ip), body)
        except Refusal as refusal:
            return await counted_answer(refusal, self._limits, actor, ip)

    async def location(self, actor: Actor, frame: Frame, ip: str | None) -> Answer:
        """A driver's positions. Raises StoreUnavailable."""
        try:
            points = read_positions(actor, frame)
            return await self._positions.report(Caller(actor, ip=ip), points)
        except Refusal as refusal:
            return await counted_answer(refusal, self._limits, actor, ip)
