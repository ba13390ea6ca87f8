"""The servers that are alive, and who of them does the rounds of which zone.

The list of servers is one for all zones. What fences a zone's rounds stands with the zone: where the
list cannot be had, its holder goes on.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from dispatcher.core.zones import Zone
from dispatcher.live.keys import SERVER_KEYS, Keys
from dispatcher.live.pipeline import Pipeline


class ServerList(NamedTuple):
    """The number of the list, its age in ms, and the digest of the zones that each server serves; None
    where that is the list of the number that the caller knows."""

    number: int
    age_ms: int
    serves: Mapping[str, str] | None


class Survey(NamedTuple):
    """When the next things are due in a zone (ms, None: there is none), or have happened.

    `epoch` is the text of the zone's epoch, empty where it is cold; `first_lease_ms` ends the first
    claim, `oldest_fix_ms` was measured then, `first_absence_ms` ends the first presence.
    """

    is_held: bool
    now_ms: int
    epoch: str
    first_lease_ms: int | None
    oldest_fix_ms: int | None
    first_absence_ms: int | None
    next_wave_ms: int | None


def wave_settings(zone: Zone, fix_age_ms: int) -> str:
    """What a zone's waves go by, as its holder tells `lua/inspect/why.lua`, separated by spaces.

    The oldest fix in ms, the most open offers of a driver, and of each wave the most drivers and the
    radius in m.
    """
    numbers: list[float] = [fix_age_ms, zone.offers_per_driver]
    for wave in zone.waves:
        numbers += (wave.size, wave.radius_m)
    return " ".join(map(str, numbers))


class ServerScripts:
    """The list of servers, and the zones that they hold. All raise StoreUnavailable."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def beat_server(
        self,
        node: str,
        zones: Sequence[str],
        digest: str,
        *,
        life_ms: int,
        known_number: int,
        above: int = 0,
    ) -> ServerList:
        """A sign of life of a server that serves `zones`, which `digest` stands for.

        `known_number` is the number of the list that the caller knows; `above` the fence of a zone that
        was taken under a later one.
        """
        keys = SERVER_KEYS
        number, age_ms, is_unknown, flat = await self._pipeline.run(
            "beat_server",
            (keys.alive, keys.serves, keys.list, keys.zones, keys.changed),
            (node, life_ms, digest, known_number, above),
        )
        if is_unknown:
            await self._pipeline.command("HSET", keys.zones, digest, orjson.dumps(list(zones)))
        if number == known_number:
            return ServerList(number, age_ms, None)
        return ServerList(number, age_ms, dict(zip(flat[::2], flat[1::2], strict=True)))

    async def leave_servers(self, node: str) -> bool:
        """A server stops; says whether it was in the list."""
        keys = SERVER_KEYS
        reply: int = await self._pipeline.run(
            "leave_servers", (keys.alive, keys.serves, keys.list, keys.changed), (node,)
        )
        return reply == 1

    async def zones_of(self, digest: str) -> list[str] | None:
        """The zones that a digest stands for; None where nobody has told yet."""
        text = await self._pipeline.command("HGET", SERVER_KEYS.zones, digest)
        return None if text is None else [str(name) for name in orjson.loads(text)]

    async def take_zone(self, keys: Keys, node: str, fence: int, waves: str = "") -> int:
        """Makes a server the holder of a zone, which goes by these `wave_settings`; empty: the defaults.

        Returns the fence by which it is held: a greater one is another server's, and 0 stands for the
        same one of another server.
        """
        taken, held = await self._pipeline.run("take_zone", (keys.holder,), (fence, node, waves))
        return int(held) if taken or held != fence else 0

    def node_of(self, keys: Keys) -> Hashable:
        """The node that holds a zone."""
        return self._pipeline.node_of(keys.holder)

    async def fence_of(self, keys: Keys) -> str:
        """The fence by which a zone is held, or empty."""
        fence: str | None = await self._pipeline.command("HGET", keys.holder, "fence")
        return fence or ""

    async def survey_zone(self, keys: Keys, fence: str = "") -> Survey:
        """What is due in a zone. An empty fence is that of a caller who needs none."""
        reply: list[Any] = await self._pipeline.run(
            "survey_zone",
            (keys.holder, keys.epoch, keys.claims, keys.seen, keys.present, keys.waves),
            (fence,),
        )
        is_held, now_ms, epoch, *due = reply
        return Survey(is_held == 1, now_ms, epoch, *(at_ms or None for at_ms in due))
