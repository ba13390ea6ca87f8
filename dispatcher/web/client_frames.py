"""What clients send over the WebSocket: one model a frame, for its description (`asyncapi`).

`protocol` reads frames. They are what their bodies over HTTP are, in an envelope.
"""

from __future__ import annotations

from typing import Final, Literal

from dispatcher.web import requests
from dispatcher.web.answers import TRIP, Body, absent, example

FrameId = str | int
_PLACE: Final = {"lat": 40.7549, "lng": -73.984}


class AuthFrame(Body):
    """The token: the first frame of a socket that was opened without one, and a new token later."""

    model_config = example({"type": "auth", "token": "eyJhbGciOi…", "id": 1})

    type: Literal["auth"]
    token: str
    id: FrameId | None = absent("Is repeated in the answer")


class HeartbeatFrame(Body):
    """A sign of life; it is answered where it has an `id`."""

    model_config = example({"type": "heartbeat"})

    type: Literal["heartbeat"]
    id: FrameId | None = absent("Is repeated in the answer")


class FixFrame(requests.Fix):
    """A driver's position; it is answered where it has an `id`."""

    model_config = example({"type": "location", **_PLACE, "recorded_at": "2026-03-01T08:29:58.120Z"})

    type: Literal["location"]
    id: FrameId | None = absent("Is repeated in the answer")


class FixesFrame(requests.Fixes):
    """Positions that a driver's app has gathered; they are answered where the frame has an `id`."""

    model_config = example({"type": "location", "points": [_PLACE], "id": 2})

    type: Literal["location"]
    id: FrameId | None = absent("Is repeated in the answer")


class TripActionFrame(requests.TripAction):
    """A driver's step with a trip."""

    model_config = example(
        {
            "type": "trip_action", "action": "accept", "trip_request_id": TRIP["id"],
            "idempotency_key": "accept-1", "id": 3,
        }
    )  # fmt: skip

    type: Literal["trip_action"]
    idempotency_key: str | None = absent("As the header over HTTP")
    id: FrameId | None = absent("Is repeated in the answer")


class AvailabilityFrame(requests.Availability):
    """A driver's change of availability."""

    model_config = example(
        {"type": "availability", "is_online": True, "idempotency_key": "online-1", "id": 7}
    )

    type: Literal["availability"]
    idempotency_key: str | None = absent("As the header over HTTP")
    id: FrameId | None = absent("Is repeated in the answer")


class CancelFrame(requests.Cancellation):
    """A customer or an admin cancels a trip."""

    model_config = example(
        {"type": "trip_action", "action": "cancel", "trip_request_id": TRIP["id"], "id": 4}
    )

    type: Literal["trip_action"]
    action: Literal["cancel"]
    idempotency_key: str | None = absent("As the header over HTTP")
    id: FrameId | None = absent("Is repeated in the answer")


class WatchFrame(Body):
    """An admin is shown this zone from now on, once a second."""

    model_config = example({"type": "watch", "zone": "default", "id": 5})

    type: Literal["watch"]
    zone: requests.ZoneName
    id: FrameId | None = absent("Is repeated in the answer")


class UnwatchFrame(Body):
    """An admin is shown no zone any more."""

    model_config = example({"type": "unwatch", "id": 6})

    type: Literal["unwatch"]
    id: FrameId | None = absent("Is repeated in the answer")
