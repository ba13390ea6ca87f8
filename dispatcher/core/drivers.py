"""Drivers: whether they work, where, with what, and on which trip."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dispatcher.core.times import iso
from dispatcher.core.trips import DEFAULT_VEHICLE_TYPE


class AvailabilityStatus(StrEnum):
    """`driver_details.availability_status`: the driver's own choice."""

    AVAILABLE = "available"
    UNAVAILABLE = "unavailable"


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
