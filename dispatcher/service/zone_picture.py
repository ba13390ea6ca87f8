"""The picture of a zone that operators' maps show: what it holds, and what has changed in it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

import orjson

from dispatcher.core.trips import ACTIVE, FINAL, Status
from dispatcher.live.zone_view import OpenWave, SeenDriver, ZoneEvent

#: Trips that have ended stay in the picture until so many others have.
_MAX_ENDED: Final = 60
#: Events of one frame; the trips themselves are all told.
_MAX_EVENTS: Final = 40
#: Seconds over which rates and waits are taken.
RATE_WINDOW_S: Final = 10.0
WAIT_WINDOW_S: Final = 300.0
_MAX_WAITS: Final = 2_000
#: Of a position in degrees: a metre.
_DECIMALS: Final = 5

#: A driver as a frame has them: state, lat, lng, trip id (or empty), vehicle type.
DriverRow = tuple[str, float, float, str, str]
_BY_TRIP: Final = {
    Status.ACCEPTED: "to_pickup", Status.ARRIVED: "at_pickup", Status.ONGOING: "riding",
}  # fmt: skip


class Moments(NamedTuple):
    """Of a frame, in ms since the epoch: when it was made, and when its picture was last sampled (None:
    never); and which engine decides about the zone."""

    at_ms: int
    sampled_ms: int | None
    decided_by: str


@dataclass(slots=True)
class _Changes:
    """What a frame is to tell."""

    drivers: dict[str, DriverRow] = field(default_factory=dict)
    trips: dict[str, dict[str, Any]] = field(default_factory=dict)
    drivers_gone: list[str] = field(default_factory=list)
    trips_gone: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)


class ZonePicture:
    """What samples have found, and what of it no frame has told yet."""

    def __init__(self, zone: str, fix_age_ms: int) -> None:
        self._zone = zone
        self._fix_age_ms = fix_age_ms
        self.drivers: dict[str, DriverRow] = {}
        #: Live trips and those that have just ended, as frames have them.
        self.trips: dict[str, dict[str, Any]] = {}
        self._ended: deque[str] = deque()
        self._offers: dict[str, list[str]] = {}
        self._changed = _Changes()
        self._accepts: deque[float] = deque()
        self._ends: deque[tuple[float, str]] = deque()
        self._waits: deque[tuple[float, float]] = deque(maxlen=_MAX_WAITS)

    # --- what samples find

    def take_trips(self, trips: Iterable[Mapping[str, Any]], *, is_all: bool) -> None:
        """Takes live trips as Postgres has them; where these are all, the others have ended untold."""
        found = {trip["id"]: trip for trip in trips}
        for trip in found.values():
            self._put_trip(trip)
        if not is_all:
            return
        for trip_id, row in list(self.trips.items()):
            if trip_id not in found and row["current_status"] not in FINAL:
                self._drop_trip(trip_id)

    def take_event(self, found: ZoneEvent, now_s: float) -> None:
        """Takes an event of the zone's stream; one that is known already changes nothing."""
        event, trip = found.event["event"], found.event.get("trip") or {}
        if not trip.get("id") or not self._put_trip(trip):
            return
        if len(self._changed.events) < _MAX_EVENTS:
            self._changed.events.append(
                {
                    "event": event,
                    "at": found.event["at"],
                    "trip_id": trip["id"],
                    "driver_id": trip["driver_id"],
                    "actor_role": found.event["actor_role"],
                }
            )
        if event == "accepted":
            self._accepts.append(now_s)
            self._waits.append((now_s, _seconds(trip["created_at"], trip["accepted_at"])))
        elif trip["current_status"] in FINAL:
            self._ends.append((now_s, trip["current_status"]))

    def take_waves(self, waves: Mapping[str, OpenWave]) -> None:
        """Takes the waves of the trips that wait, and who holds an offer."""
        self._offers = {trip_id: wave.drivers for trip_id, wave in waves.items() if wave.drivers}
        for trip_id, wave in waves.items():
            row = self.trips.get(trip_id)
            if row is not None and row["wave"] != wave.wave:
                row["wave"] = wave.wave
                self._changed.trips[trip_id] = row

    def take_drivers(self, drivers: Sequence[SeenDriver], now_ms: int) -> None:
        """Takes the drivers who were looked at; who is offline leaves the picture."""
        offered = {driver for drivers in self._offers.values() for driver in drivers}
        changed, before = self._changed.drivers, self.drivers
        now: dict[str, DriverRow] = {}
        for driver in drivers:
            if not driver.is_online or not driver.fix_ms:
                continue
            state = self._state_of(driver, offered, now_ms)
            row = (
                state, round(driver.lat, _DECIMALS), round(driver.lng, _DECIMALS), driver.trip_id,
                driver.vehicle_type,
            )  # fmt: skip
            now[driver.driver_id] = row
            if before.get(driver.driver_id) != row:
                changed[driver.driver_id] = row
        self._changed.drivers_gone += [name for name in before if name not in now]
        self.drivers = now

    def _state_of(self, driver: SeenDriver, offered: set[str], now_ms: int) -> str:
        if driver.trip_id:
            trip = self.trips.get(driver.trip_id)
            return _BY_TRIP.get(trip["current_status"] if trip else Status.ACCEPTED, "to_pickup")
        if driver.availability_status != "available":
            return "unavailable"
        if driver.fix_ms <= now_ms - self._fix_age_ms:
            return "stale"
        return "offered" if driver.driver_id in offered else "free"

    def _put_trip(self, trip: Mapping[str, Any]) -> bool:
        """Puts a trip into the picture; False where it is known as new as that."""
        trip_id, known = trip["id"], self.trips.get(trip["id"])
        if known is not None and known["version"] >= trip["version"]:
            return False
        wave = known["wave"] if known else 0
        row = self.trips[trip_id] = {**trip, "wave": wave}
        self._changed.trips[trip_id] = row
        if row["current_status"] in FINAL:
            self._ended.append(trip_id)
            if len(self._ended) > _MAX_ENDED:
                self._drop_trip(self._ended.popleft())
        return True

    def _drop_trip(self, trip_id: str) -> None:
        if self.trips.pop(trip_id, None) is not None:
            self._changed.trips.pop(trip_id, None)
            self._changed.trips_gone.append(trip_id)

    # --- what the next sample looks at

    def waiting(self, most: int) -> list[str]:
        """Trips that wait for a driver."""
        return self._in({Status.PENDING})[:most]

    def drivers_with_trip(self) -> list[str]:
        """The drivers of live trips."""
        return [self.trips[name]["driver_id"] for name in self._in(ACTIVE)]

    def _in(self, statuses: Iterable[Status]) -> list[str]:
        wanted = frozenset(statuses)
        return [name for name, row in self.trips.items() if row["current_status"] in wanted]

    # --- what viewers see

    def changes_frame(self, moments: Moments, figures: Mapping[str, Any]) -> bytes:
        """The frame of what has changed since the last one of these."""
        changed, self._changed = self._changed, _Changes()
        return self._encode(moments, figures, changed, is_full=False)

    def full_frame(self, moments: Moments, figures: Mapping[str, Any]) -> bytes:
        """The frame of the whole picture, for a viewer who has none."""
        return self._encode(moments, figures, _Changes(self.drivers, self.trips), is_full=True)

    def _encode(
        self, moments: Moments, figures: Mapping[str, Any], told: _Changes, *, is_full: bool
    ) -> bytes:
        frame = {
            "type": "zone_view",
            "zone": self._zone,
            "at_ms": moments.at_ms,
            "sampled_at_ms": moments.sampled_ms,
            "decided_by": moments.decided_by,
            "full": is_full,
            "drivers": told.drivers,
            "drivers_gone": told.drivers_gone,
            "trips": list(told.trips.values()),
            "trips_gone": told.trips_gone,
            "offers": self._offers,
            "events": told.events,
            "figures": figures,
        }
        return orjson.dumps(frame)

    def figures(self, now_s: float) -> dict[str, Any]:
        """Counts of the picture, and rates over the last seconds and minutes."""
        _forget(self._accepts, lambda at: at < now_s - RATE_WINDOW_S)
        _forget(self._ends, lambda end: end[0] < now_s - WAIT_WINDOW_S)
        _forget(self._waits, lambda wait: wait[0] < now_s - WAIT_WINDOW_S)
        waits = sorted(wait for _, wait in self._waits)
        statuses = Counter(row["current_status"] for row in self.trips.values())
        return {
            "trips": {status.value: statuses[status] for status in (Status.PENDING, *sorted(ACTIVE))},
            "ended": dict(Counter(status for _, status in self._ends)),
            "drivers": dict(Counter(row[0] for row in self.drivers.values())),
            "offers": sum(map(len, self._offers.values())),
            "accepts_per_s": round(len(self._accepts) / RATE_WINDOW_S, 2),
            "wait_p50_s": _share(waits, 0.5),
            "wait_p95_s": _share(waits, 0.95),
        }


def _forget(entries: deque[Any], is_old: Any) -> None:
    while entries and is_old(entries[0]):
        entries.popleft()


def _share(waits: Sequence[float], share: float) -> float | None:
    return round(waits[min(len(waits) - 1, int(share * len(waits)))], 1) if waits else None


def _seconds(since: str, until: str) -> float:
    return (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds()
