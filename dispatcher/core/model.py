"""The words of the trade: trips, drivers, roles, and the one table of transitions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple, get_type_hints

# Redis keys are built from these, so nothing that means something in a key may pass.
USER_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@|-]{0,63}")
ZONE: Final = re.compile(r"[a-z0-9-]{1,32}")
VEHICLE_TYPE: Final = re.compile(r"[a-z0-9-]{1,32}")
TRIP_ID: Final = re.compile(r"[a-z0-9-]{1,32}_[A-Za-z0-9_-]{1,64}")
TRIP_SUFFIX: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

DEFAULT_ZONE: Final = "default"
DEFAULT_VEHICLE_TYPE: Final = "car"
# Web Mercator's edge: GEOADD refuses anything nearer to a pole.
MAX_LATITUDE: Final = 85.05112878


class Role(StrEnum):
    """Who acts. `system` is the dispatcher itself: expiry, drivers that are lost."""

    DRIVER = "driver"
    CUSTOMER = "customer"
    ADMIN = "admin"
    SYSTEM = "system"


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
#: Released when their driver goes offline or is lost.
NOT_STARTED: Final = frozenset({Status.ACCEPTED, Status.ARRIVED})
FINAL: Final = frozenset({Status.COMPLETED, Status.CANCELLED, Status.EXPIRED})


class DriverEffect(StrEnum):
    """What a transition does to the trip's driver."""

    NONE = "none"
    TAKES = "takes"
    KEEPS = "keeps"
    FREED = "freed"  # the driver is free again, the trip keeps their name for the record
    CLEARED = "cleared"  # the driver is free again and the trip has no driver any more


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the table: who may take a trip from which states to which, and what it means.

    `event` is the name in `trip_events`, `trip_<event>` the `response_code`; `stamp` the column
    that takes the time.
    """

    action: str
    roles: frozenset[Role]
    sources: frozenset[Status]
    target: Status
    driver: DriverEffect
    event: str
    stamp: str | None
    limit_class: str = "general"


def _row(
    action: str,
    roles: set[Role],
    sources: set[Status],
    target: Status,
    driver: DriverEffect,
    event: str,
    stamp: str | None,
    limit_class: str = "general",
) -> Transition:
    return Transition(
        action, frozenset(roles), frozenset(sources), target, driver, event, stamp, limit_class
    )


_S, _R, _D = Status, Role, DriverEffect
ACCEPT: Final = _row("accept", {_R.DRIVER}, {_S.PENDING}, _S.ACCEPTED, _D.TAKES,
                     "accepted", "accepted_at", "trip_accept")  # fmt: skip
ARRIVE: Final = _row("arrive", {_R.DRIVER}, {_S.ACCEPTED}, _S.ARRIVED, _D.KEEPS,
                     "arrived", "arrived_at")  # fmt: skip
START: Final = _row("start", {_R.DRIVER}, {_S.ARRIVED}, _S.ONGOING, _D.KEEPS,
                    "started", "trip_start_time")  # fmt: skip
COMPLETE: Final = _row("complete", {_R.DRIVER}, {_S.ONGOING}, _S.COMPLETED, _D.FREED,
                       "completed", "completed_at")  # fmt: skip
GIVE_BACK: Final = _row("cancel", {_R.DRIVER}, {_S.ACCEPTED, _S.ARRIVED}, _S.PENDING, _D.CLEARED,
                        "released", None, "trip_cancel")  # fmt: skip
CANCEL: Final = _row("cancel", {_R.CUSTOMER, _R.ADMIN}, {_S.PENDING, _S.ACCEPTED, _S.ARRIVED},
                     _S.CANCELLED, _D.FREED, "cancelled", "cancelled_at",
                     "trip_cancel")  # fmt: skip
RELEASE: Final = _row("release", {_R.DRIVER, _R.SYSTEM}, {_S.ACCEPTED, _S.ARRIVED}, _S.PENDING,
                      _D.CLEARED, "released", None)  # fmt: skip
EXPIRE: Final = _row("expire", {_R.SYSTEM}, {_S.PENDING}, _S.EXPIRED, _D.NONE,
                     "expired", "expired_at")  # fmt: skip

TRANSITIONS: Final = (ACCEPT, ARRIVE, START, COMPLETE, GIVE_BACK, CANCEL, RELEASE, EXPIRE)
#: What a driver's app may ask for; `decline` changes an offer, not a trip.
DRIVER_ACTIONS: Final = {t.action: t for t in (ACCEPT, ARRIVE, START, COMPLETE, GIVE_BACK)}

STAMPS: Final = ("accepted_at", "arrived_at", "trip_start_time", "completed_at",
                 "cancelled_at", "expired_at")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Actor:
    """Who a request is from, as its token says."""

    user_id: str
    role: Role


def iso(at_ms: int | None) -> str | None:
    """RFC 3339 in UTC with milliseconds, or None."""
    if at_ms is None:
        return None
    second, ms = divmod(at_ms, 1000)
    return f"{_to_second(second)}.{ms:03d}Z"


@lru_cache(maxsize=16_384)
def _to_second(second: int) -> str:
    # Trips of one hour share most of their seconds, and one trip is shown many times.
    return datetime.fromtimestamp(second, UTC).isoformat()[:19]


def moment(at_ms: int) -> datetime:
    """Milliseconds since the epoch as an aware datetime, exact to the millisecond."""
    return _EPOCH + timedelta(milliseconds=at_ms)


def millis(at: datetime | None) -> int | None:
    """An aware datetime as milliseconds since the epoch."""
    return None if at is None else round(at.timestamp() * 1000)


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
        get = hash_.get
        return cls._make(
            [parse(text) if (text := get(name)) else empty for name, parse, empty in _FIELDS]
        )

    def to_hash(self, since: Trip | None = None) -> list[str]:
        """Field, value, field, value, … for the Redis hash; only what has changed `since` then.

        A new trip has no hash yet, so what is empty is left out.
        """
        flat: list[str] = []
        is_new = self.version == 0
        for name, value, before in zip(self._fields, self, since or _NOTHING, strict=True):
            if since is not None and before == value:
                continue
            if value is not None:
                flat += (name, str(value))
            elif not is_new:
                flat += (name, "")
        return flat

    def after(self, transition: Transition, at_ms: int, **changes: Any) -> Trip:
        """This trip once `transition` has happened at `at_ms`."""
        changes |= {
            "current_status": transition.target,
            "version": self.version + 1,
            "updated_at": at_ms,
        }
        if transition.driver is DriverEffect.CLEARED:
            changes |= {
                "driver_id": None,
                "driver_vehicle_type": None,
                "locked_at": None,
                "accepted_at": None,
                "arrived_at": None,
            }
        elif transition.driver is DriverEffect.TAKES:
            changes["locked_at"] = at_ms
        if transition.stamp:
            changes[transition.stamp] = at_ms
        return self._replace(**changes)

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
            "accepted_at": iso(self.accepted_at),
            "arrived_at": iso(self.arrived_at),
            "trip_start_time": iso(self.trip_start_time),
            "completed_at": iso(self.completed_at),
            "cancelled_at": iso(self.cancelled_at),
            "expired_at": iso(self.expired_at),
            "cancel_reason": self.cancel_reason,
        }


def _parser(hint: Any) -> Any:
    if hint == Status:
        return {status.value: status for status in Status}.__getitem__
    return next(kind for kind in (int, float, str) if hint in (kind, kind | None))


_FIELDS: Final = [
    (name, _parser(hint), Trip._field_defaults.get(name)) for name, hint in get_type_hints(Trip).items()
]
_NOTHING: Final = (None,) * len(_FIELDS)


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver as Redis and Postgres hold them."""

    user_id: str
    zone: str
    availability_status: str = "unavailable"
    is_online: bool = False
    vehicle_type: str = DEFAULT_VEHICLE_TYPE
    version: int = 0
    updated_at: int = 0
    trip_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The driver as answers show them."""
        return {
            "user_id": self.user_id,
            "zone": self.zone,
            "availability_status": self.availability_status,
            "is_online": self.is_online,
            "vehicle_type": self.vehicle_type,
            "trip_id": self.trip_id,
            "updated_at": iso(self.updated_at),
        }


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """One request's key in its scope, with the fingerprint of what was asked (hex SHA-256)."""

    user_id: str
    endpoint: str
    key: str
    fingerprint: str
    request_payload: bytes = field(repr=False, default=b"{}")


def zone_of(trip_id: str) -> str:
    """The zone that a trip's id names."""
    return trip_id.partition("_")[0]
