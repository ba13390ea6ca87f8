"""What an app hears on its socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dispatcher.client.models import CustomerSnapshot, Driver, DriverSnapshot, Model, Offer, Trip
from dispatcher.client.problems import ApiError


class Welcome(Model):
    """The connection stands, or messages may have been lost: this is what is so now."""

    connection_id: str
    heartbeat_s: float
    timeout_s: float
    snapshot: DriverSnapshot | CustomerSnapshot


class OfferWithdrawn(Model):
    """An offer that has ended, and what ended it."""

    trip_request_id: str
    reason: str


class TripChanged(Model):
    """What has become of one of the user's trips; `event` is empty where a snapshot told it."""

    event: str
    trip: Trip


class DriverChanged(Model):
    """What the driver's availability is from now on: somebody else has changed it."""

    driver: Driver


class DriverLocation(Model):
    """Where the driver of the customer's trip is, in degrees; the time is in ms since the epoch."""

    trip_request_id: str
    driver_id: str
    lat: float
    lng: float
    recorded_at_ms: int


class QueueChanged(Model):
    """The driver's number in a queue from now on; None: they have lost their place."""

    queue: str | None
    position: int | None
    queued_at_ms: int | None


class FrameRefused:
    """A frame was refused that nobody waits for, such as a position."""

    __slots__ = ("error",)

    def __init__(self, error: ApiError) -> None:
        self.error = error


Event = (
    Welcome
    | Offer
    | OfferWithdrawn
    | TripChanged
    | DriverChanged
    | DriverLocation
    | QueueChanged
    | FrameRefused
)

_MODELS: Final[Mapping[str, type[Model]]] = {
    "offer": Offer,
    "offer_withdrawn": OfferWithdrawn,
    "trip": TripChanged,
    "driver": DriverChanged,
    "driver_location": DriverLocation,
    "queue": QueueChanged,
}


def read_event(frame: Mapping[str, Any]) -> Event | None:
    """The event that a frame tells; None where it is of a kind that this client does not know.

    Raises pydantic.ValidationError where a field is missing or wrong.
    """
    kind = frame["type"]
    if kind == "welcome":
        snapshot = frame["snapshot"]
        model = CustomerSnapshot if "trips" in snapshot else DriverSnapshot
        return Welcome.model_validate({**frame, "snapshot": model.model_validate(snapshot)})
    if kind == "error":
        return FrameRefused(ApiError.of(frame["status"], dict(frame), frame.get("retry_after")))
    known = _MODELS.get(kind)
    return None if known is None else known.model_validate(frame)  # type: ignore[return-value]
