"""What the server sends over the WebSocket: one model a frame, for its description (`asyncapi`).

No frame is made from these; tests hold real ones against them, as they do answers.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dispatcher.core.actors import Role
from dispatcher.core.transitions import Event
from dispatcher.web.answers import (
    DRIVER,
    NEW_TRIP,
    TRIP,
    AvailabilityUpdated,
    Body,
    Driver,
    LocationUpdated,
    Metres,
    Moment,
    Position,
    Problem,
    Trip,
    TripChanged,
    TripId,
    UserId,
    absent,
    example,
)
from dispatcher.web.client_frames import FrameId
from dispatcher.web.driver_answers import DriverSnapshot


class CustomerSnapshot(Body):
    """A customer's trips that are not over."""

    trips: list[Trip]


class AdminSnapshot(Body):
    """Nothing: an admin watches zones."""


class WelcomeFrame(Body):
    """After the opening, and whenever messages may have been lost: the user's state as it is."""

    model_config = example(
        {
            "type": "welcome", "connection_id": "9c2f1e", "heartbeat_s": 40, "timeout_s": 120,
            "snapshot": {"driver": DRIVER, "trip": None, "offers": [], "queue": None},
        }
    )  # fmt: skip

    type: Literal["welcome"]
    connection_id: str
    heartbeat_s: int = Field(ge=1, description="Send a sign of life as often as this")
    timeout_s: int = Field(ge=1, description="Without one for so long, the socket is closed")
    snapshot: DriverSnapshot | CustomerSnapshot | AdminSnapshot


class OfferFrame(Body):
    """To a driver: a trip that they may accept until the deadline (lua/offer_trip.lua)."""

    model_config = example(
        {
            "type": "offer", "trip": NEW_TRIP, "wave": 1, "distance_m": 412.7,
            "deadline_ms": 1_772_353_815_000, "expires_in_ms": 12_000,
        }
    )  # fmt: skip

    type: Literal["offer"]
    trip: Trip
    wave: int = Field(ge=1)
    distance_m: Metres
    deadline_ms: int = Field(description="In ms since the epoch")
    expires_in_ms: int = Field(description="In ms from when it was sent")


class OfferWithdrawnFrame(Body):
    """To a driver: an offer has ended. `reason` is the event that ended it, or `driver_not_available`:
    the driver has taken another trip or left (lua/settle_changes.lua)."""

    model_config = example(
        {"type": "offer_withdrawn", "trip_request_id": TRIP["id"], "reason": "accepted"}
    )

    type: Literal["offer_withdrawn"]
    trip_request_id: TripId
    reason: Event | Literal["driver_not_available"]


class TripFrame(Body):
    """To a trip's customer and driver: it has changed (`service.messages`)."""

    model_config = example({"type": "trip", "event": "accepted", "trip": TRIP})

    type: Literal["trip"]
    event: Event
    trip: Trip


class DriverFrame(Body):
    """To a driver: an operator has changed their availability (`service.messages`)."""

    model_config = example({"type": "driver", "driver": {**DRIVER, "is_online": False}})

    type: Literal["driver"]
    driver: Driver


class DriverLocationFrame(Position):
    """To a customer: where the driver of their trip is. Only the newest is kept."""

    model_config = example(
        {
            "type": "driver_location", "trip_request_id": TRIP["id"], "driver_id": "driver-1",
            "lat": 40.7549, "lng": -73.984, "recorded_at_ms": 1_772_353_798_120,
        }
    )  # fmt: skip

    type: Literal["driver_location"]
    trip_request_id: TripId
    driver_id: UserId
    recorded_at_ms: int


class QueueFrame(Body):
    """To a driver: their number in a queue has changed, or they have lost their place: then all is null
    (lua/number_queue.lua). Only the newest is kept."""

    model_config = example(
        {"type": "queue", "queue": "airport", "position": 3, "queued_at_ms": 1_772_352_720_310}
    )

    type: Literal["queue"]
    queue: str | None
    position: int | None = Field(ge=1)
    queued_at_ms: int | None = Field(description="In ms since the epoch")


class _Ack(Body):
    """What was asked is done: what HTTP would have answered."""

    type: Literal["ack"]
    id: FrameId | None
    status: int
    replayed: bool = Field(description="The answer that this key got before")


class TripAck(TripChanged, _Ack):
    """The answer to a `trip_action`."""

    model_config = example(
        {
            "type": "ack", "id": 3, "status": 200, "replayed": False,
            "response_code": "trip_accepted", "trip": TRIP,
        }
    )  # fmt: skip


class AvailabilityAck(AvailabilityUpdated, _Ack):
    """The answer to an `availability`."""

    model_config = example(
        {
            "type": "ack", "id": 7, "status": 200, "replayed": False,
            "response_code": "availability_updated", "driver": DRIVER, "released_trip": None,
            "keeps_offers_away": ["no_position"],
        }
    )  # fmt: skip


class LocationAck(LocationUpdated, _Ack):
    """The answer to a `location` with an `id`."""

    model_config = example(
        {
            "type": "ack", "id": 2, "status": 202, "replayed": False,
            "response_code": "location_updated", "taken": 1,
        }
    )  # fmt: skip


class Ack(_Ack):
    """The answer to any other frame."""

    model_config = example(
        {"type": "ack", "id": 5, "status": 200, "replayed": False, "response_code": "watching"}
    )

    response_code: Literal["heartbeat", "token_renewed", "watching", "not_watching"]


class RateLimitField(Body):
    """How the limit stands that counted a refused frame; `reset` in s since the epoch."""

    limit: int
    remaining: int
    reset: int


class ErrorFrame(Problem):
    """A frame that is refused: the problem that HTTP would have answered, its type in `problem`."""

    model_config = example(
        {
            "type": "error", "id": 3, "replayed": False,
            "problem": "urn:dispatcher:problem:trip_already_assigned", "title": "Conflict",
            "status": 409, "detail": "Another driver has this trip already.",
            "response_code": "trip_already_assigned",
            "message": "Another driver has this trip already.",
        }
    )  # fmt: skip

    type: Literal["error"]
    id: FrameId | None
    replayed: bool
    problem: str = Field(description="`urn:dispatcher:problem:` and the code")
    rate_limit: RateLimitField = absent("The limit that counted it")


class WatchedTrip(Trip):
    """A trip with its last wave of offers; 0: none yet."""

    wave: int


class WatchedEvent(Body):
    """What has happened to a trip."""

    event: Event
    at: Moment
    trip_id: TripId
    driver_id: UserId | None
    actor_role: Role


class Figures(Body):
    """Counts of what is shown, rates over some seconds and minutes, and how the server stands."""

    trips: dict[str, int] = Field(description="Live trips by state")
    ended: dict[str, int] = Field(description="Trips that ended in the last five minutes, by state")
    drivers: dict[str, int] = Field(description="Drivers by state")
    offers: int
    accepts_per_s: float
    wait_p50_s: float | None = Field(description="From creation to assignment; null: there was none")
    wait_p95_s: float | None
    refused: int = Field(description="Since this server shows the zone")
    limited: int = Field(description="Since this server shows the zone")
    drift: int
    engines: dict[str, str | float] = Field(description="What each engine says, and its latency in ms")


class ZoneViewFrame(Body):
    """To an admin who watches a zone: all of it where it is `full`, else what has changed since the
    frame before (`service.zone_picture`). `drivers` are by id; `offers` are the drivers who hold an open
    one, by trip; `events` are those of the zone's stream."""

    model_config = example(
        {
            "type": "zone_view", "zone": "default", "at_ms": 1_772_353_807_500,
            "sampled_at_ms": 1_772_353_807_500, "decided_by": "redis", "full": False,
            "drivers": {"driver-1": ["to_pickup", 40.7559, -73.9864, TRIP["id"], "car"]},
            "drivers_gone": [], "trips": [{**TRIP, "wave": 1}], "trips_gone": [], "offers": {},
            "events": [
                {
                    "event": "accepted", "at": "2026-03-01T08:30:07.412Z", "trip_id": TRIP["id"],
                    "driver_id": "driver-1", "actor_role": "driver",
                }
            ],
            "figures": {
                "trips": {"pending": 0, "accepted": 1, "arrived": 0, "ongoing": 0}, "ended": {},
                "drivers": {"to_pickup": 1}, "offers": 0, "accepts_per_s": 0.1, "wait_p50_s": 7.4,
                "wait_p95_s": 7.4, "refused": 2, "limited": 0, "drift": 0,
                "engines": {"redis": "ok", "postgres": "ok", "redis_ms": 0.4, "postgres_ms": 1.1},
            },
        }
    )  # fmt: skip

    type: Literal["zone_view"]
    zone: str
    at_ms: int
    sampled_at_ms: int | None = Field(description="Older than `at_ms` while Redis is away; null: never")
    decided_by: Literal["redis", "postgres"] = Field(
        description="`postgres`: Redis is away, and trips are those of Postgres; all else is as sampled"
    )
    full: bool
    drivers: dict[str, tuple[str, float, float, str, str]] = Field(
        description="State, lat, lng, trip (or empty), vehicle type"
    )
    drivers_gone: list[str]
    trips: list[WatchedTrip]
    trips_gone: list[str]
    offers: dict[str, list[str]]
    events: list[WatchedEvent]
    figures: Figures
