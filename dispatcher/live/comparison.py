"""Redis' side of a comparison with Postgres: what a zone holds, in chunks, and single things dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from dispatcher.live.hashes import flat_to_dict
from dispatcher.live.keys import Keys
from dispatcher.live.pages import members
from dispatcher.live.pipeline import Pipeline
from dispatcher.live.state import Fix

#: Members that one ZSCAN is asked for.
_PAGE: Final = 500


class ComparisonScripts:
    """What a comparison reads of a zone, and what a repair drops. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def begin_look(self, keys: Keys, node: str, *, every_ms: int) -> bool:
        """Whether this server is to compare the zone: one does, within `every_ms`."""
        won: Any = await self._pipeline.command("SET", keys.drift_look, node, "NX", "PX", every_ms)
        return bool(won)

    async def read_clock(self, keys: Keys) -> tuple[int, str]:
        """The time (ms) of the Redis that holds the zone, and its epoch, empty where it is cold."""
        now_ms, epoch = await self._pipeline.run("read_clock", (keys.epoch,), ())
        return int(now_ms), str(epoch)

    async def keys_of_zone(
        self, keys: Keys, kinds: Sequence[str]
    ) -> AsyncIterator[dict[str, list[str]]]:
        """All keys of a zone of these kinds, as `trip`, in pages: the ids by kind. An id may come twice.

        Looks at every key of the node: for a command, not for a job.
        """
        async for found in self._pipeline.scan(keys.epoch, keys.prefix):
            page: dict[str, list[str]] = {kind: [] for kind in kinds}
            for name in found:
                kind, _, rest = name.removeprefix(keys.prefix).partition(":")
                if kind in page:
                    page[kind].append(rest)
            yield page

    async def names(self, keys: Keys) -> AsyncIterator[list[str]]:
        """The names of all keys of a zone, in pages. Looks at every key of the node."""
        async for found in self._pipeline.scan(keys.epoch, keys.prefix):
            yield found

    async def members(self, key: str) -> AsyncIterator[list[str]]:
        """The members of a sorted set, in pages. A member may come twice."""
        async for found in members(self._pipeline, key, count=_PAGE):
            yield found

    async def overdue(self, keys: Keys, before_ms: int) -> list[str]:
        """Entries of attempts whose lease was over before then; a page at most."""
        found: list[str] = await self._pipeline.command(
            "ZRANGEBYSCORE", keys.claims, "-inf", before_ms, "LIMIT", 0, _PAGE
        )
        return found

    async def vehicles(self, keys: Keys) -> list[str]:
        """The vehicle types that have a geo set."""
        return sorted(await self._pipeline.command("SMEMBERS", keys.vehicles))

    async def hashes(self, names: Sequence[str]) -> list[dict[str, str]]:
        """Several hashes; empty ones for those that there are not."""
        replies = await self._all("HGETALL", names)
        return [r if isinstance(r, dict) else flat_to_dict(r) for r in replies]

    async def values(self, names: Sequence[str]) -> list[str | None]:
        """Several strings."""
        return await self._all("GET", names)

    async def open_members(self, names: Sequence[str], now_ms: int) -> list[list[str]]:
        """Of several sorted sets by deadline (ms): the members whose deadline is to come."""
        return await self._all("ZRANGEBYSCORE", names, f"({now_ms}", "+inf")

    async def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """The scores of members of sorted sets: (key, member)."""
        found = await asyncio.gather(*(self._pipeline.command("ZSCORE", *pair) for pair in pairs))
        return [None if score is None else float(score) for score in found]

    async def _all(self, command: str, names: Sequence[str], *more: Any) -> list[Any]:
        return list(
            await asyncio.gather(*(self._pipeline.command(command, name, *more) for name in names))
        )

    async def drop_trip(self, keys: Keys, trip_id: str) -> None:
        """Drops what Postgres gives back of a trip: its hash, its offers and its wave."""
        command, offers = self._pipeline.command, keys.offers(trip_id)
        offered = await command("ZRANGE", offers, 0, -1)
        await asyncio.gather(
            command("UNLINK", keys.trip(trip_id), offers),
            command("ZREM", keys.waves, trip_id),
            *(command("ZREM", keys.inbox(driver), trip_id) for driver in offered),
        )

    async def drop_driver(self, keys: Keys, driver_id: str) -> Fix | None:
        """Drops what Postgres gives back of a driver, and their place in the geo sets. Returns their
        last fix, which Postgres may not have yet."""
        command, driver = self._pipeline.command, keys.driver(driver_id)
        lat, lng, fix_ms = await command("HMGET", driver, "lat", "lng", "fix_ms")
        await asyncio.gather(
            command("UNLINK", driver),
            command("ZREM", keys.seen, driver_id),
            *(command("ZREM", keys.geo(v), driver_id) for v in await self.vehicles(keys)),
        )
        with self._pipeline.decoding(driver):
            return Fix(float(lat), float(lng), int(fix_ms)) if fix_ms else None

    async def drop_offer(self, keys: Keys, trip_id: str, driver_id: str) -> None:
        """Takes a trip that is not on offer to a driver out of their inbox."""
        await self._pipeline.command("ZREM", keys.inbox(driver_id), trip_id)
