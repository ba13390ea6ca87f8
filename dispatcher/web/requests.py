"""What requests must look like: one model a body, and a code of its own for each kind of mistake."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dispatcher.core.errors import Refusal
from dispatcher.core.model import (
    DEFAULT_VEHICLE_TYPE,
    MAX_LATITUDE,
    TRIP_ID,
    VEHICLE_TYPE,
    ZONE,
    millis,
)

_Lat = Annotated[float, Field(ge=-MAX_LATITUDE, le=MAX_LATITUDE, allow_inf_nan=False)]
_Lng = Annotated[float, Field(ge=-180, le=180, allow_inf_nan=False)]
_Version = Annotated[int, Field(ge=0, le=2_147_483_646)]
_TripId = Annotated[str, Field(pattern=f"^{TRIP_ID.pattern}$")]
_OwnId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,98}$")]
_Zone = Annotated[str, Field(pattern=f"^{ZONE.pattern}$")]
_Vehicle = Annotated[str, Field(pattern=f"^{VEHICLE_TYPE.pattern}$")]
#: From 2000 to 2100: what a phone without a clock sends is no time.
_RecordedAt = Annotated[int, Field(ge=946_684_800_000, le=4_102_444_800_000)] | str | None


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class Place(_Model):
    """A position in degrees (WGS 84)."""

    lat: _Lat
    lng: _Lng


class CreateTrip(_Model):
    """Body of a trip's creation."""

    pickup: Place
    dropoff: Place | None = None
    vehicle_type: _Vehicle = DEFAULT_VEHICLE_TYPE
    zone: _Zone | None = None
    trip_request_id: _OwnId | None = None


class CancelTrip(_Model):
    """Body of a cancellation by the customer or an admin."""

    trip_request_id: _TripId
    reason: Annotated[str, Field(max_length=500)] | None = None
    version: _Version | None = None


class TripAction(_Model):
    """Body of a driver's step."""

    action: Literal["accept", "decline", "arrive", "start", "complete", "cancel"]
    trip_request_id: _TripId
    version: _Version | None = None


class Point(Place):
    """A fix; `recorded_at` is RFC 3339 with a zone, or milliseconds since the epoch."""

    recorded_at: _RecordedAt = None

    def fix(self) -> tuple[float, float, int | None]:
        """(lat, lng, ms or None)."""
        at = self.recorded_at
        if isinstance(at, str):
            try:
                parsed = datetime.fromisoformat(at)
            except ValueError:
                parsed = None
            if parsed is None or parsed.tzinfo is None or not 2000 <= parsed.year < 2100:
                raise Refusal("invalid_body", "recorded_at: takes RFC 3339 with a zone, or ms.")
            at = millis(parsed)
        return self.lat, self.lng, at


class Location(_Model):
    """Body of positions: one, or a batch."""

    lat: _Lat | None = None
    lng: _Lng | None = None
    recorded_at: _RecordedAt = None
    points: Annotated[list[Point], Field(min_length=1, max_length=100)] | None = None

    @model_validator(mode="after")
    def _one_or_many(self) -> Location:
        if (self.points is None) == (self.lat is None or self.lng is None):
            raise ValueError("send lat and lng, or points")
        return self

    def fixes(self) -> list[tuple[float, float, int | None]]:
        """All points as (lat, lng, ms or None)."""
        if self.points is not None:
            return [point.fix() for point in self.points]
        assert self.lat is not None
        assert self.lng is not None
        return [Point(lat=self.lat, lng=self.lng, recorded_at=self.recorded_at).fix()]


class Availability(_Model):
    """Body of a change of availability; what is absent stays as it is."""

    availability_status: Literal["available", "unavailable"] | None = None
    is_online: bool | None = None
    zone: _Zone | None = None
    vehicle_type: _Vehicle | None = None
    location: Place | None = None


#: The code of a mistake, by the field it is in.
_CODES: Final = {
    "action": "unknown_action",
    "pickup": "invalid_location",
    "dropoff": "invalid_location",
    "location": "invalid_location",
    "points": "invalid_location",
    "lat": "invalid_location",
    "lng": "invalid_location",
    "version": "invalid_version",
    "trip_request_id": "invalid_trip_id",
    "zone": "invalid_zone",
    "vehicle_type": "invalid_vehicle_type",
}

Body = TypeVar("Body", bound=BaseModel)


def parse_object(raw: bytes | str) -> dict[str, Any]:
    """A JSON object (RFC 8259: NaN is none of it). Raises Refusal malformed_json."""
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise Refusal("malformed_json")
    return document


def check(model: type[Body], document: dict[str, Any]) -> Body:
    """The document as `model`. Raises Refusal with the code of the first wrong field."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        code = _CODES.get(str(first["loc"][0]) if first["loc"] else "", "invalid_body")
        message = first["msg"].removeprefix("Value error, ")
        raise Refusal(code, f"{where}: {message}" if where else message) from None
