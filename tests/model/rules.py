"""The rules of the dispatcher, as plainly as they can be said: no time, no engines, one thing after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

_ACTIVE = ("accepted", "arrived", "ongoing")
#: What each step is called when it is done, the states it starts from, and the one it leads to.
_STEPS = {
    "arrive": ("trip_arrived", ("accepted",), "arrived"),
    "start": ("trip_started", ("arrived",), "ongoing"),
    "complete": ("trip_completed", ("ongoing",), "completed"),
    "give back": ("trip_released", ("accepted", "arrived"), "pending"),
    "cancel": ("trip_cancelled", ("pending", "accepted", "arrived"), "cancelled"),
    "expire": ("trip_expired", ("pending",), "expired"),
}
#: The new state of a driver: online, available; None leaves it.
_AVAILABILITY: dict[str, tuple[bool | None, bool | None]] = {
    "go online": (True, True),
    "go offline": (False, None),
    "pause": (None, False),
    "be forced offline": (False, None),
}
SUCCESSES = {"trip_created", "trip_accepted", "trip_declined", "availability_updated"} | {
    code for code, *_ in _STEPS.values()
}


class Act(NamedTuple):
    """What somebody wants. `user` is the driver or rider whom it is about, `trip` empty where it is about none."""

    what: str
    user: str
    trip: str = ""


@dataclass
class ModelTrip:
    rider: str
    status: str = "pending"
    version: int = 0
    driver: str | None = None


@dataclass
class ModelDriver:
    is_online: bool = False
    is_available: bool = False
    version: int = -1


@dataclass
class Rules:
    """All trips, drivers and keys; `judge` says what an act has to be answered, `do` does what succeeds.

    The same rules hold whoever decides: Redis, or Postgres alone.
    """

    trips: dict[str, ModelTrip] = field(default_factory=dict)
    drivers: dict[str, ModelDriver] = field(default_factory=dict)
    #: What each key has brought about, and how that was answered.
    keys: dict[str, tuple[Act, str]] = field(default_factory=dict)

    def held_by(self, driver: str) -> str | None:
        """The driver's active trip."""
        held = [
            name for name, trip in self.trips.items() if trip.driver == driver and trip.status in _ACTIVE
        ]
        assert len(held) <= 1
        return held[0] if held else None

    def judge(self, act: Act, key: str = "") -> str:
        """The `response_code` of the answer, were it decided now."""
        if key in self.keys:
            first, code = self.keys[key]
            return code if first == act else "idempotency_key_reused"
        if act.what in _AVAILABILITY:
            is_unknown = act.what == "be forced offline" and act.user not in self.drivers
            return "driver_not_found" if is_unknown else "availability_updated"
        trip = self.trips.get(act.trip)
        if act.what == "create":
            return "trip_exists" if trip else "trip_created"
        if trip is None:
            return "trip_not_found"
        if act.what in ("accept", "be assigned", "decline"):
            return self._judge_taking(act, trip)
        code, sources, _ = _STEPS[act.what]
        owner = {"cancel": trip.rider, "expire": act.user}.get(act.what, trip.driver)
        if owner != act.user:
            return "trip_not_found"
        return code if trip.status in sources else "invalid_trip_status"

    def _judge_taking(self, act: Act, trip: ModelTrip) -> str:
        if trip.status in _ACTIVE:
            return "trip_already_assigned"
        if trip.status != "pending":
            return "trip_not_pending"
        if act.what == "decline":
            return "trip_declined"
        driver = self.drivers.get(act.user, ModelDriver())
        if not driver.is_online:
            return "driver_not_online"
        if not driver.is_available or self.held_by(act.user):
            return "driver_not_available"
        return "trip_accepted"

    def do(self, act: Act, key: str = "") -> None:
        """Does an act that is allowed."""
        assert key not in self.keys, "a key has two effects"
        code = self.judge(act)
        assert code in SUCCESSES, f"{act} was done, and had to be refused: {code}"
        if key:
            self.keys[key] = act, code
        if act.what == "create":
            self.trips[act.trip] = ModelTrip(act.user)
        elif act.what in _AVAILABILITY:
            self._change(act)
        elif act.what != "decline":
            self._move(act)

    def _move(self, act: Act) -> None:
        trip = self.trips[act.trip]
        trip.version += 1
        if act.what in ("accept", "be assigned"):
            trip.status, trip.driver = "accepted", act.user
            return
        _, _, trip.status = _STEPS[act.what]
        if act.what == "give back":
            trip.driver = None

    def _change(self, act: Act) -> None:
        driver = self.drivers.setdefault(act.user, ModelDriver())
        driver.version += 1
        is_online, is_available = _AVAILABILITY[act.what]
        driver.is_online = driver.is_online if is_online is None else is_online
        driver.is_available = driver.is_available if is_available is None else is_available
        held = self.held_by(act.user)
        if is_online is False and held and self.trips[held].status != "ongoing":
            self.trips[held].status, self.trips[held].driver = "pending", None
            self.trips[held].version += 1
