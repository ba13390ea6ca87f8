"""The rules of the claims over rows of Postgres: why a change may not go on.

They say what `lua/claim_*.lua` say, in the same order; tests/service/test_claim_rules.py holds the two
together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from dispatcher.core.actors import Actor, Role
from dispatcher.core.drivers import Driver, is_free
from dispatcher.core.trips import ACTIVE, Status, Trip
from dispatcher.live.claim_results import ClaimCode

#: Refusals that a retry with the same key may see change: they are not kept.
NOT_KEPT: Final = frozenset({ClaimCode.TRIP_NOT_FOUND, ClaimCode.NOT_OFFERED})
#: Refusals that tell neither state nor version: the trip may be another user's.
NOT_TOLD: Final = frozenset({ClaimCode.TRIP_NOT_FOUND, ClaimCode.TRIP_EXISTS})


def why_not_pending(trip: Trip | None, version: int | None) -> ClaimCode | None:
    """Why a trip is not there to be taken or declined."""
    if trip is None:
        return ClaimCode.TRIP_NOT_FOUND
    if trip.current_status in ACTIVE:
        return ClaimCode.TRIP_ALREADY_ASSIGNED
    if trip.current_status is not Status.PENDING:
        return ClaimCode.TRIP_NOT_PENDING
    if version is not None and version != trip.version:
        return ClaimCode.VERSION_CONFLICT
    return None


def why_not_accept(
    trip: Trip | None,
    driver: Driver | None,
    *,
    zone: str,
    version: int | None,
    offered: Collection[str] | None,
    is_trip_held: bool,
    is_trip_waited_for: bool,
    is_driver_held: bool,
) -> ClaimCode | None:
    """Why a driver does not get a trip; `offered` is None where anybody may accept it."""
    code = why_not_pending(trip, version)
    if code is not None:
        return code
    if driver is None or not driver.is_online or driver.zone != zone:
        code = ClaimCode.DRIVER_NOT_ONLINE
    elif not is_free(
        is_online=driver.is_online,
        availability_status=driver.availability_status,
        trip_id=driver.trip_id,
    ):
        code = ClaimCode.DRIVER_NOT_AVAILABLE
    elif offered is not None and driver.user_id not in offered:
        code = ClaimCode.NOT_OFFERED
    elif is_trip_held:
        code = ClaimCode.TRIP_BUSY if is_trip_waited_for else ClaimCode.TRIP_ALREADY_ASSIGNED
    elif is_driver_held:
        code = ClaimCode.DRIVER_NOT_AVAILABLE
    return code


def why_no_transition(
    trip: Trip | None,
    actor: Actor,
    *,
    version: int | None,
    sources: Iterable[Status],
    is_held: bool,
) -> ClaimCode | None:
    """Why a trip does not take a step; TRIP_BUSY where another change may yet allow it."""
    owner = {Role.DRIVER: trip.driver_id, Role.CUSTOMER: trip.customer_id} if trip else {}
    if trip is None or owner.get(actor.role, actor.user_id) != actor.user_id:
        return ClaimCode.TRIP_BUSY if is_held else ClaimCode.TRIP_NOT_FOUND
    if trip.current_status not in sources:
        return ClaimCode.TRIP_BUSY if is_held else ClaimCode.INVALID_TRIP_STATUS
    if version is not None and version != trip.version:
        return ClaimCode.VERSION_CONFLICT
    return ClaimCode.TRIP_BUSY if is_held else None


def why_no_creation(trip: Trip | None, *, is_held: bool) -> ClaimCode | None:
    """Why a trip of this id is not created."""
    if is_held:
        return ClaimCode.TRIP_BUSY
    return None if trip is None else ClaimCode.TRIP_EXISTS


def why_no_availability(
    driver: Driver,
    trip: Trip | None,
    *,
    from_zone: str,
    claimed_trip: str,
    changes_zone: bool,
    vehicle_type: str | None,
    is_held: bool,
) -> ClaimCode | None:
    """Why a driver's availability does not change; `trip` is the driver's own."""
    if driver.zone != from_zone:
        return ClaimCode.DRIVER_ELSEWHERE
    if (driver.trip_id or "") != claimed_trip:
        return ClaimCode.DRIVER_MOVED
    if is_held or (driver.trip_id and (trip is None or trip.driver_id != driver.user_id)):
        return ClaimCode.TRIP_BUSY  # or it has changed between the two looks
    if trip is not None and (changes_zone or (vehicle_type and vehicle_type != driver.vehicle_type)):
        return ClaimCode.DRIVER_HAS_ACTIVE_TRIP
    return None
