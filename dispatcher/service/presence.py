"""Who is there: connections with their metadata, kept alive in batches by any traffic."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Final

import orjson

from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.times import iso
from dispatcher.core.zones import DEFAULT_ZONE
from dispatcher.live.keys import keys_of
from dispatcher.live.scripts import Scripts
from dispatcher.service.driver_directory import Homes
from dispatcher.service.messages import address

#: The connection of an app that has no socket: it lives on from call to call.
HTTP: Final = "http"
#: Some 3 ms of Redis' time: other calls wait for no longer.
_BATCH: Final = 50


@dataclass(slots=True)
class Connection:
    """One connection of a user. `seen` is this process' monotonic clock, in s."""

    id: str
    actor: Actor
    zone: str
    about: str
    seen: float = field(default_factory=time.monotonic)
    #: The sign of life that Redis was last told of, and when.
    told: float = 0.0
    told_at: float = 0.0


class Presence:
    """The connections of this process, and their keys in Redis.

    Traffic only marks a connection; `flush` prolongs the marked ones, a script call for 50.
    """

    def __init__(self, *, scripts: Scripts, homes: Homes, node: str, ttl_s: int) -> None:
        self._scripts = scripts
        self._homes = homes
        self._node = node
        self._ttl_s = ttl_s
        self._connections: dict[tuple[str, str], Connection] = {}

    def __len__(self) -> int:
        return len(self._connections)

    async def register(
        self, connection_id: str, actor: Actor, ip: str | None, user_agent: str
    ) -> Connection:
        """A new socket: present at once, with its metadata."""
        home = await self._homes.of(actor.user_id) if actor.role is Role.DRIVER else None
        connection = self._new(connection_id, actor, home[0] if home else DEFAULT_ZONE, ip, user_agent)
        await self._touch([connection])
        return connection

    def _new(
        self, connection_id: str, actor: Actor, zone: str, ip: str | None, user_agent: str
    ) -> Connection:
        about = {
            "node": self._node,
            "ip": ip,
            "user_agent": user_agent[:200],
            "since": iso(time.time_ns() // 1_000_000),
        }
        connection = Connection(connection_id, actor, zone, orjson.dumps(about).decode())
        self._connections[(address(actor.role, actor.user_id), connection_id)] = connection
        return connection

    def seen(self, connection: Connection) -> None:
        """A sign of life."""
        connection.seen = time.monotonic()

    def seen_over_http(self, actor: Actor, ip: str | None, user_agent: str) -> None:
        """A call of a driver's app, which may have no socket."""
        known = self._connections.get((f"driver:{actor.user_id}", HTTP))
        if known is None:
            # The zone is filled in by the flush: a call does not wait for a look-up.
            known = self._new(HTTP, actor, "", ip, user_agent)
        known.seen = time.monotonic()

    async def remove(self, connection: Connection) -> None:
        """A socket was closed; whoever else the user is connected by stays."""
        own = address(connection.actor.role, connection.actor.user_id)
        self._connections.pop((own, connection.id), None)
        with contextlib.suppress(StoreUnavailable):  # its keys end by themselves
            await self._scripts.drop_presence(keys_of(connection.zone), own, connection.id)

    async def flush(self) -> None:
        """Prolongs the connections that gave a sign of life Redis does not know of.

        A connection is told of again after a quarter of its life: often enough, and no more.
        """
        now = time.monotonic()
        dirty: list[Connection] = []
        for where, connection in list(self._connections.items()):
            if connection.seen > connection.told:
                if now - connection.told_at >= self._ttl_s / 4:
                    dirty.append(connection)
            elif connection.id == HTTP and now - connection.seen > self._ttl_s:
                del self._connections[where]
        for connection in dirty:
            if not connection.zone:
                home = await self._homes.of(connection.actor.user_id)
                connection.zone = home[0] if home else DEFAULT_ZONE
        for start in range(0, len(dirty), _BATCH):
            await self._touch(dirty[start : start + _BATCH])

    async def _touch(self, connections: list[Connection]) -> None:
        now = time.monotonic()
        by_zone: dict[str, list[tuple[str, str, str, str, int]]] = {}
        for c in connections:
            left_ms = int((self._ttl_s - (now - c.seen)) * 1000)
            c.told, c.told_at = c.seen, now
            if left_ms > 0:
                by_zone.setdefault(c.zone, []).append(
                    (c.actor.role, c.actor.user_id, c.id, c.about, left_ms)
                )
        for zone, touches in by_zone.items():
            try:
                await self._scripts.touch_presence(keys_of(zone), touches)
            except StoreUnavailable:
                for c in connections:
                    c.told = c.told_at = 0.0
                raise
