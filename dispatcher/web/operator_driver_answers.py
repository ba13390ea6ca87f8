"""What answers to operators say of drivers: one model a success body, as in `answers`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dispatcher.core.obstacles import Obstacle
from dispatcher.core.trips import Status
from dispatcher.web.answers import (
    DRIVER,
    NEW_TRIP,
    TRIP,
    Body,
    Driver,
    Moment,
    Position,
    Trip,
    TripId,
    UserId,
    example,
)
from dispatcher.web.driver_answers import PlaceInQueue
from dispatcher.web.operator_answers import OFFER, Next, Offer, Score
from dispatcher.web.place_answers import QueueTurn


class PageOfDrivers(Body):
    """Drivers by id, without their trips."""

    model_config = example({"drivers": [DRIVER], "next": None})

    drivers: list[Driver]
    next: Next


class DriverOffer(Offer):
    """An offer, to a driver who is named beside it."""

    model_config = example({"trip_id": TRIP["id"], **OFFER})

    trip_id: TripId


class PageOfDriverOffers(Body):
    """The offers that a driver got, the latest first."""

    model_config = example(
        {"driver_id": "driver-1", "offers": [{"trip_id": TRIP["id"], **OFFER}], "next": None}
    )

    driver_id: UserId
    offers: list[DriverOffer]
    next: Next


class SeenFix(Position):
    """The last position that is known."""

    recorded_at: Moment
    age_s: float = Field(ge=0)


class OpenConnection(Body):
    """A connection of a user, and until when it counts as alive."""

    id: str
    until: Moment
    node: str
    ip: str | None
    user_agent: str
    since: Moment


class Presence(Body):
    """A user's connections; `until` is null where none was ever told of."""

    until: Moment | None
    connections: list[OpenConnection]


class HeldOffer(Body):
    """An offer that the driver may accept until its deadline."""

    trip_id: TripId
    deadline: Moment
    expires_in_ms: int = Field(ge=0)


class DriverNow(Body):
    """A driver as they are now; `obstacles` are what keeps offers away, in the order in which they
    matter. While Redis is away, `presence`, `offers` and `queue` are null: they are not known."""

    model_config = example(
        {
            "driver": DRIVER,
            "fix": {
                "lat": 40.7559, "lng": -73.9864, "recorded_at": "2026-03-01T08:29:58.120Z", "age_s": 2.4,
            },
            "presence": {
                "until": "2026-03-01T08:32:00.000Z",
                "connections": [
                    {
                        "id": "9c2f1e", "until": "2026-03-01T08:32:00.000Z", "node": "b41d07",
                        "ip": "192.0.2.7", "user_agent": "driver-app/3.1",
                        "since": "2026-03-01T08:00:00.000Z",
                    }
                ],
            },
            "trip": None,
            "offers": [
                {
                    "trip_id": TRIP["id"], "deadline": "2026-03-01T08:30:15.000Z",
                    "expires_in_ms": 11_400,
                }
            ],
            "queue": None,
            "obstacles": [],
            "last_trips": [TRIP],
            "last_offers": [{"trip_id": TRIP["id"], **OFFER}],
        }
    )  # fmt: skip

    driver: Driver
    fix: SeenFix | None
    presence: Presence | None
    trip: Trip | None
    offers: list[HeldOffer] | None
    queue: PlaceInQueue | None
    obstacles: list[Obstacle]
    last_trips: list[Trip]
    last_offers: list[DriverOffer]


class FilterSaid(Body):
    """What one filter of a wave says of a driver, named by what it keeps back; `passes` is null where it
    could not be asked, or decides later."""

    filter: Obstacle | Literal["round_of_matching"]
    passes: bool | None
    saw: str


class Verdict(Body):
    """In codes, and in a sentence: the obstacles while the trip waits, then what came of it."""

    codes: list[str]
    text: str


class PastLine(Body):
    """What has happened between a trip and a driver."""

    code: str
    at: Moment
    text: str


class Why(Body):
    """What keeps a driver from a trip: each filter of the next wave, and what has happened so far."""

    model_config = example(
        {
            "trip_id": TRIP["id"], "driver_id": "driver-2", "current_status": "pending",
            "verdict": {
                "codes": ["stale_position"], "text": "no offer now: fix 75 s old, 60 s at most",
            },
            "filters": [
                {"filter": "offline", "passes": True, "saw": "online"},
                {"filter": "stale_position", "passes": False, "saw": "fix 75 s old, 60 s at most"},
            ],
            "score": None,
            "history": [],
        }
    )  # fmt: skip

    trip_id: TripId
    driver_id: UserId
    current_status: Status
    verdict: Verdict
    filters: list[FilterSaid]
    score: Score | QueueTurn | None = Field(
        description="By which a round of matching ranked the driver for the trip, or their place in its "
        "queue; `next` are the others of that round. Null: neither did"
    )
    history: list[PastLine]


# --- an offer by hand


class OfferMade(Body):
    """The driver's open offer."""

    driver_id: UserId
    deadline: Moment
    expires_in_ms: int


class TripOffered(Body):
    """The driver has an open offer of the trip."""

    model_config = example(
        {
            "response_code": "trip_offered", "trip": NEW_TRIP,
            "offer": {
                "driver_id": "driver-1", "deadline": "2026-03-01T08:30:15.000Z", "expires_in_ms": 12_000,
            },
        }
    )  # fmt: skip

    response_code: Literal["trip_offered"]
    trip: Trip
    offer: OfferMade
