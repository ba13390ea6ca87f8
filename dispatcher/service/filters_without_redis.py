"""What the filters of a wave say of a driver while Redis is away: what Postgres knows of them."""

from __future__ import annotations

from typing import Final

from dispatcher.core.drivers import AvailabilityStatus, Driver
from dispatcher.core.obstacles import Obstacle
from dispatcher.core.trips import Status, Trip
from dispatcher.live.inspection import FilterView

NOT_KNOWN: Final = "not known while Redis is away"
#: Of the zone, which both engines know; and of a queue, which is at few places.
_LEFT_OUT: Final = frozenset({Obstacle.OTHER_ZONE, Obstacle.NOT_IN_QUEUE, Obstacle.ASKED_IN_QUEUE})


def filters_without_redis(trip: Trip, driver: Driver) -> list[FilterView]:
    """A view a filter, in the order of `why.lua`; `passes` is None where Postgres does not know."""
    known = {
        Obstacle.TRIP_NOT_PENDING: (
            trip.current_status is Status.PENDING, f"the trip is {trip.current_status}",
        ),
        Obstacle.OFFLINE: (driver.is_online, "online" if driver.is_online else "offline"),
        Obstacle.UNAVAILABLE: (
            driver.availability_status is AvailabilityStatus.AVAILABLE, str(driver.availability_status),
        ),
        Obstacle.ACTIVE_TRIP: (
            driver.trip_id is None, f"on trip {driver.trip_id}" if driver.trip_id else "on no trip",
        ),
        Obstacle.OTHER_VEHICLE_TYPE: (
            driver.vehicle_type == trip.vehicle_type,
            f"{driver.vehicle_type} for a trip that asks for {trip.vehicle_type}",
        ),
    }  # fmt: skip
    return [
        FilterView(obstacle, *known.get(obstacle, (None, NOT_KNOWN)))
        for obstacle in Obstacle
        if obstacle not in _LEFT_OUT
    ]
