"""The WebSocket's protocol: every frame in both directions, and every code that closes one.

A frame is a JSON object with a `type`. What a client sends is read and checked here. Of what the
server sends, `welcome`, `ack` and `error` are encoded here; the others are encoded where the change
happens, which may be another server, and are described here.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any, Final, NamedTuple, TypedDict

import orjson

from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import Refusal
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.service.answers import Answer
from dispatcher.service.messages import DriverFrame, QueueFrame
from dispatcher.service.zone_picture import ZoneViewFrame
from dispatcher.web import query_parameters, requests
from dispatcher.web.idempotency_key import key_of
from dispatcher.web.json_object import MAX_BODY, parse_json_object

Frame = dict[str, Any]

#: In bytes, like a body over HTTP.
MAX_FRAME: Final = MAX_BODY


class CloseCode(IntEnum):
    """Why the server closes a socket: codes of RFC 6455, and our own from 4400 on."""

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


# --- from the client


class ClientFrameType(StrEnum):
    """What a client may send."""

    AUTH = "auth"
    HEARTBEAT = "heartbeat"
    LOCATION = "location"
    TRIP_ACTION = "trip_action"
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
    if not isinstance(id_, str | int | None):
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


class WelcomeFrame(TypedDict):
    """After the opening, and whenever messages may have been lost: the user's state as it is."""

    type: str
    connection_id: str
    heartbeat_s: int
    timeout_s: int
    snapshot: dict[str, Any]


class OfferFrame(TypedDict):
    """A trip that the driver may accept until the deadline (lua/offer_trip.lua)."""

    type: str
    trip: dict[str, Any]
    wave: int
    distance_m: float
    deadline_ms: int
    expires_in_ms: int


class OfferWithdrawnFrame(TypedDict):
    """An offer that has ended; `reason` is the event that ended it (`service.messages`), or
    `driver_not_available`: the driver has taken another trip or left (lua/settle_changes.lua)."""

    type: str
    trip_request_id: str
    reason: str


class TripFrame(TypedDict):
    """A change of one of the user's trips (`service.messages`)."""

    type: str
    event: str
    trip: dict[str, Any]


class DriverLocationFrame(TypedDict):
    """Where the driver of the customer's trip is (`service.positions`). Only the newest is kept."""

    type: str
    trip_request_id: str
    driver_id: str
    lat: float
    lng: float
    recorded_at_ms: int


class AckFrame(TypedDict):
    """What was asked is done; the fields of the body that HTTP would have had stand beside these."""

    type: str
    id: str | int | None
    status: int
    replayed: bool


class RateLimitField(TypedDict):
    """How the limit stands that counted a refused frame; `reset` in s since the epoch."""

    limit: int
    remaining: int
    reset: int


class _ErrorHead(TypedDict):
    type: str
    id: str | int | None
    replayed: bool
    problem: str


class ErrorFrame(_ErrorHead, total=False):
    """A frame that is refused; the problem's fields stand beside these, with its type in `problem`."""

    rate_limit: RateLimitField


SERVER_FRAMES: Final[dict[ServerFrameType, type]] = {
    ServerFrameType.WELCOME: WelcomeFrame,
    ServerFrameType.OFFER: OfferFrame,
    ServerFrameType.OFFER_WITHDRAWN: OfferWithdrawnFrame,
    ServerFrameType.TRIP: TripFrame,
    ServerFrameType.DRIVER: DriverFrame,
    ServerFrameType.DRIVER_LOCATION: DriverLocationFrame,
    ServerFrameType.QUEUE: QueueFrame,
    ServerFrameType.ZONE_VIEW: ZoneViewFrame,
    ServerFrameType.ACK: AckFrame,
    ServerFrameType.ERROR: ErrorFrame,
}


def encode_welcome(connection_id: str, timeout_s: int, snapshot: dict[str, Any]) -> bytes:
    """The first frame of the server. A heartbeat may be lost, and the next one is in time."""
    frame: WelcomeFrame = {
        "type": ServerFrameType.WELCOME,
        "connection_id": connection_id,
        "heartbeat_s": max(1, timeout_s // 3),
        "timeout_s": timeout_s,
        "snapshot": snapshot,
    }
    return orjson.dumps(frame)


def encode_ack(id_: str | int | None, answer: Answer) -> bytes:
    """The answer of a success, whose body is a JSON object with at least one field."""
    head: AckFrame = {
        "type": ServerFrameType.ACK, "id": id_, "status": answer.status, "replayed": answer.replayed,
    }  # fmt: skip
    return orjson.dumps(head)[:-1] + b"," + answer.body[1:]


def encode_error(id_: str | int | None, answer: Answer) -> bytes:
    """The answer of a refusal, whose body is a problem."""
    problem = orjson.loads(answer.body)
    head: ErrorFrame = {
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
