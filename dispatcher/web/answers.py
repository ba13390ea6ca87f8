"""What an answer says: one model a success body, for the API's description.

No answer is made from these: services encode their own, which costs less. Tests hold each real answer
against its model, which allows no field that it does not name. A model's example is part of the
description; `tests/unit/test_answers.py` holds it against the model.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from dispatcher.core import trips
from dispatcher.core.actors import USER_ID
from dispatcher.core.drivers import AvailabilityStatus
from dispatcher.core.errors import PROBLEMS
from dispatcher.core.obstacles import Obstacle
from dispatcher.core.trips import Status

TripId = Annotated[str, StringConstraints(pattern=f"^{trips.TRIP_ID.pattern}$")]
UserId = Annotated[str, StringConstraints(pattern=f"^{USER_ID.pattern}$")]
#: As `core.times.iso` writes it: UTC, with milliseconds.
Moment = Annotated[
    str,
    StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"),
    WithJsonSchema(
        {"type": "string", "format": "date-time", "description": "RFC 3339, in UTC, with milliseconds"}
    ),
]
Metres = Annotated[float, Field(ge=0, description="Metres, over the great circle")]
Version = Annotated[int, Field(ge=0, description="0 at first; each change adds one")]


class Body(BaseModel):
    """What all answers have in common: every field is there, and there is no other."""

    # Built when it is first asked for: a server starts without its description.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, defer_build=True)


def example(of: dict[str, Any]) -> ConfigDict:
    """The configuration of a model that has this example.

    A model that inherits it and asks for more fields has another example, or none.
    """

    def show(schema: dict[str, Any]) -> None:
        if of.keys() >= set(schema.get("required", ())):
            schema["examples"] = [of]

    return ConfigDict(json_schema_extra=show, defer_build=True)


def absent(description: str) -> Any:
    """A field that may be missing. Its default is of no interest to anybody."""
    return Field(None, description=description, json_schema_extra=_without_default)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


# --- what answers are made of

TRIP: Final[dict[str, Any]] = {
    "id": "default_9f86d081884c7d65", "zone": "default", "current_status": "accepted", "version": 1,
    "customer_id": "rider-1", "driver_id": "driver-1", "vehicle_type": "car",
    "pickup": {"lat": 40.7549, "lng": -73.984}, "dropoff": None,
    "created_at": "2026-03-01T08:30:00.000Z", "updated_at": "2026-03-01T08:30:07.412Z",
    "accepted_at": "2026-03-01T08:30:07.412Z", "arrived_at": None, "trip_start_time": None,
    "completed_at": None, "cancelled_at": None, "expired_at": None, "cancel_reason": None,
}  # fmt: skip
NEW_TRIP: Final = TRIP | {
    "current_status": "pending", "version": 0, "driver_id": None, "accepted_at": None,
    "updated_at": TRIP["created_at"],
}  # fmt: skip
CANCELLED_TRIP: Final = TRIP | {
    "current_status": "cancelled", "version": 2, "updated_at": "2026-03-01T08:31:20.090Z",
    "cancelled_at": "2026-03-01T08:31:20.090Z", "cancel_reason": "plans have changed",
}  # fmt: skip
COMPLETED_TRIP: Final = TRIP | {
    "current_status": "completed", "version": 4, "updated_at": "2026-03-01T08:52:03.551Z",
    "arrived_at": "2026-03-01T08:34:11.300Z", "trip_start_time": "2026-03-01T08:35:40.007Z",
    "completed_at": "2026-03-01T08:52:03.551Z",
}  # fmt: skip
DRIVER: Final[dict[str, Any]] = {
    "user_id": "driver-1", "zone": "default", "availability_status": "available", "is_online": True,
    "vehicle_type": "car", "trip_id": None, "updated_at": "2026-03-01T08:00:00.000Z",
}  # fmt: skip


class Position(Body):
    """A position in degrees (WGS 84)."""

    lat: float = Field(ge=-90, le=90)
    lng: float = Field(ge=-180, le=180)


class Trip(Body):
    """A trip. What has not happened is null."""

    model_config = example(TRIP)

    id: TripId
    zone: str
    current_status: Status
    version: Version
    customer_id: UserId
    driver_id: UserId | None
    vehicle_type: str
    pickup: Position
    dropoff: Position | None
    created_at: Moment
    updated_at: Moment
    accepted_at: Moment | None
    arrived_at: Moment | None
    trip_start_time: Moment | None
    completed_at: Moment | None
    cancelled_at: Moment | None
    expired_at: Moment | None
    cancel_reason: str | None


class NearTrip(Trip):
    """A trip near a driver."""

    model_config = example(NEW_TRIP | {"distance_m": 412.7})

    distance_m: Metres


class Driver(Body):
    """A driver; `trip_id` is the trip that they have."""

    model_config = example(DRIVER)

    user_id: UserId
    zone: str
    availability_status: AvailabilityStatus
    is_online: bool
    vehicle_type: str
    trip_id: TripId | None
    updated_at: Moment


# --- changes


class TripChanged(Body):
    """A change was made, and is durable; this is the trip from now on."""

    response_code: str
    trip: Trip


class TripCreated(TripChanged):
    """The trip waits for a driver."""

    model_config = example({"response_code": "trip_created", "trip": NEW_TRIP})

    response_code: Literal["trip_created"]


class TripAccepted(TripChanged):
    """The trip has a driver."""

    model_config = example({"response_code": "trip_accepted", "trip": TRIP})

    response_code: Literal["trip_accepted"]


class TripCancelled(TripChanged):
    """The trip is over, and was not ridden."""

    model_config = example({"response_code": "trip_cancelled", "trip": CANCELLED_TRIP})

    response_code: Literal["trip_cancelled"]


class TripCompleted(TripChanged):
    """The trip is over, and was ridden."""

    model_config = example({"response_code": "trip_completed", "trip": COMPLETED_TRIP})

    response_code: Literal["trip_completed"]


class TripStepTaken(TripChanged):
    """The driver's step; `trip_released` is the answer to `cancel`: others are asked again."""

    model_config = example({"response_code": "trip_accepted", "trip": TRIP})

    response_code: Literal[
        "trip_accepted", "trip_declined", "trip_arrived", "trip_started", "trip_completed",
        "trip_released",
    ]  # fmt: skip


class LocationUpdated(Body):
    """How many positions were taken; older ones than the last that is known are not."""

    model_config = example({"response_code": "location_updated", "taken": 1})

    response_code: Literal["location_updated"]
    taken: int = Field(ge=0)


class AvailabilityUpdated(Body):
    """The driver from now on, the trip that going offline has released, and what keeps offers away."""

    model_config = example(
        {
            "response_code": "availability_updated", "driver": DRIVER, "released_trip": None,
            "keeps_offers_away": ["no_position"],
        }
    )  # fmt: skip

    response_code: Literal["availability_updated"]
    driver: Driver
    released_trip: Trip | None
    keeps_offers_away: list[Obstacle]


# --- questions


class OneTrip(Body):
    """A trip; the `ETag` is its version."""

    model_config = example({"trip": TRIP})

    trip: Trip


class OpenOffer(Body):
    """An offer that a driver may accept until its deadline."""

    trip: Trip
    deadline_ms: int
    expires_in_ms: int


class CustomerRides(Body):
    """A customer's trips that are not over, the newest first."""

    model_config = example({"trips": [TRIP], "next": None})

    trips: list[Trip]
    next: str | None = Field(description="The `after` of the next page; null: this is the last")


class PendingTrips(Body):
    """Trips that the driver may accept now, the nearest first."""

    model_config = example({"trips": [NEW_TRIP | {"distance_m": 412.7}]})

    trips: list[NearTrip]


# --- refusals


class Problem(BaseModel):
    """Any answer of 400 and above (RFC 9457). Apps switch on `response_code`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, defer_build=True)

    type: str = Field(description="`urn:dispatcher:problem:` and the code")
    title: str
    status: int
    detail: str
    response_code: str = Field(json_schema_extra={"enum": list(PROBLEMS)})
    message: str = Field(description="The same as `detail`")
    retry_after: int = absent("Seconds after which to try again")
    version: int = absent("The trip's current version")
    current_status: Status = absent("The trip's current state")
    field: str = absent("The field of the request that is wrong")
    limit_class: str = absent("The limit that is used up")
    filters: list[Obstacle] = absent("What keeps the driver from the trip: the filters that refuse")
