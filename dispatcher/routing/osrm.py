"""Ways by road, from a routing engine that speaks OSRM's table API. What it does not tell in time, the
great circle tells: a round of matching never waits for longer, and never fails with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import aiohttp
import structlog

from dispatcher.matching.model import NearbyDriver, WaitingTrip, Ways

log = structlog.get_logger("dispatcher.routing")

#: OSRM refuses a table of more places than this (`--max-table-size`), unless it is told otherwise.
_PLACES_A_TABLE: Final = 100
_TRIPS_A_TABLE: Final = 10
#: A way of more than a day is no way.
_LONGEST_S: Final = 86_400.0


#: Trips, each with the drivers whose ways to it are asked for.
Pairs = Sequence[tuple[WaitingTrip, Sequence[NearbyDriver]]]


class _Table(NamedTuple):
    """One question: the ways from each driver to each pickup."""

    trips: Sequence[WaitingTrip]
    drivers: Sequence[NearbyDriver]


class OsrmRouting:
    """Asks routing engines. `fallbacks` counts the tables that came late or were nonsense."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self.fallbacks = 0

    async def ways(self, url: str, pairs: Pairs, *, deadline_s: float) -> Ways:
        """Seconds from driver to pickup by (trip, driver), as far as they are known in time."""
        if self._session is None:
            self._session = aiohttp.ClientSession()
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
            async with session.get(_table_url(url, table), timeout=limit) as response:
                return _read(table, await response.json(content_type=None))
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


def _read(table: _Table, answer: Any) -> dict[tuple[str, str], float]:
    """The ways of an answer; a way that there is not (null) is left out. Raises on nonsense."""
    if answer["code"] != "Ok":
        raise ValueError(f"the routing engine says {answer['code']}")
    durations = answer["durations"]
    if [len(row) for row in durations] != [len(table.trips)] * len(table.drivers):
        raise ValueError("the routing engine's table is of another size")
    ways = {}
    for driver, row in zip(table.drivers, durations, strict=True):
        for trip, way_s in zip(table.trips, row, strict=True):
            if way_s is None:
                continue
            if not 0 <= float(way_s) <= _LONGEST_S:
                raise ValueError(f"the routing engine tells a way of {way_s} s")
            ways[trip.trip_id, driver.driver_id] = float(way_s)
    return ways
