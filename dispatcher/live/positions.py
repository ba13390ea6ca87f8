"""Positions of drivers in Redis."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from dispatcher.core.limits import Limits, LimitState
from dispatcher.live.keys import Keys
from dispatcher.live.limits import limit_key, limit_state
from dispatcher.live.pipeline import Pipeline


class DriverFix(NamedTuple):
    """A driver's position in degrees, and when it was measured, in ms since the epoch; None stands for
    now, by Redis' clock."""

    driver_id: str
    lat: float
    lng: float
    at_ms: int | None


class FixCode(StrEnum):
    """What became of a fix."""

    TAKEN = "taken"
    LATE = "late"  # a newer one is known
    COLD = "cold"  # the zone is to be loaded
    UNKNOWN = "unknown"  # the driver is to be loaded
    OFFLINE = "offline"
    OTHER_VEHICLE = "other_vehicle"
    RATE_LIMITED = "rate_limited"


class QueueAt(NamedTuple):
    """The queue at whose place a fix is, and how long who is absent keeps their place there, in ms."""

    name: str
    absence_ms: int


class FixResult(NamedTuple):
    """What became of a fix, the driver's trip or right vehicle type, the limit to report, and when the
    fix was measured, as it stands in Redis. `queue` is the one at whose place the driver is and holds
    a place since `queued_ms`, or empty."""

    code: FixCode
    trip_id: str = ""
    vehicle_type: str = ""
    limit: LimitState | None = None
    at_ms: int = 0
    queue: str = ""
    queued_ms: int = 0


class PositionScripts:
    """The drivers' positions of a zone. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def put_positions(
        self,
        keys: Keys,
        vehicle_type: str,
        fixes: Sequence[DriverFix],
        *,
        fix_age_ms: int,
        limits: Sequence[Limits] = (),
        queues: Sequence[QueueAt | None] = (),
    ) -> list[FixResult]:
        """Takes fixes of one vehicle type; a result each.

        `limits` are those of each fix: as many for each, and of the same rates. `queues` says at whose
        place each fix is, where the zone has any.
        """
        names = [keys.epoch, keys.geo(vehicle_type), keys.seen, keys.vehicles]
        shared = limits[0] if limits else ()
        args: list[Any] = [fix_age_ms, vehicle_type, len(shared), int(bool(queues))]
        for limit in shared:
            args += limit.rate
        for i, fix in enumerate(fixes):
            names.append(keys.driver(fix.driver_id))
            args += (*fix[:3], "" if fix.at_ms is None else fix.at_ms)
            if shared:
                names += [limit_key(keys, limit) for limit in limits[i]]
            if queues:
                queue = queues[i]
                names.append(
                    keys.queue(queue.name, vehicle_type) if queue else keys.driver(fix.driver_id)
                )
                args += queue or ("", 0)
        text, now_ms, results = await self._pipeline.run("put_positions", names, args)
        if FixCode(text) is FixCode.COLD:
            return [FixResult(FixCode.COLD)] * len(fixes)
        limits_of_each = limits or [()] * len(fixes)
        return [
            _fix_result(result, limits_of_fix, now_ms)
            for result, limits_of_fix in zip(results, limits_of_each, strict=True)
        ]

    async def sweep_fixes(self, keys: Keys, *, fix_age_ms: int, max_drivers: int = 1_000) -> int:
        """Takes drivers with a stale fix out of the geo sets; returns how many."""
        vehicle_types: list[str] = await self._pipeline.command("SMEMBERS", keys.vehicles)
        swept: int = await self._pipeline.run(
            "sweep_fixes",
            (keys.seen, *(keys.geo(v) for v in vehicle_types)),
            (fix_age_ms, max_drivers),
        )
        return swept

    async def last_position(self, keys: Keys, driver_id: str) -> tuple[float, float] | None:
        """The last fix of a driver who is online, as (lat, lng)."""
        online, lat, lng = await self._pipeline.command(
            "HMGET", keys.driver(driver_id), "is_online", "lat", "lng"
        )
        with self._pipeline.decoding(keys.driver(driver_id)):
            return (float(lat), float(lng)) if online == "1" and lat else None

    async def last_fix_ms(self, keys: Keys, driver_id: str) -> int | None:
        """When the last fix of a driver was measured; None where there is none."""
        at_ms = await self._pipeline.command("HGET", keys.driver(driver_id), "fix_ms")
        return int(at_ms) if at_ms else None


def _fix_result(result: list[Any], limits: Limits, now_ms: int) -> FixResult:
    text, detail, limit_index, remaining, reset_ms, at_ms, queue, queued_ms = result
    code = FixCode(text)
    limit = limit_state(limits, limit_index, remaining, reset_ms, now_ms)
    if code is FixCode.OTHER_VEHICLE:
        return FixResult(code, vehicle_type=detail, limit=limit, at_ms=at_ms)
    return FixResult(code, detail, "", limit, at_ms, queue, queued_ms)
