"""Ways by road, from a routing engine that speaks OSRM's table API. What it does not tell in time, the
great circle tells: a round of matching never waits for longer, and never fails with it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, Final, NamedTuple

import aiohttp
import orjson
import structlog

from dispatcher.core.distance import great_circle_m
from dispatcher.matching.model import NO_ROAD, NearbyDriver, WaitingTrip, Ways

log = structlog.get_logger("dispatcher.routing")

#: OSRM refuses a table of more places than this (`--max-table-size`), unless it is told otherwise.
_PLACES_A_TABLE: Final = 100
_TRIPS_A_TABLE: Final = 10
#: A way of more than a day is no way.
_LONGEST_S: Final = 86_400.0
#: What an answer may come to: a duration has some ten characters, a place some 250 (its hint, its
#: street's name, where it was moved to). It is read on the event loop, so no engine may send more.
_BYTES_A_CELL: Final = 64
_BYTES_A_PLACE: Final = 1_024
_BYTES_A_TABLE: Final = 16_384
#: Where the pairs of a table are, in the middle of them, slower or faster over the great circle than a
#: zone may say its drivers are, the table is nonsense. Nearer pairs say little: there are one-way
#: streets, and places that were moved to the next road.
_SLOWEST_KMH: Final = 1.0
_FASTEST_KMH: Final = 200.0
_TELLING_M: Final = 500.0


#: Trips, each with the drivers whose ways to it are asked for.
Pairs = Sequence[tuple[WaitingTrip, Sequence[NearbyDriver]]]


class _Table(NamedTuple):
    """One question: the ways from each driver to each pickup."""

    trips: Sequence[WaitingTrip]
    drivers: Sequence[NearbyDriver]

    def most_bytes(self) -> int:
        """What its answer may come to."""
        places = len(self.trips) + len(self.drivers)
        cells = len(self.trips) * len(self.drivers)
        return _BYTES_A_TABLE + _BYTES_A_PLACE * places + _BYTES_A_CELL * cells


class OsrmRouting:
    """Asks routing engines. `fallbacks` counts the tables that came late or were nonsense."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self.fallbacks = 0

    async def ways(self, url: str, pairs: Pairs, *, deadline_s: float) -> Ways:
        """Seconds from driver to pickup by (trip, driver), as far as they are known in time; NO_ROAD
        where there is no road."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False, headers={"Accept-Encoding": "identity"}
            )
        limit = aiohttp.ClientTimeout(total=deadline_s)
        answers = await asyncio.gather(
            *(self._ask(self._session, url, table, limit) for table in _tables(pairs))
        )
        return {pair: way_s for answer in answers for pair, way_s in answer.items()}

    async def close(self) -> None:
        """Lets go of the connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask(
        self, session: aiohttp.ClientSession, url: str, table: _Table, limit: aiohttp.ClientTimeout
    ) -> dict[tuple[str, str], float]:
        try:
            # An engine that is to be asked elsewhere is named so in the zone's settings.
            async with session.get(
                _table_url(url, table), timeout=limit, allow_redirects=False
            ) as response:
                return _read(table, orjson.loads(await _body(response, table.most_bytes())))
        except (
            aiohttp.ClientError,
            TimeoutError,
            OSError,
            ArithmeticError,
            RecursionError,
            ValueError,
            TypeError,
            LookupError,
        ) as error:
            self.fallbacks += 1
            log.warning(
                "routing failed: the great circle is used",
                url=url, trips=len(table.trips), reason=str(error) or type(error).__name__,
            )  # fmt: skip
            return {}


def _tables(pairs: Pairs) -> Iterator[_Table]:
    """Tables that hold each trip with its drivers; trips that are neighbours share one."""
    ordered = sorted(
        (pair for pair in pairs if pair[1]), key=lambda pair: (round(pair[0].lat, 2), pair[0].lng)
    )
    for first in range(0, len(ordered), _TRIPS_A_TABLE):
        some = ordered[first : first + _TRIPS_A_TABLE]
        drivers = {driver.driver_id: driver for _, near in some for driver in near}
        most = _PLACES_A_TABLE - len(some)
        yield _Table([trip for trip, _ in some], list(drivers.values())[:most])


def _table_url(url: str, table: _Table) -> str:
    """The question as OSRM takes it: places as lng,lat, the drivers first."""
    drivers = [(driver.lng, driver.lat) for driver in table.drivers]
    pickups = [(trip.lng, trip.lat) for trip in table.trips]
    places = ";".join(f"{lng:.6f},{lat:.6f}" for lng, lat in drivers + pickups)
    sources = ";".join(str(i) for i in range(len(drivers)))
    destinations = ";".join(str(len(drivers) + i) for i in range(len(pickups)))
    return (
        f"{url.rstrip('/')}/table/v1/driving/{places}"
        f"?sources={sources}&destinations={destinations}&annotations=duration"
    )


async def _body(response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """The body of an answer of that size at most. Raises ValueError."""
    if response.status != 200:
        raise ValueError(f"the routing engine answers {response.status}")
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise ValueError(f"the routing engine's answer is encoded: {encoding}")
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > most_bytes:
            response.close()
            raise ValueError(f"the routing engine's answer has more than {most_bytes} bytes")
    return bytes(body)


def _read(table: _Table, answer: Any) -> dict[tuple[str, str], float]:
    """The ways of an answer; where there is no road (null), NO_ROAD. Raises on nonsense."""
    if answer["code"] != "Ok":
        raise ValueError(f"the routing engine says {answer['code']}")
    durations = answer["durations"]
    if not isinstance(durations, list) or not all(isinstance(row, list) for row in durations):
        raise TypeError("the routing engine's table is no list of lists")
    if [len(row) for row in durations] != [len(table.trips)] * len(table.drivers):
        raise ValueError("the routing engine's table is of another size")
    ways: dict[tuple[str, str], float] = {}
    speeds_kmh = []
    for driver, row in zip(table.drivers, durations, strict=True):
        for trip, way_s in zip(table.trips, row, strict=True):
            pair = trip.trip_id, driver.driver_id
            if way_s is None:
                ways[pair] = NO_ROAD
                continue
            # A number, and no flag or text that could be taken for one.
            if type(way_s) not in (int, float) or not 0 <= way_s <= _LONGEST_S:
                raise ValueError(f"the routing engine tells a way of {way_s!r:.40} s")
            ways[pair] = float(way_s)
            distance_m = great_circle_m(driver.lat, driver.lng, trip.lat, trip.lng)
            if distance_m >= _TELLING_M:
                speeds_kmh.append(3.6 * distance_m / way_s if way_s else math.inf)
    if all(way_s == NO_ROAD for way_s in ways.values()):
        raise ValueError("the routing engine knows no road at all")
    if speeds_kmh and not _SLOWEST_KMH <= median(speeds_kmh) <= _FASTEST_KMH:
        raise ValueError(f"the routing engine's drivers make {median(speeds_kmh):.1f} km/h")
    return ways
