"""What a request may say: one model a body, one place for each rule, one code for each fault."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from dispatcher.core import trips, zones
from dispatcher.core.actors import USER_ID, Role
from dispatcher.core.errors import PROBLEMS, Refusal
from dispatcher.core.transitions import ACTIONS
from dispatcher.core.trips import DEFAULT_VEHICLE_TYPE, MAX_LATITUDE

#: The version column is an integer of four bytes.
_MAX_VERSION: Final = 2**31 - 1
#: 9999-12-31: the end of what RFC 3339 can write.
_MAX_TIMESTAMP_MS: Final = 253_402_300_799_999
_RFC3339: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
#: Times before 1970 are refused, as their milliseconds are.
_SINCE_1970: Final = f"^(?!0|1[0-8]|19[0-6]){_RFC3339.pattern}$"


def _pattern(*expressions: re.Pattern[str]) -> StringConstraints:
    return StringConstraints(pattern="^(?:" + "|".join(e.pattern for e in expressions) + ")$")


def _whole(value: object) -> object:
    """In JSON Schema, 1.0 is an integer, too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _timestamp_ms(value: object) -> object:
    """RFC 3339 text as milliseconds since the epoch; a number is that already."""
    if not isinstance(value, str):
        return _whole(value)
    if not _RFC3339.fullmatch(value):
        raise ValueError("takes RFC 3339 text, or milliseconds since the epoch")
    return int(datetime.fromisoformat(value.upper()).timestamp() * 1000)


_TRIP_ID: Final = "default_9f86d081884c7d65"
TripId = Annotated[str, _pattern(trips.TRIP_ID), Field(examples=[_TRIP_ID])]
NewTripId = Annotated[str, _pattern(trips.TRIP_ID, trips.TRIP_SUFFIX)]
ZoneName = Annotated[str, _pattern(zones.ZONE), Field(examples=[zones.DEFAULT_ZONE])]
DriverId = Annotated[str, _pattern(USER_ID), Field(examples=["driver-1"])]
#: One of the setting's types: the handler looks.
VehicleType = str
# The bounds come first: behind the converter they would be missing in the description.
Version = Annotated[int, Field(ge=0, le=_MAX_VERSION), BeforeValidator(_whole)]
Reason = Annotated[
    str,
    Field(max_length=500),
    # What holds a NUL is refused with the whole body.
    WithJsonSchema({"type": "string", "maxLength": 500, "pattern": r"^[^\u0000]*$"}),
]
TimestampMs = Annotated[
    int,
    BeforeValidator(_timestamp_ms),
    Field(ge=0, le=_MAX_TIMESTAMP_MS),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0, "maximum": _MAX_TIMESTAMP_MS},
                {"type": "string", "format": "date-time", "pattern": _SINCE_1970},
            ]
        }
    ),
]
Action = Literal["accept", "decline", "arrive", "start", "complete", "cancel"]
_DRIVER_ACTIONS: Final = {action for role, action in ACTIONS if role is Role.DRIVER}
assert {*_DRIVER_ACTIONS, "decline"} == set(Action.__args__)  # type: ignore[attr-defined]


class _RequestBody(BaseModel):
    # A field that nobody reads may be a misspelled guard, like `verison`, so it is refused.
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


def _example(of: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [of]})


_PLACE: Final = {"lat": 40.7549, "lng": -73.984}


class Place(_RequestBody):
    """A position in degrees (WGS 84)."""

    model_config = _example(_PLACE)

    lat: float = Field(ge=-MAX_LATITUDE, le=MAX_LATITUDE)
    lng: float = Field(ge=-180, le=180)

    def lat_lng(self) -> tuple[float, float]:
        """The position as services take it: (lat, lng)."""
        return self.lat, self.lng


def check_vehicle_type(vehicle_type: str | None, known: Collection[str]) -> None:
    """Raises Refusal invalid_vehicle_type, which names those that there are."""
    if vehicle_type is not None and vehicle_type not in known:
        message = f"vehicle_type: must be one of {', '.join(known)}."
        raise Refusal("invalid_vehicle_type", message, field="vehicle_type")


class NewTrip(_RequestBody):
    """A trip that a customer asks for."""

    model_config = _example({"pickup": _PLACE, "vehicle_type": DEFAULT_VEHICLE_TYPE})

    pickup: Place
    dropoff: Place | None = None
    vehicle_type: VehicleType = DEFAULT_VEHICLE_TYPE
    zone: ZoneName | None = None
    trip_request_id: NewTripId | None = None


class Cancellation(_RequestBody):
    """A trip that is not wanted any more."""

    model_config = _example({"trip_request_id": _TRIP_ID, "reason": "plans have changed"})

    trip_request_id: TripId
    version: Version | None = None
    reason: Reason | None = None


class Ending(_RequestBody):
    """A trip that has started and is to end without its driver."""

    model_config = _example({"trip_request_id": _TRIP_ID, "reason": "the driver is gone"})

    trip_request_id: TripId
    version: Version | None = None
    reason: Reason | None = None


class Assignment(_RequestBody):
    """A pending trip, and the driver who is to have it."""

    model_config = _example({"trip_request_id": _TRIP_ID, "driver_id": "driver-1"})

    trip_request_id: TripId
    driver_id: DriverId
    version: Version | None = None


class OfferByHand(_RequestBody):
    """A pending trip, and the driver who is to be asked."""

    model_config = _example({"trip_request_id": _TRIP_ID, "driver_id": "driver-1"})

    trip_request_id: TripId
    driver_id: DriverId


class ForcedOffline(_RequestBody):
    """The driver who is to be offline."""

    model_config = _example({"driver_id": "driver-1"})

    driver_id: DriverId


class TripAction(_RequestBody):
    """A driver's step with a trip."""

    model_config = _example({"action": "accept", "trip_request_id": _TRIP_ID})

    action: Action
    trip_request_id: TripId
    version: Version | None = None
    reason: Reason | None = None


class Fix(Place):
    """A position, and when it was measured; RFC 3339 text, or milliseconds since the epoch."""

    model_config = _example({**_PLACE, "recorded_at": "2026-03-01T08:29:58.120Z"})

    recorded_at: TimestampMs | None = None


class Fixes(_RequestBody):
    """Positions that were gathered, in any order."""

    model_config = _example({"points": [{**_PLACE, "recorded_at": "2026-03-01T08:29:58.120Z"}]})

    points: list[Fix] = Field(min_length=1, max_length=100)


def _names_something(schema: dict[str, Any]) -> None:
    """Describes that one field at least has a value."""
    schema["examples"] = [{"is_online": True, "availability_status": "available", "location": _PLACE}]
    # Not as a choice of several schemas, of which generators of clients make several classes.
    schema["not"] = {"properties": {name: {"type": "null"} for name in schema["properties"]}}


class Availability(_RequestBody):
    """What a driver offers from now on; what is not named stays as it is."""

    model_config = ConfigDict(json_schema_extra=_names_something)

    availability_status: Literal["available", "unavailable"] | None = None
    is_online: bool | None = None
    zone: ZoneName | None = None
    vehicle_type: VehicleType | None = None
    location: Place | None = None

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self == _EMPTY_AVAILABILITY:
            raise ValueError("name at least one of " + ", ".join(type(self).model_fields))
        return self


_EMPTY_AVAILABILITY: Final = Availability.model_construct()


_Model = TypeVar("_Model", bound=BaseModel)

#: The code of a wrong field, by the field's name; any other is `invalid_body`.
FIELD_CODES: Final = {
    "action": "unknown_action",
    "lat": "invalid_location",
    "lng": "invalid_location",
    "pickup": "invalid_location",
    "dropoff": "invalid_location",
    "location": "invalid_location",
    "version": "invalid_version",
    "trip_request_id": "invalid_trip_id",
    "id": "invalid_trip_id",
    "trip": "invalid_trip_id",
    "driver_id": "invalid_driver_id",
    "zone": "invalid_zone",
    "vehicle_type": "invalid_vehicle_type",
}
#: Where the problem's own sentence is about something else than the form of the field.
_MESSAGES: Final = {"invalid_zone": "a zone's name takes lower-case letters, digits and '-'."}
#: What pydantic calls a field that the model does not have.
_UNKNOWN_FIELD: Final = "extra_forbidden"
#: The names of unknown fields are the caller's own, and may be of any length.
_MAX_SHOWN_FIELD: Final = 64


def parse_model(model: type[_Model], data: Mapping[str, Any]) -> _Model:
    """The data as a model. Raises Refusal with the code of the first wrong field."""
    try:
        return model.__pydantic_validator__.validate_python(data)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise _refusal_of(error) from None


def parse_positions(data: Mapping[str, Any]) -> list[tuple[float, float, int | None]]:
    """Positions, one or many, as (lat, lng, ms since the epoch or None).

    Raises Refusal invalid_location or invalid_body.
    """
    fixes = parse_model(Fixes, data).points if "points" in data else [parse_model(Fix, data)]
    return [(fix.lat, fix.lng, fix.recorded_at) for fix in fixes]


def _refusal_of(error: ValidationError) -> Refusal:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    names = [part for part in first["loc"] if isinstance(part, str)]
    field = ".".join(map(str, first["loc"]))
    if first["type"] == _UNKNOWN_FIELD:
        name = field[:_MAX_SHOWN_FIELD]
        return Refusal("invalid_body", f"{name}: there is no field of this name here.", field=name)
    code = FIELD_CODES.get(names[-1], "invalid_body") if names else "invalid_body"
    if code == "invalid_body":
        reason = first["msg"].removeprefix("Value error, ") + "."
    else:
        reason = _MESSAGES.get(code, PROBLEMS[code].message)
    message = f"{field}: {reason[0].lower()}{reason[1:]}" if field else f"The body is wrong: {reason}"
    return Refusal(code, message, field=field)
