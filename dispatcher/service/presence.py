"""Who is there: connections with their metadata, kept alive in batches by any traffic."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

import orjson
import structlog

from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.times import iso, now_ms
from dispatcher.core.zones import DEFAULT_ZONE
from dispatcher.live.keys import keys_of
from dispatcher.live.presence import PresenceScripts, Touch
from dispatcher.service.driver_directory import DriverDirectory

log = structlog.get_logger("dispatcher.presence")

#: The connection of an app that has no socket: it lives on from call to call.
HTTP: Final = "http"
#: Some 3 ms of Redis' time: other calls wait for no longer.
_MAX_BATCH: Final = 50
_MAX_USER_AGENT: Final = 200


@dataclass(slots=True)
class Connection:
    """One connection of a user. Times are this process' monotonic clock, in s.

    `zone` is empty until a flush has looked it up.
    """

    id: str
    actor: Actor
    zone: str
    metadata: str
    seen: float = field(default_factory=time.monotonic)
    #: The sign of life that Redis was last told of, and when.
    told: float = 0.0
    told_at: float = 0.0


class FlushReport(NamedTuple):
    """The zones that did not take their connections, and whether Postgres gave all drivers' zones."""

    failed_zones: set[str]
    is_placed: bool


class Presence:
    """The connections of this process, and their keys in Redis.

    Traffic only marks a connection; `flush` prolongs the marked ones, a script call for 50.
    """

    def __init__(
        self, *, scripts: PresenceScripts, directory: DriverDirectory, node: str, ttl_s: int
    ) -> None:
        self._scripts = scripts
        self._directory = directory
        self.node = node
        self._ttl_s = ttl_s
        self._connections: dict[tuple[str, str], Connection] = {}

    def __len__(self) -> int:
        return len(self._connections)

    async def register(
        self, connection_id: str, actor: Actor, ip: str | None, user_agent: str
    ) -> Connection:
        """A new socket: present at once, with its metadata.

        Raises StoreUnavailable, and then knows nothing of the connection.
        """
        zone = await self._zone_of(actor) if actor.role is Role.DRIVER else DEFAULT_ZONE
        connection = self._add(connection_id, actor, zone, ip, user_agent)
        try:
            await self._touch([connection])
        except BaseException:
            self._connections.pop((actor.address, connection_id), None)
            raise
        return connection

    async def _zone_of(self, driver: Actor) -> str:
        entry = await self._directory.find(driver.user_id)
        return entry.zone if entry else DEFAULT_ZONE

    def _add(
        self, connection_id: str, actor: Actor, zone: str, ip: str | None, user_agent: str
    ) -> Connection:
        metadata = {
            "node": self.node,
            "ip": ip,
            "user_agent": user_agent[:_MAX_USER_AGENT],
            "since": iso(now_ms()),
        }
        connection = Connection(connection_id, actor, zone, orjson.dumps(metadata).decode())
        self._connections[actor.address, connection_id] = connection
        return connection

    def seen(self, connection: Connection) -> None:
        """A sign of life."""
        connection.seen = time.monotonic()

    def seen_over_http(self, actor: Actor, ip: str | None, user_agent: str) -> None:
        """A call of a driver's app, which may have no socket."""
        known = self._connections.get((actor.address, HTTP))
        if known is None:
            # The zone is filled in by the flush: a call does not wait for a look-up.
            known = self._add(HTTP, actor, "", ip, user_agent)
        known.seen = time.monotonic()

    async def remove(self, connection: Connection) -> None:
        """A socket was closed; the user's other connections stay."""
        address = connection.actor.address
        self._connections.pop((address, connection.id), None)
        with contextlib.suppress(StoreUnavailable):  # its keys end by themselves
            await self._scripts.drop_presence(keys_of(connection.zone), address, connection.id)

    async def flush(self, unreached: Mapping[str, float] = MappingProxyType({})) -> FlushReport:
        """Prolongs the connections that gave a sign of life Redis does not know of.

        A connection is told of again after a quarter of its life: often enough, and no more. Each
        zone is told on its own; who has no zone yet waits for Postgres, and nobody else does.
        `unreached` are zones that may have lost what they were told before a time of the monotonic
        clock, in s: all their connections are due.
        """
        due = self._due(time.monotonic(), unreached)
        unplaced = [connection for connection in due if not connection.zone]
        failed, is_placed = await asyncio.gather(
            self._tell_zones([connection for connection in due if connection.zone]),
            self._find_zones(unplaced),
        )
        failed |= await self._tell_zones([connection for connection in unplaced if connection.zone])
        return FlushReport(failed, is_placed)

    def zones(self) -> set[str]:
        """The zones of this process' connections."""
        return {connection.zone for connection in self._connections.values()}

    def _due(self, now: float, unreached: Mapping[str, float]) -> list[Connection]:
        due: list[Connection] = []
        for name, connection in list(self._connections.items()):
            if connection.told_at < unreached.get(connection.zone, 0.0):
                due.append(connection)
            elif connection.seen > connection.told:
                if now - connection.told_at >= self._ttl_s / 4:
                    due.append(connection)
            elif connection.id == HTTP and now - connection.seen > self._ttl_s:
                del self._connections[name]
        return due

    async def _find_zones(self, connections: list[Connection]) -> bool:
        try:
            for connection in connections:
                connection.zone = await self._zone_of(connection.actor)
        except StoreUnavailable as error:
            log.warning("drivers' zones not found", reason=str(error))
            return False
        return True

    async def _tell_zones(self, connections: list[Connection]) -> set[str]:
        """Tells each zone of its connections; returns the zones that did not take them."""
        by_zone: dict[str, list[Connection]] = defaultdict(list)
        for connection in connections:
            by_zone[connection.zone].append(connection)
        told = await asyncio.gather(*(self._tell_zone(*of_zone) for of_zone in by_zone.items()))
        return {zone for zone, is_told in zip(by_zone, told, strict=True) if not is_told}

    async def _tell_zone(self, zone: str, connections: list[Connection]) -> bool:
        try:
            # A node that hangs gives up its turn before the other zones' connections are due again.
            async with asyncio.timeout(self._ttl_s / 4):
                for start in range(0, len(connections), _MAX_BATCH):
                    await self._touch(connections[start : start + _MAX_BATCH])
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("presence not told", zone=zone, reason=str(error) or "no answer in time")
        except Exception:
            log.exception("presence not told", zone=zone)
        else:
            return True
        return False

    async def _touch(self, connections: list[Connection]) -> None:
        now = time.monotonic()
        by_zone: dict[str, list[Touch]] = defaultdict(list)
        for connection in connections:
            life_ms = int((self._ttl_s - (now - connection.seen)) * 1000)
            connection.told, connection.told_at = connection.seen, now
            if life_ms > 0:
                by_zone[connection.zone].append(
                    Touch(connection.actor.address, connection.id, connection.metadata, life_ms)
                )
        try:
            for zone, touches in by_zone.items():
                await self._scripts.touch_presence(keys_of(zone), touches)
        except BaseException:
            for connection in connections:
                connection.told = connection.told_at = 0.0
            raise
