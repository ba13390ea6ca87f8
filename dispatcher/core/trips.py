"""Trips: their states, their ids, and their columns in Redis, Postgres and JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from itertools import compress
from operator import ne
from typing import Any, Final, NamedTuple, get_type_hints

from dispatcher.core.times import iso

# Redis keys are built from ids, so nothing that means something in a key may pass.
VEHICLE_TYPE: Final = re.compile(r"[a-z0-9-]{1,32}")
TRIP_ID: Final = re.compile(r"[a-z0-9-]{1,32}_[A-Za-z0-9_-]{1,64}")
TRIP_SUFFIX: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

DEFAULT_VEHICLE_TYPE: Final = "car"
# Web Mercator's edge: GEOADD refuses anything nearer to a pole.
MAX_LATITUDE: Final = 85.05112878


class Status(StrEnum):
    """`trip_requests.current_status`."""

    PENDING = "pending"
    ACCEPTED = "accepted"
    ARRIVED = "arrived"
    ONGOING = "ongoing"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


#: A driver with a trip in one of these takes no other.
ACTIVE: Final = frozenset({Status.ACCEPTED, Status.ARRIVED, Status.ONGOING})
FINAL: Final = frozenset({Status.COMPLETED, Status.CANCELLED, Status.EXPIRED})

#: Of each field: its place among the values of a hash and in a Trip, and what makes it of its text.
Layout = tuple[tuple[int, int, Any], ...]


class Trip(NamedTuple):
    """A trip as Redis and Postgres hold it. Times are milliseconds since the epoch."""

    id: str
    zone: str
    customer_id: str
    vehicle_type: str
    pickup_lat: float
    pickup_lng: float
    created_at: int
    updated_at: int
    current_status: Status = Status.PENDING
    version: int = 0
    driver_id: str | None = None
    dropoff_lat: float | None = None
    dropoff_lng: float | None = None
    locked_at: int | None = None
    accepted_at: int | None = None
    arrived_at: int | None = None
    trip_start_time: int | None = None
    completed_at: int | None = None
    cancelled_at: int | None = None
    expired_at: int | None = None
    cancel_reason: str | None = None
    #: The driver's own vehicle type: names the geo set the driver returns to when free.
    driver_vehicle_type: str | None = None

    @classmethod
    def from_hash(cls, hash_: dict[str, str]) -> Trip:
        """A trip from its Redis hash: every value is text, and empty text stands for nothing."""
        return cls.from_texts(layout_of(tuple(hash_)), tuple(hash_.values()))

    @classmethod
    def from_texts(cls, layout: Layout, texts: Sequence[str]) -> Trip:
        """The same from the values alone, given the layout of the hash that they are of.

        Raises ValueError where what every trip has is empty, or what is a number is none.
        """
        row = list(_EMPTY_ROW)
        for at, place, parse in layout:
            if text := texts[at]:
                row[place] = text if parse is None else parse(text)
            elif place < _NEVER_EMPTY:
                raise ValueError(f"a trip's {cls._fields[place]} is empty")
        return cls._make(row)

    def changed(self, columns: Mapping[str, Any]) -> Trip:
        """The trip with other values in these columns; costs half of what `_replace` costs."""
        row = list(self)
        for name, value in columns.items():
            row[_FIELDS[name][0]] = value
        return Trip._make(row)

    def to_hash(self, since: Trip | None = None) -> list[str]:
        """Field, value, field, value, … for the Redis hash; only what has changed `since` then.

        A new trip has no hash yet, so what is empty is left out.
        """
        flat: list[str] = []
        is_new = self.version == 0
        columns: Iterable[tuple[str, Any]] = zip(self._fields, self, strict=True)
        if since is not None:
            columns = compress(columns, map(ne, self, since))
        for name, value in columns:
            if value is not None:
                flat += (name, str(value))
            elif not is_new:
                flat += (name, "")
        return flat

    def to_json(self) -> dict[str, Any]:
        """The trip as answers and frames show it."""
        return {
            "id": self.id,
            "zone": self.zone,
            "current_status": self.current_status,
            "version": self.version,
            "customer_id": self.customer_id,
            "driver_id": self.driver_id,
            "vehicle_type": self.vehicle_type,
            "pickup": {"lat": self.pickup_lat, "lng": self.pickup_lng},
            "dropoff": None
            if self.dropoff_lat is None
            else {"lat": self.dropoff_lat, "lng": self.dropoff_lng},
            "created_at": iso(self.created_at),
            "updated_at": iso(self.updated_at),
            # Most are empty, and a call takes time.
            "accepted_at": self.accepted_at and iso(self.accepted_at),
            "arrived_at": self.arrived_at and iso(self.arrived_at),
            "trip_start_time": self.trip_start_time and iso(self.trip_start_time),
            "completed_at": self.completed_at and iso(self.completed_at),
            "cancelled_at": self.cancelled_at and iso(self.cancelled_at),
            "expired_at": self.expired_at and iso(self.expired_at),
            "cancel_reason": self.cancel_reason,
        }


def _parser(hint: Any) -> Any:
    if hint == Status:
        return {status.value: status for status in Status}.__getitem__
    return next(kind for kind in (int, float, None) if kind is None or hint in (kind, kind | None))


#: Where each field stands, and what makes it of its text; None: it is text.
_FIELDS: Final = {
    name: (place, _parser(hint)) for place, (name, hint) in enumerate(get_type_hints(Trip).items())
}
#: What every trip's hash has, and is never empty: settles write these with the first version.
ALWAYS_THERE: Final = Trip._fields[: Trip._fields.index("version") + 1]
_NEVER_EMPTY: Final = len(ALWAYS_THERE)
_EMPTY_ROW: Final = tuple(Trip._field_defaults.get(name) for name in _FIELDS)


# What raises is not remembered, so the memory of orders is bounded by this, whatever Redis holds.
_MAX_NAMES_CHARS: Final = 1024


@lru_cache(maxsize=256)
def layout_of(names: tuple[str, ...]) -> Layout:
    """Where a hash of these fields, in this order, has what of a trip; other fields are passed over.

    Trips have few such orders, and to look up each field of each trip takes twice as long. Raises
    ValueError where the names are far longer, all together, than the 270 characters of a trip's.
    """
    if sum(map(len, names)) > _MAX_NAMES_CHARS:
        raise ValueError(f"a trip's hash has {len(names)} fields, whose names are too long")
    return tuple((at, *_FIELDS[name]) for at, name in enumerate(names) if name in _FIELDS)


def zone_of(trip_id: str) -> str:
    """The zone that a trip's id names."""
    return trip_id.partition("_")[0]
