"""What the API answers, typed. Fields that a later server adds are ignored."""

from __future__ import annotations

from datetime import datetime
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class Model(BaseModel):
    """What a server says; it is not changed here."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Place(Model):
    """A position in degrees (WGS 84)."""

    lat: float
    lng: float


class Trip(Model):
    """A trip; `current_status` is one of `dispatcher.core.trips.Status`."""

    id: str
    zone: str
    current_status: str
    version: int
    customer_id: str
    driver_id: str | None
    vehicle_type: str
    pickup: Place
    dropoff: Place | None
    created_at: datetime
    updated_at: datetime
    accepted_at: datetime | None = None
    arrived_at: datetime | None = None
    trip_start_time: datetime | None = None
    completed_at: datetime | None = None
    cancelled_at: datetime | None = None
    expired_at: datetime | None = None
    cancel_reason: str | None = None


class NearbyTrip(Trip):
    """A pending trip, and how far its pickup is, in metres."""

    distance_m: float


class Driver(Model):
    """A driver as they are."""

    user_id: str
    zone: str
    availability_status: str
    is_online: bool
    vehicle_type: str
    trip_id: str | None
    updated_at: datetime


class Offer(Model):
    """A trip that the driver may accept until the deadline (the server's clock, ms since the epoch)."""

    trip: Trip
    deadline_ms: int
    expires_in_ms: int
    #: Only of an offer that was heard, not of one that a snapshot told.
    wave: int | None = None
    distance_m: float | None = None


class PlaceInQueue(Model):
    """A driver's place in a queue: its name, and their number there, from 1."""

    queue: str
    position: int
    queued_at: datetime


class DriverSnapshot(Model):
    """A driver's state; no driver where they were never online."""

    driver: Driver | None = None
    trip: Trip | None = None
    offers: tuple[Offer, ...] = ()
    queue: PlaceInQueue | None = None


class DriverState(DriverSnapshot):
    """The same, and what keeps offers away: `dispatcher.core.obstacles.Obstacle` has the words."""

    keeps_offers_away: tuple[str, ...]


class CustomerSnapshot(Model):
    """A customer's live trips, the newest first."""

    trips: tuple[Trip, ...] = ()


class AvailabilityAnswer(Model):
    """What has come of a change of availability."""

    driver: Driver
    released_trip: Trip | None = None
    keeps_offers_away: tuple[str, ...] = ()


_Row = TypeVar("_Row", bound=Model)


class Page(Model, Generic[_Row]):
    """Some of many trips, and the `after` of the next page (None: there is none)."""

    trips: tuple[_Row, ...]
    next: str | None = Field(default=None)
