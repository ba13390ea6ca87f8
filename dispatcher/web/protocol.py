"""The WebSocket's protocol: every frame in both directions, and every code that closes one.

A frame is a JSON object with a `type`. What a client sends is read and checked here. Of what the
server sends, `welcome`, `ack` and `error` are encoded here; the others are encoded where the change
happens, which may be another server. `server_frames` says what is in them.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any, Final, NamedTuple

import orjson
from pydantic import BaseModel

from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import Refusal
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.service.answers import Answer
from dispatcher.web import client_frames, query_parameters, requests, server_frames
from dispatcher.web.idempotency_key import key_of
from dispatcher.web.json_object import MAX_BODY, parse_json_object

Frame = dict[str, Any]

#: In bytes, like a body over HTTP.
MAX_FRAME: Final = MAX_BODY


class CloseCode(IntEnum):
    """Why the server closes a socket: codes of RFC 6455, and our own from 4400 on.

    CLOSE_REASONS has each of them in words.
    """

    PROTOCOL_ERROR = 1002
    UNSUPPORTED = 1003
    INVALID_TEXT = 1007
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_FIRST_FRAME = 4400
    UNAUTHORIZED = 4401
    NO_HEARTBEAT = 4408
    TOO_SLOW = 4413
    TOO_MANY_FRAMES = 4429


CLOSE_REASONS: Final = {
    CloseCode.PROTOCOL_ERROR: "a frame against RFC 6455: one that is not masked, for instance",
    CloseCode.UNSUPPORTED: "a binary frame",
    CloseCode.INVALID_TEXT: "text that is not UTF-8",
    CloseCode.TOO_BIG: "a frame over 64 KiB",
    CloseCode.INTERNAL_ERROR: "something went wrong on our side",
    CloseCode.RESTART: "the server restarts: come back, to a snapshot",
    CloseCode.TRY_AGAIN_LATER: "Redis or Postgres is away: come back in a moment, to a snapshot",
    CloseCode.BAD_FIRST_FRAME: "the first frame was not an `auth` frame",
    CloseCode.UNAUTHORIZED: "no valid token in time, or the token has expired",
    CloseCode.NO_HEARTBEAT: "no sign of life",
    CloseCode.TOO_SLOW: "the client does not read",
    CloseCode.TOO_MANY_FRAMES: "more frames, pings included, than `DISPATCHER_LIMIT_CONNECTION`, also "
    "after an `error` frame `too_many_frames`",
}


# --- from the client


class ClientFrameType(StrEnum):
    """What a client may send."""

    AUTH = "auth"
    HEARTBEAT = "heartbeat"
    LOCATION = "location"
    TRIP_ACTION = "trip_action"
    AVAILABILITY = "availability"
    WATCH = "watch"
    UNWATCH = "unwatch"


#: These come often, and an app that does not number them does not wait for an answer.
UNANSWERED: Final = frozenset({ClientFrameType.HEARTBEAT, ClientFrameType.LOCATION})
#: A key means the same by frame and by HTTP: an app may retry the other way.
_KEY_ENDPOINTS: Final = {
    Role.DRIVER: "/api/driver/ride/trip-action",
    Role.CUSTOMER: "/api/customer/ride/cancel",
    Role.ADMIN: "/api/admin/ride/cancel",
}
#: The fields of a `trip_action` frame that are no part of the body that HTTP would have had.
_ENVELOPE: Final = frozenset({"type", "id", "idempotency_key"})
#: The same of a `location` frame, which takes no key.
_LOCATION_ENVELOPE: Final = frozenset({"type", "id"})


class TripActionFrame(NamedTuple):
    """A step with a trip."""

    action: str
    trip_id: str
    version: int | None
    reason: str | None
    key: IdempotencyKey | None


def read_frame(text: str) -> Frame:
    """A client's frame. Raises Refusal malformed_json."""
    return parse_json_object(text.encode())


def frame_id(frame: Frame) -> str | int | None:
    """The id that the answer is to repeat. Raises Refusal invalid_frame."""
    id_ = frame.get("id")
    if isinstance(id_, bool) or not isinstance(id_, str | int | None):
        raise Refusal("invalid_frame", "The id of a frame is text or a whole number.")
    return id_


def read_first_token(frame: Frame) -> str:
    """The token of the first frame of a socket. Raises Refusal invalid_frame."""
    token = frame.get("token")
    if frame.get("type") != ClientFrameType.AUTH or not isinstance(token, str):
        raise Refusal("invalid_frame", "The first frame must be auth, with a token.")
    return token


def read_token(frame: Frame) -> str:
    """The token of an `auth` frame; empty where there is none."""
    token = frame.get("token")
    return token if isinstance(token, str) else ""


def read_positions(actor: Actor, frame: Frame) -> list[tuple[float, float, int | None]]:
    """The positions of a `location` frame, as (lat, lng, ms since the epoch or None).

    Raises Refusal wrong_role, invalid_location or invalid_body.
    """
    if actor.role is not Role.DRIVER:
        raise Refusal("wrong_role")
    body = {name: value for name, value in frame.items() if name not in _LOCATION_ENVELOPE}
    return requests.parse_positions(body)


def read_watched_zone(actor: Actor, frame: Frame) -> str:
    """The zone of a `watch` frame, of an admin. Raises Refusal wrong_role or invalid_zone."""
    if actor.role is not Role.ADMIN:
        raise Refusal("wrong_role", "Only an admin may watch a zone.")
    return requests.parse_model(query_parameters.ZonePath, {"zone": frame.get("zone")}).zone


def read_trip_action(actor: Actor, frame: Frame, *, key_required: bool) -> TripActionFrame:
    """The step of a `trip_action` frame; customers and admins can only cancel.

    Raises Refusal with the codes of the same request over HTTP.
    """
    body = {name: value for name, value in frame.items() if name not in _ENVELOPE}
    asked: requests.TripAction | requests.Cancellation
    if actor.role is Role.DRIVER:
        asked = requests.parse_model(requests.TripAction, body)
        action: str = asked.action
    else:
        action = "cancel"
        if body.pop("action", None) != action:
            raise Refusal("unknown_action", "Only a driver may do anything but cancel.")
        asked = requests.parse_model(requests.Cancellation, body)
    key = key_of(
        frame.get("idempotency_key"), actor, _KEY_ENDPOINTS[actor.role], body, required=key_required
    )
    return TripActionFrame(action, asked.trip_request_id, asked.version, asked.reason, key)


# --- from the server


class ServerFrameType(StrEnum):
    """What the server may send."""

    WELCOME = "welcome"
    OFFER = "offer"
    OFFER_WITHDRAWN = "offer_withdrawn"
    TRIP = "trip"
    DRIVER = "driver"
    DRIVER_LOCATION = "driver_location"
    QUEUE = "queue"
    ZONE_VIEW = "zone_view"
    ACK = "ack"
    ERROR = "error"


#: What each frame says, for their description; a frame of several forms has several models.
CLIENT_FRAMES: Final[dict[ClientFrameType, tuple[type[BaseModel], ...]]] = {
    ClientFrameType.AUTH: (client_frames.AuthFrame,),
    ClientFrameType.HEARTBEAT: (client_frames.HeartbeatFrame,),
    ClientFrameType.LOCATION: (client_frames.FixFrame, client_frames.FixesFrame),
    ClientFrameType.TRIP_ACTION: (client_frames.TripActionFrame, client_frames.CancelFrame),
    ClientFrameType.AVAILABILITY: (client_frames.AvailabilityFrame,),
    ClientFrameType.WATCH: (client_frames.WatchFrame,),
    ClientFrameType.UNWATCH: (client_frames.UnwatchFrame,),
}
SERVER_FRAMES: Final[dict[ServerFrameType, tuple[type[BaseModel], ...]]] = {
    ServerFrameType.WELCOME: (server_frames.WelcomeFrame,),
    ServerFrameType.OFFER: (server_frames.OfferFrame,),
    ServerFrameType.OFFER_WITHDRAWN: (server_frames.OfferWithdrawnFrame,),
    ServerFrameType.TRIP: (server_frames.TripFrame,),
    ServerFrameType.DRIVER: (server_frames.DriverFrame,),
    ServerFrameType.DRIVER_LOCATION: (server_frames.DriverLocationFrame,),
    ServerFrameType.QUEUE: (server_frames.QueueFrame,),
    ServerFrameType.ZONE_VIEW: (server_frames.ZoneViewFrame,),
    ServerFrameType.ACK: (
        server_frames.TripAck,
        server_frames.AvailabilityAck,
        server_frames.LocationAck,
        server_frames.Ack,
    ),
    ServerFrameType.ERROR: (server_frames.ErrorFrame,),
}


def encode_welcome(connection_id: str, timeout_s: int, snapshot: dict[str, Any]) -> bytes:
    """The first frame of the server. A heartbeat may be lost, and the next one is in time."""
    frame = {
        "type": ServerFrameType.WELCOME,
        "connection_id": connection_id,
        "heartbeat_s": max(1, timeout_s // 3),
        "timeout_s": timeout_s,
        "snapshot": snapshot,
    }
    return orjson.dumps(frame)


def encode_ack(id_: str | int | None, answer: Answer) -> bytes:
    """The answer of a success, whose body is a JSON object with at least one field."""
    head = {
        "type": ServerFrameType.ACK, "id": id_, "status": answer.status, "replayed": answer.replayed,
    }  # fmt: skip
    return orjson.dumps(head)[:-1] + b"," + answer.body[1:]


def encode_error(id_: str | int | None, answer: Answer) -> bytes:
    """The answer of a refusal, whose body is a problem."""
    problem = orjson.loads(answer.body)
    head = {
        "type": ServerFrameType.ERROR,
        "id": id_,
        "replayed": answer.replayed,
        "problem": problem.pop("type"),
    }
    if answer.limit is not None:
        head["rate_limit"] = {
            "limit": answer.limit.rate.limit,
            "remaining": answer.limit.remaining,
            "reset": -(-answer.limit.reset_ms // 1000),
        }
    return orjson.dumps({**head, **problem})
