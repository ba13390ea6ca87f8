"""The zones file: TOML, checked at start; what is wrong is refused with its line.

[zones.manhattan]
area = "boroughs.geojson#Manhattan"   # a GeoJSON file, and in it the feature of that name
accept_policy = "offered"             # or open
offers_per_driver = 2
waves = [{ size = 3, radius_m = 1500, deadline_s = 12 }, …]
limits = { trip_accept = "20/60" }
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import shapely
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from shapely.errors import ShapelyError
from shapely.geometry import shape

from dispatcher.config import RateSetting, SettingsError
from dispatcher.core.zones import DEFAULT_WAVES, ZONE, Wave, Zone, Zones

_CLASSES = Literal["trip_accept", "trip_cancel", "location_update", "general"]


class _WaveEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: Annotated[int, Field(ge=1, le=100)]
    radius_m: Annotated[float, Field(gt=0, le=200_000)]
    deadline_s: Annotated[float, Field(gt=0, le=600)]


class _ZoneEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    area: str | None = None
    accept_policy: Literal["open", "offered"] = "open"
    offers_per_driver: Annotated[int, Field(ge=1, le=50)] = 3
    waves: Annotated[list[_WaveEntry], Field(min_length=1, max_length=20)] | None = None
    limits: dict[_CLASSES, RateSetting] = {}


class Area:
    """A prepared polygon: whether it covers a place is asked for every trip that is created."""

    def __init__(self, polygon: Any) -> None:
        shapely.prepare(polygon)
        self._polygon = polygon

    def covers(self, lat: float, lng: float) -> bool:
        """Whether the place lies in the area or on its edge."""
        return bool(shapely.intersects_xy(self._polygon, lng, lat))


def load_zones(path: Path | None) -> Zones:
    """The zones of a file; without one there is the default zone alone.

    Raises SettingsError, naming the line of the zone that is wrong.
    """
    if path is None:
        return Zones()
    try:
        text = path.read_text()
        entries = tomllib.loads(text).get("zones", {})
    except OSError as error:
        raise SettingsError(f"DISPATCHER_ZONES_FILE: {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # A zone that is declared twice is an error of the format already, with its line.
        raise SettingsError(f"DISPATCHER_ZONES_FILE: {path}: {error}") from None
    if not isinstance(entries, dict) or not entries:
        raise SettingsError(f"DISPATCHER_ZONES_FILE: {path}: there is no [zones.NAME] table")
    zones = []
    for name, entry in entries.items():
        try:
            zones.append(_zone(name, entry, path.parent))
        except ValueError as error:
            line = _line_of(text, name)
            raise SettingsError(
                f"DISPATCHER_ZONES_FILE: {path}, line {line}: zone {name}: {error}"
            ) from None
    return Zones(zones)


def _zone(name: str, entry: Any, folder: Path) -> Zone:
    if not ZONE.fullmatch(name):
        raise ValueError("a zone's name takes lower-case letters, digits and '-', at most 32")
    try:
        checked = _ZoneEntry.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
    waves: tuple[Wave, ...] = DEFAULT_WAVES
    if checked.waves is not None:
        waves = tuple(Wave(w.size, w.radius_m, w.deadline_s) for w in checked.waves)
    return Zone(
        name=name,
        accept_policy=checked.accept_policy,
        waves=waves,
        offers_per_driver=checked.offers_per_driver,
        limits={
            limit: (rate.limit, rate.window_s) for limit, rate in checked.limits.items() if rate.limit
        },
        area=_area(checked.area, folder) if checked.area else None,
    )


def _area(reference: str, folder: Path) -> Area:
    file_name, _, feature_name = reference.partition("#")
    try:
        document = json.loads((folder / file_name).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"area: {file_name} cannot be read as GeoJSON: {error}") from None
    try:
        polygon = shape(_geometry(document, feature_name))
    except (ShapelyError, TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"area: {reference}: {error}") from None
    if polygon.geom_type not in ("Polygon", "MultiPolygon") or polygon.is_empty:
        raise ValueError(f"area: {reference} is not a polygon")
    if not polygon.is_valid:
        raise ValueError(f"area: {reference} is broken: {shapely.is_valid_reason(polygon)}")
    west, south, east, north = polygon.bounds
    if west < -180 or east > 180 or south < -90 or north > 90:
        raise ValueError(f"area: {reference} leaves the Earth: degrees, longitude first")
    return Area(polygon)


def _geometry(document: Any, feature_name: str) -> Any:
    if document.get("type") != "FeatureCollection":
        return document.get("geometry", document)
    for feature in document["features"]:
        if not feature_name or feature.get("properties", {}).get("name") == feature_name:
            return feature["geometry"]
    raise ValueError(f"there is no feature of the name {feature_name!r}")


def _line_of(text: str, name: str) -> int:
    header = re.compile(rf'^\s*\[\s*zones\s*\.\s*"?{re.escape(name)}"?\s*[\].]')
    for number, line in enumerate(text.splitlines(), start=1):
        if header.match(line):
            return number
    return 1
