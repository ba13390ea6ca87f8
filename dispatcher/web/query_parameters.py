"""What a question may say: the parameters of its query and the parts of its path."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dispatcher.core.trips import Status
from dispatcher.web.requests import DriverId, TripId, ZoneName


class _QueryParameters(BaseModel):
    """Query parameters are text, so they are converted; empty ones are absent."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: dict[str, str]) -> dict[str, str]:
        return {name: value for name, value in values.items() if value}


class PendingQuery(_QueryParameters):
    """How many trips to show at most."""

    limit: int = Field(20, ge=1, le=100)


class AbandonedQuery(_QueryParameters):
    """Where to look, and how long ago a trip must have been taken."""

    zone: ZoneName | None = None
    older_than_s: int = Field(3_600, ge=0, le=31_536_000)


class _PageQuery(_QueryParameters):
    """Where a page begins, as `next` of the page before says, and how many rows it has at most."""

    after: Annotated[str, Field(pattern=r"^-?\d{1,18}~[A-Za-z0-9._:@|-]{0,97}$")] | None = None
    limit: int = Field(50, ge=1, le=200)


class TripsQuery(_PageQuery):
    """Which trips: of a zone, in a state, or the id of a trip, a customer or a driver."""

    search: Annotated[str, Field(max_length=97, pattern=r"^[^\x00]*$")] | None = None
    zone: ZoneName | None = None
    status: Status | None = None


class TripOffersQuery(_PageQuery):
    """The trip of a path, and which of its offers."""

    id: TripId


class DriverOffersQuery(_PageQuery):
    """The driver of a path, and which of their offers."""

    driver_id: DriverId


class DriversQuery(_QueryParameters):
    """Which drivers: whose id begins so, of a zone, online."""

    search: Annotated[str, Field(max_length=64, pattern=r"^[^\x00]*$")] = ""
    zone: ZoneName | None = None
    online: bool = False
    after: DriverId | None = None
    limit: int = Field(50, ge=1, le=200)


class FilePath(_QueryParameters):
    """The file of a path."""

    file: str


class NoParameters(_QueryParameters):
    """A question that takes none."""


class DriverPath(_QueryParameters):
    """The driver of a path."""

    driver_id: DriverId


class TripPath(_QueryParameters):
    """The trip of a path."""

    id: TripId


class ZonePath(_QueryParameters):
    """The zone of a path."""

    zone: ZoneName
