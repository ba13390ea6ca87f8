"""Real pickups to replay: a CSV file with the columns `picked_up_at`, `lat` and `lng`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dispatcher.config import SettingsError
from dispatcher.core.trips import MAX_LATITUDE

#: A Friday evening in New York; the README beside it names the source.
BUNDLED_PICKUPS: Final = Path(__file__).parent / "data" / "new-york-friday-evening.csv"
#: The boroughs that they are in, roughly: an example of zones that ships, too.
BUNDLED_BOROUGHS: Final = Path(__file__).parent.parent / "zones" / "new-york-boroughs.geojson"
_COLUMNS: Final = ("picked_up_at", "lat", "lng")


@dataclass(frozen=True, slots=True)
class Pickup:
    """A position in degrees, and its time in seconds after the first pickup of the file."""

    after_s: float
    lat: float
    lng: float


def read_pickups(path: Path, limit: int | None) -> tuple[datetime, list[Pickup]]:
    """The time of the first pickup, and the first `limit` pickups in the order of time.

    Raises SettingsError, which names the line, if the file is malformed.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = sorted(_rows(path, csv.DictReader(file)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"--pickups: {path}: {error}") from None
    if len(rows) < 2:
        raise SettingsError(f"--pickups: {path}: takes two pickups at least: one goes to the other")
    first = rows[0][0]
    return first, [Pickup((at - first).total_seconds(), lat, lng) for at, lat, lng in rows[:limit]]


def _rows(path: Path, reader: csv.DictReader[str]) -> Iterator[tuple[datetime, float, float]]:
    if not set(_COLUMNS) <= set(reader.fieldnames or ()):
        raise SettingsError(f"--pickups: {path}, line 1: the columns must be {', '.join(_COLUMNS)}")
    for row in reader:
        try:
            at = datetime.fromisoformat(row["picked_up_at"])
            lat, lng = float(row["lat"]), float(row["lng"])
        except (TypeError, ValueError) as error:
            raise SettingsError(f"--pickups: {path}, line {reader.line_num}: {error}") from None
        if not (abs(lat) <= MAX_LATITUDE and abs(lng) <= 180):
            raise SettingsError(
                f"--pickups: {path}, line {reader.line_num}: {lat}, {lng} is not a lat and a lng"
            )
        # Times with an offset are compared with each other, times without are the city's own.
        yield (at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo else at), lat, lng
