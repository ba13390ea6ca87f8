"""The areas of zones and queues: polygons from GeoJSON files, by Shapely of the extra `zones`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import shapely
from shapely.errors import ShapelyError
from shapely.geometry import shape


class Area:
    """The polygon of a zone, prepared: each trip that is created asks whether it covers the pickup."""

    def __init__(self, polygon: Any) -> None:
        shapely.prepare(polygon)
        self._polygon = polygon

    def covers(self, lat: float, lng: float) -> bool:
        """Whether a point, in degrees, lies in the area or on its edge."""
        return bool(shapely.intersects_xy(self._polygon, lng, lat))

    def holds(self, other: Area) -> bool:
        """Whether no part of the other area lies outside of this one."""
        return bool(self._polygon.covers(other._polygon))

    def overlaps(self, other: Area) -> bool:
        """Whether the two share more than an edge."""
        return bool(self._polygon.intersection(other._polygon).area > 0)

    def outline(self) -> dict[str, Any]:
        """The area as a GeoJSON geometry, in degrees, longitude first."""
        outline: dict[str, Any] = json.loads(shapely.to_geojson(self._polygon))
        return outline


def load_area(reference: str, folder: Path) -> Area:
    """The area at `FILE` or `FILE#FEATURE`. Raises ValueError if it is no polygon in degrees."""
    file_name, _, feature_name = reference.partition("#")
    try:
        document = json.loads((folder / file_name).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"area: {file_name} cannot be read as GeoJSON: {error}") from None
    try:
        polygon = shape(_find_geometry(document, feature_name))
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


def _find_geometry(document: Any, feature_name: str) -> Any:
    """The geometry of the named feature, or of the first one without a name; or a bare geometry."""
    if document.get("type") != "FeatureCollection":
        return document.get("geometry", document)
    for feature in document["features"]:
        if not feature_name or (feature.get("properties") or {}).get("name") == feature_name:
            return feature["geometry"]
    raise ValueError(f"there is no feature of the name {feature_name!r}")
