"""The zones file: TOML, checked at start; an error in it is refused with its line.

[zones.manhattan]
area = "boroughs.geojson#Manhattan"   # a GeoJSON file, and in it the feature of that name
accept_policy = "offered"             # or open
offers_per_driver = 2
waves = [{ size = 3, radius_m = 1500, deadline_s = 12 }, …]
limits = { trip_accept = "20/60" }
dispatch = "auto"                     # nearest, matched or auto
match_every_s = 3
match_head_start_s = 5
match_speed_kmh = 22
match_weights = { waiting = 0.1, idle = 0.02, turned_down_s = 20, open_offer_s = 60 }
routing_url = "http://osrm:5000"      # speaks OSRM's table API
routing_deadline_s = 0.5

[zones.manhattan.queues.penn-station] # drivers wait there in the order in which they arrived
area = "boroughs.geojson#Penn Station"
absence_s = 300
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dispatcher.config import SettingsError
from dispatcher.core.zones import (
    DEFAULT_WAVES,
    ZONE,
    Dispatch,
    Matching,
    Queue,
    Wave,
    Weights,
    Zone,
    Zones,
)
from dispatcher.extras import install, is_installed
from dispatcher.setting_types import BaseUrl, RateSetting

if TYPE_CHECKING:
    from dispatcher.areas import Area

#: The classes whose limits a zone may set: those that are counted for each user.
_LimitClass = Literal["trip_accept", "trip_cancel", "location_update", "general", "operator"]

_SETTING: Final = "DISPATCHER_ZONES_FILE"
#: Each position of a zone's drivers is compared with all of them.
_MOST_QUEUES: Final = 50


class _WaveEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: Annotated[int, Field(ge=1, le=100)]
    radius_m: Annotated[float, Field(gt=0, le=200_000)]
    deadline_s: Annotated[float, Field(gt=0, le=600)]


#: No second of way costs more than a day; what is not finite is refused with it.
_Weight = Annotated[float, Field(ge=0, le=86_400)]


class _WeightsEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    waiting: _Weight = Weights().waiting
    idle: _Weight = Weights().idle
    turned_down_s: _Weight = Weights().turned_down_s
    open_offer_s: _Weight = Weights().open_offer_s


class _QueueEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    area: str
    #: Drivers are seen by their positions: less than the time between two of these would be no absence.
    absence_s: Annotated[float, Field(ge=10, le=3_600)] = 300.0


class _ZoneEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    area: str | None = None
    queues: Annotated[dict[str, _QueueEntry], Field(max_length=_MOST_QUEUES)] = {}
    accept_policy: Literal["open", "offered"] = "open"
    offers_per_driver: Annotated[int, Field(ge=1, le=50)] = 3
    waves: Annotated[list[_WaveEntry], Field(min_length=1, max_length=20)] | None = None
    limits: dict[_LimitClass, RateSetting] = {}
    dispatch: Dispatch = Matching().dispatch
    match_every_s: Annotated[float, Field(ge=0.5, le=60)] = Matching().every_s
    match_head_start_s: Annotated[float, Field(gt=0, le=60)] = Matching().head_start_s
    #: Slower than who walks, or faster than any road lets, is a typing error or another unit.
    match_speed_kmh: Annotated[float, Field(ge=1, le=200)] = Matching().speed_kmh
    match_weights: _WeightsEntry = _WeightsEntry()
    routing_url: BaseUrl | None = None
    routing_deadline_s: Annotated[float, Field(gt=0, le=10)] = Matching().routing_deadline_s

    def matching(self) -> Matching:
        """The entry's settings of dispatch."""
        return Matching(
            dispatch=self.dispatch,
            every_s=self.match_every_s,
            head_start_s=self.match_head_start_s,
            speed_kmh=self.match_speed_kmh,
            weights=Weights(**self.match_weights.model_dump()),
            routing_url=self.routing_url,
            routing_deadline_s=self.routing_deadline_s,
        )


class _QueueError(ValueError):
    """What is wrong with a queue of a zone."""

    def __init__(self, queue: str, reason: str) -> None:
        super().__init__(f"queue {queue}: {reason}")
        self.queue = queue


def load_zones(path: Path | None) -> Zones:
    """Read the zones of a file; without a file there is the default zone alone.

    Raises SettingsError, which names the line of the zone or queue that is wrong.
    """
    if path is None:
        return Zones()
    try:
        text = path.read_text()
        entries = tomllib.loads(text).get("zones", {})
    except OSError as error:
        raise SettingsError(f"{_SETTING}: {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # That includes a zone that is declared twice, which TOML forbids.
        raise SettingsError(f"{_SETTING}: {path}: {error}") from None
    if not isinstance(entries, dict) or not entries:
        raise SettingsError(f"{_SETTING}: {path}: there is no [zones.NAME] table")
    zones = []
    for name, entry in entries.items():
        try:
            zones.append(_parse_zone(name, entry, path.parent))
        except ValueError as error:
            queue = error.queue if isinstance(error, _QueueError) else None
            line = _line_of(text, name, queue)
            raise SettingsError(f"{_SETTING}: {path}, line {line}: zone {name}: {error}") from None
    return Zones(zones)


def _parse_zone(name: str, entry: Any, folder: Path) -> Zone:
    """One zone of the file; paths in it are relative to `folder`. Raises ValueError."""
    if not ZONE.fullmatch(name):
        raise ValueError("a zone's name takes lower-case letters, digits and '-', at most 32")
    try:
        checked = _ZoneEntry.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        names = [str(part) for part in first["loc"]]
        reason = first["msg"].removeprefix("Value error, ")
        if names[0] == "queues" and len(names) > 1:
            raise _QueueError(names[1], ": ".join([".".join(names[2:]), reason])) from None
        raise ValueError(f"{'.'.join(names)}: {reason}") from None
    if checked.routing_url and checked.routing_deadline_s >= checked.match_every_s:
        # Each round would be late for the next one.
        raise ValueError("routing_deadline_s: must be less than match_every_s")
    waves: tuple[Wave, ...] = DEFAULT_WAVES
    if checked.waves is not None:
        waves = tuple(Wave(wave.size, wave.radius_m, wave.deadline_s) for wave in checked.waves)
    longest_wait_s = sum(wave.deadline_s for wave in waves)
    routing_s = checked.routing_deadline_s if checked.routing_url else 0
    if checked.dispatch != "nearest" and checked.match_every_s + routing_s >= longest_wait_s:
        # A trip that just missed a round would expire before the next one offers it.
        raise ValueError(
            "match_every_s: must be less than the time that trips wait, "
            f"which is that of all waves together: {longest_wait_s:g} s"
            + (f", less routing_deadline_s: {routing_s:g} s" if routing_s else "")
        )
    area = _load_area(checked.area, folder) if checked.area else None
    return Zone(
        name=name,
        accept_policy=checked.accept_policy,
        waves=waves,
        offers_per_driver=checked.offers_per_driver,
        matching=checked.matching(),
        limits={
            limit_class: (rate.limit, rate.window_s) for limit_class, rate in checked.limits.items()
        },
        area=area,
        queues=tuple(_parse_queues(checked.queues, area, folder)),
    )


def _parse_queues(entries: dict[str, _QueueEntry], zone: Area | None, folder: Path) -> list[Queue]:
    """The queues of a zone, each inside of its area and apart from the others. Raises ValueError."""
    queues: list[Queue] = []
    for name, entry in entries.items():
        if not ZONE.fullmatch(name):
            raise _QueueError(
                name, "a queue's name takes lower-case letters, digits and '-', at most 32"
            )
        try:
            area = _load_area(entry.area, folder)
        except ValueError as error:
            raise _QueueError(name, str(error)) from None
        if zone is not None and not zone.holds(area):
            raise _QueueError(name, f"area: {entry.area} is not inside of the zone's area")
        for other in queues:
            if area.overlaps(other.area):
                raise _QueueError(name, f"area: {entry.area} overlaps the queue {other.name}")
        queues.append(Queue(name, area, entry.absence_s))
    return queues


def _load_area(reference: str, folder: Path) -> Area:
    """The area at `FILE` or `FILE#FEATURE`. Raises ValueError if it is no polygon in degrees."""
    if not is_installed("zones"):
        raise ValueError(f"area: needs {install('zones')}")
    # Shapely brings NumPy, a ninth of the time of a start, and zones without areas need neither.
    from dispatcher.areas import load_area  # noqa: PLC0415

    return load_area(reference, folder)


def _line_of(text: str, zone: str, queue: str | None) -> int:
    """The number of the line on which the table begins: of the queue if it has one, else of the zone."""
    tables = [("zones", zone, "queues", queue)] if queue is not None else []
    for names in (*tables, ("zones", zone)):
        dotted = r"\s*\.\s*".join(rf"""["']?{re.escape(name)}["']?""" for name in names)
        header = re.compile(rf"^\s*\[\s*{dotted}\s*[\].]")
        for number, line in enumerate(text.splitlines(), start=1):
            if header.match(line):
                return number
    return 1
