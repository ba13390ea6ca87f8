"""Drivers: whether they work, where, with what, and on which trip."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dispatcher.core.obstacles import Obstacle
from dispatcher.core.times import iso
from dispatcher.core.trips import DEFAULT_VEHICLE_TYPE


class AvailabilityStatus(StrEnum):
    """`driver_details.availability_status`: the driver's own choice."""

    AVAILABLE = "available"
    UNAVAILABLE = "unavailable"


def is_free(*, is_online: bool, availability_status: str, trip_id: str | None) -> bool:
    """Whether a driver may be offered a trip at all, as `lua/lib/eligibility.lua` says."""
    return is_online and availability_status == AvailabilityStatus.AVAILABLE and not trip_id


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver as Redis and Postgres hold them. `version` is -1 for one who was never online."""

    user_id: str
    zone: str
    availability_status: AvailabilityStatus = AvailabilityStatus.UNAVAILABLE
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

    def obstacles(self, fix_age_ms: int | None, max_fix_age_ms: int) -> list[Obstacle]:
        """What keeps every offer away and the driver can see and change; `fix_age_ms` is the age of the
        last fix, None where there is none.

        The waves themselves decide by `lua/lib/candidates.lua`, which knows more than the driver does.
        """
        found = {
            Obstacle.OFFLINE: not self.is_online,
            Obstacle.UNAVAILABLE: self.availability_status is not AvailabilityStatus.AVAILABLE,
            Obstacle.ACTIVE_TRIP: self.trip_id is not None,
            Obstacle.NO_POSITION: fix_age_ms is None,
            Obstacle.STALE_POSITION: fix_age_ms is not None and fix_age_ms >= max_fix_age_ms,
        }
        return [obstacle for obstacle, holds in found.items() if holds]
