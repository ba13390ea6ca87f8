"""The live state as it stands, read in bulk and by kind, to be compared with Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

from dispatcher.core.actors import Role, address_of
from dispatcher.core.drivers import AvailabilityStatus
from dispatcher.core.idempotency import IdempotencyKey
from dispatcher.core.times import now_ms
from dispatcher.live.claims import OverdueClaim
from dispatcher.live.keys import Keys
from dispatcher.live.pipeline import Pipeline

#: Names of one read together.
_PAGE: Final = 500


class LiveTrip(NamedTuple):
    """What decides about a trip; None where its hash lacks it."""

    status: str | None
    version: str | None
    driver_id: str | None


class LiveDriver(NamedTuple):
    """What decides about a driver; None where the hash lacks it. `fix_ms`: when the last fix was."""

    zone: str | None
    is_online: str | None
    availability_status: str | None
    vehicle_type: str | None
    version: str | None
    trip_id: str | None
    fix_ms: str | None

    @property
    def is_free(self) -> bool:
        """Whether they may be offered a trip, as `lua/lib/eligibility.lua` says."""
        is_available = self.availability_status == AvailabilityStatus.AVAILABLE
        return self.is_online == "1" and is_available and not self.trip_id


class KeptRecord(NamedTuple):
    """An idempotency record of an effect, as Redis holds it; the key is without its fingerprint."""

    key: IdempotencyKey
    text: str


class Inspection:
    """Reads everything of a zone, page by page. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def trips(self, keys: Keys, trip_ids: Sequence[str]) -> dict[str, LiveTrip]:
        """The trips of these ids; all None where there is no hash."""
        rows = await self._fields(
            [keys.trip(each) for each in trip_ids], "current_status", "version", "driver_id"
        )
        return {each: LiveTrip(*row) for each, row in zip(trip_ids, rows, strict=True)}

    async def drivers(self, keys: Keys, driver_ids: Sequence[str]) -> dict[str, LiveDriver]:
        """The drivers of these ids; all None where there is no hash."""
        names = [keys.driver(each) for each in driver_ids]
        rows = await self._fields(names, *LiveDriver._fields)
        return {each: LiveDriver(*row) for each, row in zip(driver_ids, rows, strict=True)}

    async def changing(
        self, keys: Keys, *, trip_ids: Sequence[str], driver_ids: Sequence[str]
    ) -> set[str]:
        """Those of these trips and drivers that an attempt holds a claim on."""
        names = [*map(keys.trip_claim, trip_ids), *map(keys.driver_claim, driver_ids)]
        held = await asyncio.gather(*(self._pipeline.command("EXISTS", name) for name in names))
        return {each for each, is_held in zip([*trip_ids, *driver_ids], held, strict=True) if is_held}

    async def names(self, keys: Keys, prefix: str) -> AsyncIterator[list[str]]:
        """What follows `prefix` (the key of an empty id) in the names of the zone's keys; in pages."""
        page: list[str] = []
        async for found in self._pipeline.scan(keys.epoch, prefix):
            page += [name.removeprefix(prefix) for name in found if name.startswith(prefix)]
            while len(page) >= _PAGE:
                yield page[:_PAGE]
                page = page[_PAGE:]
        if page:
            yield page

    async def geo_sets(self, keys: Keys) -> dict[str, set[str]]:
        """The drivers of each vehicle type who may be offered a trip."""
        vehicles: list[str] = await self._pipeline.command("SMEMBERS", keys.vehicles)
        members = await asyncio.gather(*(self._members(keys.geo(vehicle)) for vehicle in vehicles))
        return {vehicle: set(drivers) for vehicle, drivers in zip(vehicles, members, strict=True)}

    async def open_offers(self, keys: Keys, trip_ids: Sequence[str]) -> dict[str, list[str]]:
        """The drivers who hold an offer of each of these trips that has not ended."""
        offers = await asyncio.gather(
            *(
                self._pipeline.command("ZRANGEBYSCORE", keys.offers(each), now_ms(), "+inf")
                for each in trip_ids
            )
        )
        return dict(zip(trip_ids, offers, strict=True))

    async def waiting(self, keys: Keys) -> set[str]:
        """The trips that have a next wave."""
        return set(await self._members(keys.waves))

    async def present(self, keys: Keys) -> set[str]:
        """The users (role:id) with a presence, also one that has ended and is yet to be judged."""
        return set(await self._members(keys.present))

    async def overdue(self, keys: Keys, before_ms: int) -> list[OverdueClaim]:
        """The attempts whose lease was over before this time."""
        entries = await self._pipeline.command(
            "ZRANGEBYSCORE", keys.claims, "-inf", before_ms, "LIMIT", 0, _PAGE
        )
        return [OverdueClaim.decode(entry) for entry in entries]

    async def answers(self, keys: Keys) -> AsyncIterator[list[KeptRecord]]:
        """The answers to requests that had an effect, in pages."""
        prefix = f"{keys.prefix}idem:"
        async for names in self.names(keys, prefix):
            texts = await asyncio.gather(
                *(self._pipeline.command("GET", prefix + name) for name in names)
            )
            yield [
                KeptRecord(_key(name), text)
                for name, text in zip(names, texts, strict=True)
                if text and text.startswith("D ")
            ]

    async def drop(self, *names: str) -> None:
        """Removes keys that are wrong, to be loaded anew."""
        await self._pipeline.command("UNLINK", *names)

    async def drop_member(self, name: str, member: str) -> None:
        """Takes a member out of a sorted set."""
        await self._pipeline.command("ZREM", name, member)

    async def make_due(self, keys: Keys, trip_id: str) -> None:
        """A trip that waits gets its next wave now."""
        await self._pipeline.command("ZADD", keys.waves, "NX", now_ms(), trip_id)

    async def list_by_state(self, keys: Keys, driver_id: str) -> None:
        """Puts a driver into the geo set of their vehicle type, where they are free, and out of all
        others."""
        vehicles = await self._pipeline.command("SMEMBERS", keys.vehicles)
        await asyncio.gather(*(self.drop_member(keys.geo(vehicle), driver_id) for vehicle in vehicles))
        driver = (await self.drivers(keys, [driver_id]))[driver_id]
        if driver.is_free and driver.vehicle_type:
            lat, lng = await self._pipeline.command("HMGET", keys.driver(driver_id), "lat", "lng")
            if lat:
                await self._pipeline.command(
                    "GEOADD", keys.geo(driver.vehicle_type), lng, lat, driver_id
                )

    async def expect(self, keys: Keys, driver_id: str) -> None:
        """Gives a driver who has no presence one that has ended: they are judged like anyone else."""
        address = address_of(Role.DRIVER, driver_id)
        await self._pipeline.command("ZADD", keys.present, "NX", now_ms(), address)

    async def _members(self, name: str) -> list[str]:
        members: list[str] = []
        while page := await self._pipeline.command(
            "ZRANGE", name, len(members), len(members) + _PAGE - 1
        ):
            members += page
        return members

    async def _fields(self, names: Sequence[str], *fields: str) -> list[list[Any]]:
        asked = (self._pipeline.command("HMGET", name, *fields) for name in names)
        return list(await asyncio.gather(*asked))


def _key(name: str) -> IdempotencyKey:
    """The key that a record's name stands for: neither a user's id nor an endpoint has a slash and a
    colon next to each other."""
    user_id, _, rest = name.partition(":/")
    endpoint, _, key = rest.partition(":")
    return IdempotencyKey(user_id, f"/{endpoint}", key, "")
