"""Rounds of matching in Redis: who begins one, and what it is to know of trips and drivers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from dispatcher.live.hashes import flat_to_dict
from dispatcher.live.keys import Keys
from dispatcher.live.pipeline import Pipeline
from dispatcher.matching.model import NearbyDriver, Place

#: As many at once keep Redis busy for a millisecond; more would delay others.
_TRIPS_A_CALL: Final = 50
_DRIVERS_A_CALL: Final = 100


class RoundStart(NamedTuple):
    """The fence of a round that was begun, 0 where it is not time; times in ms."""

    fence: int
    now_ms: int
    next_ms: int


class TripInWaiting(NamedTuple):
    """A trip that looks for a driver: its hash, and who may not have it. `passed` let an offer pass."""

    hash_: dict[str, str]
    open_offers: int
    barred: frozenset[str]
    passed: frozenset[str]


class DriverPlace(NamedTuple):
    """Where a driver is: degrees in text, which a thread may read."""

    driver_id: str
    lat: str
    lng: str


class MatchScripts:
    """What rounds of matching ask of a zone. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def begin_round(
        self, keys: Keys, trip_ids: Sequence[str], *, every_ms: int, zone_fence: str = ""
    ) -> RoundStart:
        """Begins a round, unless another server has or it is too early; then the trips wait for it.

        `zone_fence` is that by which the caller holds the zone; an empty one needs none.
        """
        reply = await self._pipeline.run(
            "begin_round",
            (keys.matching, keys.waves, keys.holder),
            (every_ms, zone_fence, *trip_ids),
        )
        return RoundStart(*reply)

    async def waiting(
        self, keys: Keys, trip_ids: Sequence[str], *, max_wait_ms: int
    ) -> list[TripInWaiting]:
        """What is known of these trips, in their order; the hash of one that is not known is empty.

        `max_wait_ms` is how long trips wait at most: no offer that is open ends later.
        """
        replies = await asyncio.gather(
            *(
                self.read_waiting(keys, some, max_wait_ms=max_wait_ms)
                for some in _parts(trip_ids, _TRIPS_A_CALL)
            )
        )
        return [trip for reply in replies for trip in reply]

    async def read_waiting(
        self, keys: Keys, trip_ids: Sequence[str], *, max_wait_ms: int
    ) -> list[TripInWaiting]:
        """The same of a few trips, in one call."""
        names: list[str] = []
        for trip_id in trip_ids:
            names += (
                keys.trip(trip_id), keys.offers(trip_id), keys.barred(trip_id), keys.passed(trip_id)
            )  # fmt: skip
        reply: list[Any] = await self._pipeline.run("read_waiting", names, (max_wait_ms,))
        return [
            TripInWaiting(flat_to_dict(flat), open_offers, frozenset(barred), frozenset(passed))
            for flat, open_offers, barred, passed in reply
        ]

    async def nearby(
        self, keys: Keys, driver_ids: Sequence[str], *, max_wait_ms: int
    ) -> list[NearbyDriver]:
        """What is known of these drivers; those without a position are left out."""
        replies = await asyncio.gather(
            *(
                self.read_nearby(keys, some, max_wait_ms=max_wait_ms)
                for some in _parts(driver_ids, _DRIVERS_A_CALL)
            )
        )
        return [driver for reply in replies for driver in reply]

    async def read_nearby(
        self, keys: Keys, driver_ids: Sequence[str], *, max_wait_ms: int
    ) -> list[NearbyDriver]:
        """The same of a few drivers, in one call."""
        names = [keys.present, keys.turned_down]
        for driver_id in driver_ids:
            names += (keys.driver(driver_id), keys.inbox(driver_id))
        reply: list[list[Any]] = await self._pipeline.run(
            "read_nearby", names, (max_wait_ms, *driver_ids)
        )
        found = zip(driver_ids, reply, strict=True)
        with self._pipeline.decoding(*names):
            return [_nearby_driver(driver_id, who) for driver_id, who in found if who[6]]

    async def around(
        self, keys: Keys, vehicle_type: str, place: Place, *, radius_m: float, most: int
    ) -> list[str]:
        """Free drivers around a place (lat, lng in degrees), nearest first."""
        lat, lng = place
        found: list[str] = await self._pipeline.command(
            "GEOSEARCH", keys.geo(vehicle_type),
            "FROMLONLAT", lng, lat, "BYRADIUS", radius_m, "m", "ASC", "COUNT", most,
        )  # fmt: skip
        return found

    async def places_around(
        self, keys: Keys, vehicle_type: str, place: Place, *, radius_m: float, most: int
    ) -> list[DriverPlace]:
        """The same with their places, as Redis writes them."""
        lat, lng = place
        found = await self._pipeline.command(
            "GEOSEARCH", keys.geo(vehicle_type),
            "FROMLONLAT", lng, lat, "BYRADIUS", radius_m, "m", "ASC", "COUNT", most, "WITHCOORD",
        )  # fmt: skip
        return [DriverPlace(name, at_lat, at_lng) for name, (at_lng, at_lat) in found]

    async def waiting_ids(self, keys: Keys, most: int) -> list[str]:
        """The trips of the zone that have no driver, offers or not, by the time of their next wave."""
        waiting: list[str] = await self._pipeline.command("ZRANGE", keys.waves, 0, most - 1)
        return waiting

    async def keep_scarce(self, keys: Keys, vehicle_type: str, until_ms: int) -> None:
        """Drivers of a vehicle type are scarce: all servers of the zone match its trips until then."""
        await self._pipeline.command("HSET", keys.matching, f"scarce_until_ms:{vehicle_type}", until_ms)


def _parts(ids: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    return (ids[i : i + most] for i in range(0, len(ids), most))


def _nearby_driver(driver_id: str, who: Sequence[Any]) -> NearbyDriver:
    """A driver as lua/read_nearby.lua tells of them."""
    is_online, availability, trip_id, vehicle_type, lat, lng, fix_ms, free_since, *rest = who
    present_until, turned_down, open_offers = rest
    return NearbyDriver(
        driver_id=driver_id,
        lat=float(lat),
        lng=float(lng),
        vehicle_type=vehicle_type,
        fix_ms=int(fix_ms),
        is_online=is_online == "1",
        availability_status=availability,
        trip_id=trip_id,
        present_until_ms=int(float(present_until)) if present_until else 0,
        open_offers=open_offers,
        turned_down=int(turned_down) if turned_down else 0,
        free_since_ms=int(free_since) if free_since else None,
    )
