"""Where Redis and Postgres say different things of a zone."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from dispatcher.core.drivers import Driver
from dispatcher.core.trips import FINAL, Trip
from dispatcher.live.inspection import LiveDriver, LiveTrip

_NOTHING: Final = "nothing"
_FINAL: Final = frozenset(status.value for status in FINAL)


class DriftKind(StrEnum):
    """What differs."""

    TRIP = "trip"
    DRIVER = "driver"
    GEO = "geo"  # who may be offered a trip
    OFFERS = "offers"
    WAVES = "waves"
    CLAIMS = "claims"  # attempts that nobody looked after
    PRESENCE = "presence"
    ANSWERS = "answers"


class Drift(NamedTuple):
    """One thing that differs: what of, what Redis says, and what follows from Postgres."""

    kind: DriftKind
    subject: str
    redis: str
    postgres: str


def trip_drift(trip_id: str, live: LiveTrip, trip: Trip | None) -> Drift | None:
    """How a trip differs. A trip that is over may be gone from Redis, or still be there as it ended."""
    is_over = trip is None or trip.current_status in FINAL
    if is_over and (live.status is None or live.status in _FINAL):
        return None
    known = _NOTHING
    if trip is not None:
        known = _trip_text(trip.current_status, str(trip.version), trip.driver_id)
    found = _NOTHING if live.status is None else _trip_text(live.status, live.version, live.driver_id)
    return Drift(DriftKind.TRIP, trip_id, found, known) if found != known else None


def driver_drift(zone: str, driver_id: str, live: LiveDriver, driver: Driver | None) -> Drift | None:
    """How a driver differs. One who is offline, free, or at work elsewhere, may be gone from Redis."""
    is_here = driver is not None and driver.zone == zone
    is_bound = is_here and driver is not None and (driver.is_online or driver.trip_id is not None)
    if not is_bound and live.is_online != "1" and not live.trip_id:
        return None
    known = _NOTHING
    if driver is not None:
        is_online = "1" if driver.is_online and is_here else "0"
        known = _driver_text(
            driver.zone, is_online, driver.availability_status, driver.vehicle_type,
            str(driver.version), driver.trip_id,
        )  # fmt: skip
    found = _NOTHING if live.is_online is None else _driver_text(*live[:6])
    return Drift(DriftKind.DRIVER, driver_id, found, known) if found != known else None


def geo_drift(
    driver_id: str, vehicle_type: str, live: LiveDriver, *, is_listed: bool, fresh_after_ms: int
) -> Drift | None:
    """Whether a driver is in the geo set of a vehicle type who should not be, or the reverse.

    Whose fix is older than `fresh_after_ms` may be in it until the sweep, and need not be.
    """
    is_free = live.is_free and live.vehicle_type == vehicle_type
    is_fresh = int(live.fix_ms or 0) > fresh_after_ms
    if is_listed == is_free or (not is_listed and not is_fresh):
        return None
    return Drift(
        DriftKind.GEO, driver_id,
        f"{'is' if is_listed else 'is not'} in the geo set of {vehicle_type}",
        f"{'is' if is_free else 'is not'} free with a {vehicle_type}, version {live.version}",
    )  # fmt: skip


def _trip_text(status: str, version: str | None, driver_id: str | None) -> str:
    return f"{status}, version {version}, driver {driver_id or '-'}"


def _driver_text(
    zone: str | None,
    is_online: str | None,
    availability_status: str | None,
    vehicle_type: str | None,
    version: str | None,
    trip_id: str | None,
) -> str:
    work = f"{'online' if is_online == '1' else 'offline'} in {zone}"
    return f"{work}, {availability_status}, {vehicle_type}, version {version}, trip {trip_id or '-'}"
