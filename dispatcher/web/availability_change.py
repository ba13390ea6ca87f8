"""A driver's change of availability, by call or by frame: one body, one key, one command, one answer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple

from dispatcher.core.actors import Actor, Role
from dispatcher.core.callers import Caller
from dispatcher.core.errors import Refusal
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.service.answers import Answer
from dispatcher.service.availability import AvailabilityService
from dispatcher.web import requests
from dispatcher.web.idempotency_key import key_of

#: A key means the same by frame and by HTTP.
_ENDPOINT: Final = "/api/driver/availability"
#: The fields of an `availability` frame that are no part of the body that HTTP would have had.
_ENVELOPE: Final = frozenset({"type", "id", "idempotency_key"})


class AvailabilityFrame(NamedTuple):
    """What an `availability` frame asks for."""

    body: requests.Availability
    key: IdempotencyKey | None


def read_availability(actor: Actor, frame: dict[str, Any], *, key_required: bool) -> AvailabilityFrame:
    """The change of an `availability` frame. Raises Refusal with the codes of that call over HTTP."""
    if actor.role is not Role.DRIVER:
        raise Refusal("wrong_role")
    data = {name: value for name, value in frame.items() if name not in _ENVELOPE}
    body = requests.parse_model(requests.Availability, data)
    key = key_of(frame.get("idempotency_key"), actor, _ENDPOINT, data, required=key_required)
    return AvailabilityFrame(body, key)


class AvailabilityChange:
    """Has the change that a body asks for made."""

    def __init__(self, service: AvailabilityService, vehicle_types: Collection[str]) -> None:
        self._service = service
        self._vehicle_types = vehicle_types

    async def make(self, caller: Caller, body: requests.Availability) -> Answer:
        """Raises Refusal invalid_vehicle_type, and what `AvailabilityService.change` does."""
        requests.check_vehicle_type(body.vehicle_type, self._vehicle_types)
        return await self._service.change(
            caller,
            availability_status=body.availability_status,
            is_online=body.is_online,
            zone=body.zone,
            vehicle_type=body.vehicle_type,
            location=body.location.lat_lng() if body.location else None,
        )
