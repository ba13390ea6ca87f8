"""What answers to operators say of trips and zones: one model a success body, as in `answers`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from dispatcher.core.actors import Role
from dispatcher.core.transitions import Event
from dispatcher.core.trips import Status
from dispatcher.web.answers import (
    NEW_TRIP,
    TRIP,
    Body,
    Metres,
    Moment,
    Trip,
    TripId,
    UserId,
    Version,
    example,
)
from dispatcher.web.place_answers import Outline, QueueOutline, QueueTurn

Next = Annotated[str | None, Field(description="The `after` of the next page; null: this is the last")]
Outcome = Literal["open", "accepted", "declined", "expired", "withdrawn"]

_SCORE: Final[dict[str, Any]] = {
    "total_s": 94.1, "way_s": 101.3, "waiting_s": -4.0, "idle_s": -3.2, "turned_down_s": 0.0,
    "open_offers_s": 0.0,
}  # fmt: skip
OFFER: Final[dict[str, Any]] = {
    "wave": 1, "distance_m": 412.7, "offered_at": "2026-03-01T08:30:03.000Z",
    "deadline": "2026-03-01T08:30:15.000Z", "outcome": "accepted",
    "outcome_at": "2026-03-01T08:30:07.412Z", "score": None, "offered_by": None,
}  # fmt: skip
_TRIP_OFFER: Final = {"driver_id": "driver-1", **OFFER}


# --- trips


class PageOfTrips(Body):
    """Trips, the latest change first."""

    model_config = example({"trips": [TRIP], "next": None})

    trips: list[Trip]
    next: Next


class AbandonedTrip(Body):
    """A trip that was taken long ago and has not started."""

    id: TripId
    driver_id: UserId
    locked_at: Moment
    current_status: Literal[Status.ACCEPTED, Status.ARRIVED]
    version: Version


class AbandonedTrips(Body):
    """Trips that were taken long ago and have not started, the oldest first."""

    model_config = example(
        {
            "trips": [
                {
                    "id": TRIP["id"], "driver_id": "driver-1", "locked_at": "2026-03-01T08:30:07.412Z",
                    "current_status": "accepted", "version": 1,
                }
            ]
        }
    )  # fmt: skip

    trips: list[AbandonedTrip]


class ScoreParts(Body):
    """The cost of asking a driver, in seconds of way: see dispatcher/matching/score.py."""

    total_s: float
    way_s: float
    waiting_s: float
    idle_s: float
    turned_down_s: float
    open_offers_s: float


class RankedDriver(ScoreParts):
    """A driver who was not asked first."""

    driver_id: UserId
    distance_m: Metres


class Score(ScoreParts):
    """The score of the driver who was asked, and those of the next in the order."""

    model_config = example(
        {**_SCORE, "next": [{"driver_id": "driver-2", "distance_m": 903.4, **_SCORE}]}
    )

    next: list[RankedDriver]


class Offer(Body):
    """A trip that was shown to a driver until a deadline, and what came of it.

    Wave 0: the driver declined without having been offered the trip.
    """

    wave: int = Field(ge=0)
    distance_m: Metres | None
    offered_at: Moment
    deadline: Moment | None
    outcome: Outcome
    outcome_at: Moment | None
    score: Score | QueueTurn | None = Field(
        description="Null: neither a round of matching nor a queue made this offer"
    )
    offered_by: UserId | None = Field(description="The operator who made it by hand")


class TripOffer(Offer):
    """An offer, of a trip that is named beside it."""

    model_config = example(_TRIP_OFFER)

    driver_id: UserId


class PageOfTripOffers(Body):
    """The offers of a trip, wave by wave."""

    model_config = example({"trip_id": TRIP["id"], "offers": [_TRIP_OFFER], "next": None})

    trip_id: TripId
    offers: list[TripOffer]
    next: Next


class TripEvent(Body):
    """What made a version of a trip; the payload holds what replaying the history needs."""

    version: Version
    event: Event
    actor_id: UserId
    actor_role: Role
    payload: dict[str, Any]
    created_at: Moment


class LostRace(Body):
    """A driver who came too late to accept a trip, with an offer or without."""

    version: Version = Field(description="That of the accept which won")
    driver_id: UserId
    tried_at: Moment


class Timeline(Body):
    """The trip, its history, an event a version; who was asked, and who came too late to accept it: the
    first hundred of each accept."""

    model_config = example(
        {
            "trip_id": TRIP["id"],
            "trip": TRIP,
            "events": [
                {
                    "version": 1, "event": "accepted", "actor_id": "driver-1", "actor_role": "driver",
                    "payload": {
                        "attempt": "5f3c9a", "current_status": "accepted", "driver_id": "driver-1",
                    },
                    "created_at": "2026-03-01T08:30:07.412Z",
                }
            ],
            "offers": [_TRIP_OFFER],
            "races": [
                {"version": 1, "driver_id": "driver-2", "tried_at": "2026-03-01T08:30:07.431Z"}
            ],
        }
    )  # fmt: skip

    trip_id: TripId
    trip: Trip
    events: list[TripEvent]
    offers: list[TripOffer]
    races: list[LostRace]


# --- zones


class ZoneOutline(Body):
    """A zone; `outline` is null for the one that takes what lies in no other."""

    name: str
    accept_policy: Literal["open", "offered"]
    outline: Outline | None
    queues: list[QueueOutline]


class MapTiles(Body):
    """Where the console gets map tiles from, if anywhere."""

    tile_url: str | None
    attribution: str


class ZoneList(Body):
    """Every zone, and the console's map."""

    model_config = example(
        {
            "zones": [{"name": "default", "accept_policy": "open", "outline": None, "queues": []}],
            "map": {"tile_url": None, "attribution": ""},
        }
    )

    zones: list[ZoneOutline]
    map: MapTiles


_WAITING_TRIP: Final = {
    **NEW_TRIP, "wave": 1, "next_wave_at": "2026-03-01T08:30:15.000Z", "offered_to": ["driver-1"],
}  # fmt: skip


class WaitingTrip(Trip):
    """A pending trip with its last wave of offers (0: none yet; null: Redis does not have the trip)."""

    model_config = example(_WAITING_TRIP)

    wave: int | None
    next_wave_at: Moment | None
    offered_to: list[UserId]


class PageOfWaitingTrips(Body):
    """A zone's pending trips, those that have waited longest first."""

    model_config = example({"zone": "default", "trips": [_WAITING_TRIP], "next": None})

    zone: str
    trips: list[WaitingTrip]
    next: Next


class DeadLetter(Body):
    """A message that a receiver of the webhook has not taken; `body` is what was sent."""

    id: str
    at: Moment
    receiver: str
    message_id: str
    type: str
    attempts: int
    error: str
    body: str


class DeadLetters(Body):
    """What receivers have not taken in a zone, the latest first."""

    model_config = example({"zone": "default", "dead_letters": [], "next": None})

    zone: str
    dead_letters: list[DeadLetter]
    next: Next


class DriverStatistics(Body):
    """Drivers of a zone who are online, and of these who has a trip, is free, or unavailable."""

    online: int = Field(ge=0)
    on_trip: int = Field(ge=0)
    free: int = Field(ge=0)
    unavailable: int = Field(ge=0)


class ZoneStatistics(Body):
    """How many live trips a zone has, by state (one without any is not named), and its drivers."""

    model_config = example(
        {
            "zone": "default", "trips": {"pending": 3, "ongoing": 12},
            "drivers": {"online": 30, "on_trip": 12, "free": 15, "unavailable": 3},
        }
    )  # fmt: skip

    zone: str
    trips: dict[str, int]
    drivers: DriverStatistics
