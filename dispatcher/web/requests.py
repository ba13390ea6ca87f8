"""What a request may say: one model a body, one place for each rule, one code for each fault."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import orjson
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from dispatcher.core import trips, zones
from dispatcher.core.errors import PROBLEMS, Refusal
from dispatcher.core.transitions import DRIVER_ACTIONS
from dispatcher.core.trips import DEFAULT_VEHICLE_TYPE, MAX_LATITUDE

MAX_BODY: Final = 64 * 1024
#: The version column is an integer of four bytes.
_MAX_VERSION: Final = 2**31 - 1
#: 9999-12-31: the end of what RFC 3339 can write.
_LAST_MS: Final = 253_402_300_799_999
_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
# An escaped NUL is legal JSON, and nothing that Postgres can store as text or jsonb.
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def _pattern(*expressions: re.Pattern[str]) -> StringConstraints:
    return StringConstraints(pattern="^(?:" + "|".join(e.pattern for e in expressions) + ")$")


def _to_ms(value: object) -> object:
    """RFC 3339 text as milliseconds since the epoch; a number is that already."""
    if not isinstance(value, str):
        return value
    if not _RFC3339.fullmatch(value):
        raise ValueError("takes RFC 3339 text, or milliseconds since the epoch")
    return int(datetime.fromisoformat(value.upper()).timestamp() * 1000)


TripId = Annotated[str, _pattern(trips.TRIP_ID)]
NewTripId = Annotated[str, _pattern(trips.TRIP_ID, trips.TRIP_SUFFIX)]
ZoneName = Annotated[str, _pattern(zones.ZONE)]
VehicleType = Annotated[str, _pattern(trips.VEHICLE_TYPE)]
Version = Annotated[int, Field(ge=0, le=_MAX_VERSION)]
Reason = Annotated[str, Field(max_length=500)]
Moment = Annotated[int, BeforeValidator(_to_ms), Field(ge=0, le=_LAST_MS)]
Action = Literal["accept", "decline", "arrive", "start", "complete", "cancel"]
assert {*DRIVER_ACTIONS, "decline"} == set(Action.__args__)  # type: ignore[attr-defined]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class Place(_Body):
    """A position in degrees (WGS 84)."""

    lat: float = Field(ge=-MAX_LATITUDE, le=MAX_LATITUDE)
    lng: float = Field(ge=-180, le=180)

    def pair(self) -> tuple[float, float]:
        """(lat, lng)."""
        return self.lat, self.lng


class NewTrip(_Body):
    """A trip that a customer asks for."""

    pickup: Place
    dropoff: Place | None = None
    vehicle_type: VehicleType = DEFAULT_VEHICLE_TYPE
    zone: ZoneName | None = None
    trip_request_id: NewTripId | None = None


class Cancellation(_Body):
    """A trip that is not wanted any more."""

    trip_request_id: TripId
    version: Version | None = None
    reason: Reason | None = None


class TripAction(_Body):
    """A driver's step with a trip."""

    action: Action
    trip_request_id: TripId
    version: Version | None = None
    reason: Reason | None = None


class Fix(Place):
    """A position, and when it was measured; RFC 3339 text, or milliseconds since the epoch."""

    recorded_at: Moment | None = None


class Fixes(_Body):
    """Positions that were gathered, in any order."""

    points: list[Fix] = Field(min_length=1, max_length=100)


class Availability(_Body):
    """What a driver offers from now on; what is not named stays as it is."""

    availability_status: Literal["available", "unavailable"] | None = None
    is_online: bool | None = None
    zone: ZoneName | None = None
    vehicle_type: VehicleType | None = None
    location: Place | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self == _SILENT:
            raise ValueError("name at least one of " + ", ".join(type(self).model_fields))
        return self


_SILENT: Final = Availability.model_construct()


class _Query(BaseModel):
    """Query parameters are text, so they are converted; empty ones are absent."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: dict[str, str]) -> dict[str, str]:
        return {name: value for name, value in values.items() if value}


class PendingQuery(_Query):
    """How many trips to show at most."""

    limit: int = Field(20, ge=1, le=100)


class AbandonedQuery(_Query):
    """Where to look, and how long ago a trip must have been taken."""

    zone: ZoneName | None = None
    older_than_s: int = Field(3_600, ge=0, le=31_536_000)


class TripPath(_Query):
    """The trip of a path."""

    id: TripId


class ZonePath(_Query):
    """The zone of a path."""

    zone: ZoneName


_Model = TypeVar("_Model", bound=BaseModel)

#: The code of a wrong field, by the field's name; any other is `invalid_body`.
CODES: Final = {
    "action": "unknown_action",
    "lat": "invalid_location",
    "lng": "invalid_location",
    "pickup": "invalid_location",
    "dropoff": "invalid_location",
    "location": "invalid_location",
    "version": "invalid_version",
    "trip_request_id": "invalid_trip_id",
    "id": "invalid_trip_id",
    "zone": "invalid_zone",
    "vehicle_type": "invalid_vehicle_type",
}
_SENTENCES: Final = {"invalid_zone": "a zone's name takes lower-case letters, digits and '-'."}


def check(kind: type[_Model], data: Any) -> _Model:
    """The data as a model. Raises Refusal with the code of the first wrong field."""
    try:
        return kind.__pydantic_validator__.validate_python(data)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise _refusal(error) from None


def check_fixes(data: dict[str, Any]) -> list[tuple[float, float, int | None]]:
    """Positions, one or many, as (lat, lng, ms or None)."""
    fixes = check(Fixes, data).points if "points" in data else [check(Fix, data)]
    return [(fix.lat, fix.lng, fix.recorded_at) for fix in fixes]


def _refusal(error: ValidationError) -> Refusal:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    names = [part for part in first["loc"] if isinstance(part, str)]
    code = CODES.get(names[-1], "invalid_body") if names else "invalid_body"
    field = ".".join(map(str, first["loc"]))
    if code == "invalid_body":
        reason = first["msg"].removeprefix("Value error, ") + "."
    else:
        reason = _SENTENCES.get(code, PROBLEMS[code].message)
    message = f"{field}: {reason[0].lower()}{reason[1:]}" if field else f"The body is wrong: {reason}"
    return Refusal(code, message, field=field)


async def read_object(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object.

    Raises Refusal unsupported_media_type, body_too_large, malformed_json or malformed_request.
    """
    _check_media_type(request.headers)
    length = request.content_length
    if length is not None and length > MAX_BODY:
        raise Refusal("body_too_large")
    content = request.content
    try:
        if content.is_eof() and length is not None:  # all of it came along with the head
            return parse_object(content.read_nowait(-1))
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refusal("body_too_large") from None
    except (web.RequestPayloadError, HttpProcessingError):
        raise Refusal("malformed_request", "The body's transfer encoding is broken.") from None
    return parse_object(raw)


def parse_object(raw: bytes) -> dict[str, Any]:
    """The same, from the body's bytes."""
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError:  # broken UTF-8, NaN and too deep a nesting, too
        raise Refusal("malformed_json") from None
    if not isinstance(data, dict):
        raise Refusal("malformed_json")
    if b"\\u0000" in raw and _NUL.search(raw):
        raise Refusal("malformed_json", "Text in the body must not hold NUL characters.")
    return data


def _check_media_type(headers: CIMultiDictProxy[str]) -> None:
    encoding = headers.get(hdrs.CONTENT_ENCODING)
    if encoding is not None and encoding.strip().lower() != "identity":
        raise Refusal("unsupported_media_type")
    given = headers.get(hdrs.CONTENT_TYPE)
    if given is None or given == "application/json":
        return
    kind, _, rest = given.partition(";")
    name, _, charset = rest.partition("=")
    # The type of a form is what curl says when it was not told: its -d is meant as JSON here.
    if kind.strip().lower() not in ("application/json", "application/x-www-form-urlencoded") or (
        name.strip().lower() == "charset" and charset.strip(' "').lower() not in ("utf-8", "utf8")
    ):
        raise Refusal("unsupported_media_type")
