"""Trips and drivers as Redis hashes hold them. (A trip's own half is Trip.to_hash and from_hash.)"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from dispatcher.core.drivers import AvailabilityStatus, Driver
from dispatcher.core.trips import ALWAYS_THERE, Layout, Trip, layout_of


def flat_to_dict(flat: Sequence[str]) -> dict[str, str]:
    """A flat reply of HGETALL as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def trip_from_flat(flat: Sequence[str]) -> Trip:
    """A trip from a flat reply of HGETALL. Raises ValueError where it is none, or not a whole one."""
    names, texts = tuple(flat[::2]), flat[1::2]
    if len(names) != len(texts):
        raise ValueError("a trip's hash lacks a value")
    return Trip.from_texts(_layout_of_whole(names), texts)


@lru_cache(maxsize=256)
def _layout_of_whole(names: tuple[str, ...]) -> Layout:
    if missing := set(ALWAYS_THERE).difference(names):
        raise ValueError(f"a trip's hash lacks {sorted(missing)}")
    return layout_of(names)


def driver_fields(driver: Driver) -> list[str]:
    """A driver's availability as field, value, field, value, …; the trip is bound by trips alone."""
    return [
        "zone", driver.zone,
        "availability_status", driver.availability_status,
        "is_online", "1" if driver.is_online else "0",
        "vehicle_type", driver.vehicle_type,
        "version", str(driver.version),
        "updated_at", str(driver.updated_at),
    ]  # fmt: skip


def driver_from_hash(user_id: str, zone: str, hash_: dict[str, str]) -> Driver:
    """A driver from their hash in a zone's Redis; an empty one is a driver who was never online
    (version -1). `Driver.zone` is where they work, which may be another zone by now."""
    return Driver(
        user_id=user_id,
        zone=hash_.get("zone", zone),
        availability_status=AvailabilityStatus(hash_.get("availability_status", "unavailable")),
        is_online=hash_.get("is_online") == "1",
        vehicle_type=hash_.get("vehicle_type", ""),
        version=int(hash_.get("version", "-1")),
        updated_at=int(hash_.get("updated_at", "0")),
        trip_id=hash_.get("trip_id") or None,
    )
