"""What a question may say: the parameters of its query and the parts of its path."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dispatcher.core.trips import Status
from dispatcher.web.requests import DriverId, TripId, ZoneName

_WHOLE_NUMBER: Final = re.compile(r"-?(0|[1-9]\d{0,18})", re.ASCII)


def _number(value: object) -> object:
    """Text as a whole number, written as JSON writes one; pydantic would also take ` 1_000 `."""
    if isinstance(value, str) and not _WHOLE_NUMBER.fullmatch(value):
        raise ValueError("takes a whole number")
    return value


PageSize = Annotated[int, Field(ge=1, le=200), BeforeValidator(_number)]


class _QueryParameters(BaseModel):
    """Query parameters are text, so they are converted."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class PendingQuery(_QueryParameters):
    """How many trips to show at most."""

    limit: Annotated[int, Field(ge=1, le=100), BeforeValidator(_number)] = 20


class AbandonedQuery(_QueryParameters):
    """Where to look, and how long ago a trip must have been taken."""

    zone: ZoneName | None = None
    older_than_s: Annotated[int, Field(ge=0, le=31_536_000), BeforeValidator(_number)] = 3_600


class _PageQuery(_QueryParameters):
    """Where a page begins, as `next` of the page before says, and how many rows it has at most."""

    after: Annotated[str, Field(pattern=r"^-?\d{1,18}~[A-Za-z0-9._:@|-]{0,97}$")] | None = None
    limit: PageSize = 50


class RidesQuery(_PageQuery):
    """Which of a customer's live trips."""


class ZonePendingQuery(_PageQuery):
    """The zone of a path, and which of its pending trips."""

    zone: ZoneName


class DeadLettersQuery(_QueryParameters):
    """The zone of a path, and which of its dead letters."""

    zone: ZoneName
    after: Annotated[str, Field(pattern=r"^\d{1,15}-\d{1,10}$")] | None = None
    limit: PageSize = 50


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
    limit: PageSize = 50


class WhyQuery(_QueryParameters):
    """The trip and the driver to explain."""

    trip: TripId
    driver: DriverId


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
