"""Actions and positions that come by WebSocket: the models, keys and limits of HTTP."""

from __future__ import annotations

from typing import Any, Final

from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import Refusal
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.service.answers import Answer, refusal_answer
from dispatcher.service.drivers import Drivers
from dispatcher.service.rate_limits import Limits
from dispatcher.service.trips import Trips
from dispatcher.web import idempotency_key, requests

Frame = dict[str, Any]

#: A key means the same by frame and by HTTP: an app may retry the other way.
_ROUTES: Final = {
    Role.DRIVER: "/api/driver/ride/trip-action",
    Role.CUSTOMER: "/api/customer/ride/cancel",
    Role.ADMIN: "/api/admin/ride/cancel",
}
_ENVELOPE: Final = frozenset({"type", "id", "idempotency_key"})


class Frames:
    """Answers what the frames `trip_action` and `location` ask for."""

    def __init__(
        self, *, trips: Trips, drivers: Drivers, limits: Limits, key_required: bool = False
    ) -> None:
        self._trips = trips
        self._drivers = drivers
        self._limits = limits
        self._key_required = key_required

    async def act(self, actor: Actor, frame: Frame, ip: str | None) -> Answer:
        """A step with a trip; customers and admins can only cancel."""
        try:
            action, asked, key = self._read_action(actor, frame)
        except Refusal as refusal:
            return await self._refuse(refusal, actor, ip)
        return await self._trips.act(
            actor, action, asked.trip_request_id,
            version=asked.version, key=key, ip=ip, reason=asked.reason,
        )  # fmt: skip

    async def locate(self, actor: Actor, frame: Frame, ip: str | None) -> Answer:
        """A driver's positions."""
        try:
            if actor.role is not Role.DRIVER:
                raise Refusal("wrong_role")
            points = requests.check_fixes(frame)
        except Refusal as refusal:
            return await self._refuse(refusal, actor, ip)
        return await self._drivers.positions(actor, points, ip=ip)

    def _read_action(
        self, actor: Actor, frame: Frame
    ) -> tuple[str, requests.TripAction | requests.Cancellation, IdempotencyKey | None]:
        body = {name: value for name, value in frame.items() if name not in _ENVELOPE}
        asked: requests.TripAction | requests.Cancellation
        if actor.role is Role.DRIVER:
            asked = requests.check(requests.TripAction, body)
            action: str = asked.action
        else:
            if body.pop("action", None) != "cancel":
                raise Refusal("unknown_action", "Only a driver may do anything but cancel.")
            asked, action = requests.check(requests.Cancellation, body), "cancel"
        key = idempotency_key.key_of(
            frame.get("idempotency_key"), actor, _ROUTES[actor.role], body, required=self._key_required
        )
        return action, asked, key

    async def _refuse(self, refusal: Refusal, actor: Actor, ip: str | None) -> Answer:
        return refusal_answer(refusal, await self._limits.check("general", actor, ip))
