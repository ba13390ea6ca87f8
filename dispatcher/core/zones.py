"""Zones: a city, or a part of one. Every trip and every online driver is in exactly one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

DEFAULT_ZONE: Final = "default"
# Redis keys are built from names, so nothing that means something in a key may pass.
ZONE: Final = re.compile(r"[a-z0-9-]{1,32}")


@dataclass(frozen=True, slots=True)
class Wave:
    """One wave of offers: at most `size` drivers within `radius_m`, who have `deadline_s`."""

    size: int
    radius_m: float
    deadline_s: float


#: Near drivers first; each next wave reaches further. A trip nobody took is expired after some
#: three minutes, which is about what a customer waits for.
DEFAULT_WAVES: Final = (
    Wave(3, 1_500, 12), Wave(5, 3_000, 12), Wave(8, 6_000, 15), Wave(12, 12_000, 15),
    Wave(12, 12_000, 30), Wave(12, 12_000, 45), Wave(12, 12_000, 60),
)  # fmt: skip


#: How a zone chooses whom to ask first: see `Matching`.
Dispatch = Literal["nearest", "matched", "auto"]


@dataclass(frozen=True, slots=True)
class Weights:
    """What counts beside the way to a pickup, as seconds of way: see dispatcher/matching/score.py."""

    #: Seconds that each second of waiting earns the trip: little, since whoever serves the longest wait
    #: first sends drivers far, and has fewer of them for everybody else.
    waiting: float = 0.1
    #: Seconds that each second without a trip earns the driver.
    idle: float = 0.02
    #: Seconds for each offer in a row that the driver declined or let pass: it may happen again.
    turned_down_s: float = 20.0
    #: Seconds for each offer that the driver may still take instead.
    open_offer_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Matching:
    """Whom a zone asks first.

    `nearest` asks the drivers next to each pickup, trip by trip. `matched` assigns all waiting trips to
    all free drivers together, every `every_s`; the driver so found is asked `head_start_s` before the
    rest of the wave. `auto` is matched while drivers are scarce, and nearest otherwise.
    """

    dispatch: Dispatch = "auto"
    every_s: float = 3.0
    #: About what a driver needs to look at the phone and decide.
    head_start_s: float = 5.0
    #: A car in a city, over the great circle.
    speed_kmh: float = 22.0
    weights: Weights = field(default_factory=Weights)
    #: A routing engine that speaks OSRM's table API; None: the great circle tells the way.
    routing_url: str | None = None
    routing_deadline_s: float = 0.5

    @property
    def every_ms(self) -> int:
        """The time between two rounds, in ms."""
        return round(self.every_s * 1000)


@dataclass(frozen=True, slots=True)
class Queue:
    """A place, an airport for instance, where drivers wait in the order in which they arrived.

    Trips whose pickup lies in its `area` (as a zone's) go to them in that order. Who is not seen there
    for `absence_s` loses their place.
    """

    name: str
    area: Any
    absence_s: float = 300.0

    @property
    def absence_ms(self) -> int:
        """`absence_s` in ms."""
        return round(self.absence_s * 1000)


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone's settings. `area` is a prepared polygon in degrees (x = lng, y = lat), if any."""

    name: str
    accept_policy: Literal["open", "offered"] = "open"
    waves: tuple[Wave, ...] = DEFAULT_WAVES
    offers_per_driver: int = 3
    matching: Matching = field(default_factory=Matching)
    limits: dict[str, tuple[int, int]] = field(default_factory=dict)
    area: Any = None
    #: Their areas do not overlap.
    queues: tuple[Queue, ...] = ()

    def queue_at(self, lat: float, lng: float) -> Queue | None:
        """The queue in whose area the place lies, in degrees."""
        return next((queue for queue in self.queues if queue.area.covers(lat, lng)), None)

    def queue(self, name: str) -> Queue | None:
        """The queue of that name."""
        return next((queue for queue in self.queues if queue.name == name), None)


class Zones:
    """All zones of the service, in the order in which their areas are looked at."""

    def __init__(self, zones: Iterable[Zone] = ()) -> None:
        self._zones = {zone.name: zone for zone in zones}
        self._zones.setdefault(DEFAULT_ZONE, Zone(DEFAULT_ZONE))

    def get(self, name: str) -> Zone | None:
        """The zone of that name."""
        return self._zones.get(name)

    def names(self) -> list[str]:
        """The names of all zones."""
        return list(self._zones)

    def locate(self, lat: float, lng: float) -> Zone:
        """The first zone whose area holds the place, else the default zone."""
        for zone in self._zones.values():
            if zone.area is not None and zone.area.covers(lat, lng):
                return zone
        return self._zones[DEFAULT_ZONE]
