"""Who is there: connections with their metadata, kept alive in batches by any traffic."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import orjson
import structlog

from dispatcher.core.actors import Actor, Role, address_of
from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.times import iso, now_ms
from dispatcher.core.zones import DEFAULT_ZONE
from dispatcher.live.keys import keys_of
from dispatcher.live.presence import PresenceScripts, Touch, TouchResult
from dispatcher.observe.series import PRESENCE_FAILURES
from dispatcher.service.authorities import Authorities
from dispatcher.service.connections import HTTP, Connection, Connections
from dispatcher.service.driver_directory import DirectoryEntry, DriverDirectory
from dispatcher.service.new_connections import NewConnections

log = structlog.get_logger("dispatcher.presence")

#: Some 3 ms of Redis' time: other calls wait for no longer.
_MAX_BATCH: Final = 50
_MAX_USER_AGENT: Final = 200
#: A change of availability waits for its presence no longer, in s.
_MAX_FOLLOW_S: Final = 1.0


class FlushReport(NamedTuple):
    """The zones that did not take their connections, and whether Postgres gave all drivers' zones."""

    failed_zones: set[str]
    is_placed: bool


class _Move(NamedTuple):
    """A connection that a zone is to be told of, and the one that it has left, or an empty text."""

    connection: Connection
    former_zone: str


class Presence:
    """The connections of this process, and their keys in Redis, in the zone where the user works.

    Traffic only marks a connection; `flush` prolongs the marked ones, a script call for 50.
    """

    def __init__(
        self,
        *,
        scripts: PresenceScripts,
        directory: DriverDirectory,
        authorities: Authorities,
        node: str,
        ttl_s: int,
    ) -> None:
        self._authorities = authorities
        self._scripts = scripts
        self._directory = directory
        self.node = node
        self._ttl_s = ttl_s
        self.connections = Connections(ttl_s)
        self._new = NewConnections(self._tell_new)
        #: Called with the address of a user and the zone where they are present from now on.
        self.on_moved: Callable[[str, str], None] = lambda address, zone: None

    async def register(
        self, connection_id: str, actor: Actor, ip: str | None, user_agent: str
    ) -> Connection:
        """A new socket: present at once, with its metadata.

        Raises StoreUnavailable, and then knows nothing of the connection.
        """
        connection = self._add(connection_id, actor, ip, user_agent)
        try:
            await self._find_zones([connection])
            try:
                moves = await self._relocate(await self._touch([connection]))
                await self._touch([move.connection for move in moves])
            except StoreUnavailable:
                # The flush tells of it once Redis is back; until then nobody is judged absent.
                if not await self._authorities.has_left_redis(connection.zone):
                    raise
            else:
                await self._drop_moved(moves)
        except BaseException:
            self.connections.remove(connection)
            raise
        return connection

    def _add(self, connection_id: str, actor: Actor, ip: str | None, user_agent: str) -> Connection:
        metadata = {
            "node": self.node,
            "ip": ip,
            "user_agent": user_agent[:_MAX_USER_AGENT],
            "since": iso(now_ms()),
        }
        connection = Connection(connection_id, actor, "", orjson.dumps(metadata).decode())
        self.connections.add(connection)
        return connection

    def seen(self, connection: Connection) -> None:
        """A sign of life."""
        connection.seen = time.monotonic()

    def seen_over_http(self, actor: Actor, ip: str | None, user_agent: str) -> None:
        """A call of a driver's app, which may have no socket. The first one makes the driver present,
        without waiting for that."""
        known, now = self.connections.find(actor.address, HTTP), time.monotonic()
        if known is None:
            known = self._add(HTTP, actor, ip, user_agent)
        known.seen = now
        if not self.connections.is_told(known, now):
            self._new.add(known)

    async def close(self) -> None:
        """Tells of no new connection any more."""
        await self._new.close()

    async def _tell_new(self, new: Iterable[Connection]) -> bool:
        report = await self._tell(self._untold(new))
        return report.is_placed and not report.failed_zones

    async def remove(self, connection: Connection) -> None:
        """A socket was closed; the user's other connections stay."""
        self.connections.remove(connection)
        await self._drop(connection, connection.zone)

    async def follow(self, driver_id: str) -> None:
        """A driver's availability has changed: they are present where they work now, with every
        connection to this server. Those to other servers follow with their next sign of life.

        Waits for a second at most: `flush` does what is not done by then.
        """
        mine = self.connections.of_user(address_of(Role.DRIVER, driver_id))
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(_MAX_FOLLOW_S):
                entry = await self._directory.find(driver_id) if mine else None
                moves = [_Move(each, self._move(each, entry)) for each in mine] if entry else []
                if untold := self._untold(mine):
                    await self._tell(untold)
                await self._drop_moved(moves)

    def _move(self, connection: Connection, entry: DirectoryEntry) -> str:
        former_zone = connection.follow(entry)
        self.on_moved(connection.actor.address, connection.zone)
        return former_zone

    def _untold(self, connections: Iterable[Connection]) -> list[Connection]:
        now = time.monotonic()
        return [each for each in connections if not self.connections.is_told(each, now)]

    async def _drop_moved(self, moves: Iterable[_Move]) -> None:
        await asyncio.gather(*(self._drop(*move) for move in moves if move.former_zone))

    async def _drop(self, connection: Connection, zone: str) -> None:
        with contextlib.suppress(StoreUnavailable):  # its keys end by themselves
            await self._scripts.drop_presence(keys_of(zone), connection.actor.address, connection.id)

    async def flush(self, unreached: Mapping[str, float] = MappingProxyType({})) -> FlushReport:
        """Prolongs the connections that gave a sign of life Redis does not know of.

        Each zone is told on its own; who has no zone yet waits for Postgres, and nobody else does.
        `unreached` are zones that may have lost what they were told before a time of the monotonic
        clock, in s.
        """
        return await self._tell(await self.connections.due(unreached))

    def zones(self) -> set[str]:
        """The zones of this process' connections."""
        return {connection.zone for connection in self.connections}

    async def _tell(self, connections: Sequence[Connection]) -> FlushReport:
        new = [connection for connection in connections if not connection.zone]
        (failed, strangers), is_placed = await asyncio.gather(
            self._tell_zones([connection for connection in connections if connection.zone]),
            self._place(new),
        )
        moved: list[_Move] = []
        if is_placed:
            failed_of_new, strangers_of_new = await self._tell_zones(new)
            failed |= failed_of_new
            try:
                moved = await self._relocate([*strangers, *strangers_of_new])
            except StoreUnavailable as error:
                log.warning("drivers' zones not found", reason=str(error))
                is_placed = False
        failed |= (await self._tell_zones([move.connection for move in moved]))[0]
        await self._drop_moved(moved)
        return FlushReport(failed, is_placed)

    async def _place(self, new: Sequence[Connection]) -> bool:
        """Finds the zones of new connections; False where Postgres is away."""
        try:
            await self._find_zones(new)
        except StoreUnavailable as error:
            log.warning("drivers' zones not found", reason=str(error))
            return False
        return True

    async def _find_zones(self, new: Sequence[Connection]) -> None:
        drivers = [c for c in new if c.actor.role is Role.DRIVER]
        if drivers:
            entries = await self._directory.find_all([c.actor.user_id for c in drivers])
        for connection in drivers:
            if entry := entries.get(connection.actor.user_id):
                connection.follow(entry)
        for connection in new:
            connection.zone = connection.zone or DEFAULT_ZONE

    async def _relocate(self, strangers: Sequence[Connection]) -> list[_Move]:
        """Asks Postgres where drivers work whom their zone does not know; returns the connections that
        are to be told again. Raises StoreUnavailable."""
        entries = await self._directory.refresh([c.actor.user_id for c in strangers])
        moves = []
        for connection in strangers:
            entry = entries.get(connection.actor.user_id)
            former_zone = self._move(connection, entry) if entry else ""
            if not connection.told:
                moves.append(_Move(connection, former_zone))
        return moves

    async def _tell_zones(self, connections: Sequence[Connection]) -> tuple[set[str], list[Connection]]:
        """Tells each zone of its connections. Returns the zones that did not take them, and the
        connections of drivers whom their zone does not know."""
        by_zone: dict[str, list[Connection]] = defaultdict(list)
        for connection in connections:
            by_zone[connection.zone].append(connection)
        told = await asyncio.gather(*(self._tell_zone(*of_zone) for of_zone in by_zone.items()))
        failed = {zone for zone, strangers in zip(by_zone, told, strict=True) if strangers is None}
        return failed, [connection for strangers in told for connection in strangers or ()]

    async def _tell_zone(self, zone: str, connections: list[Connection]) -> list[Connection] | None:
        try:
            strangers: list[Connection] = []
            # A node that hangs gives up its turn before the other zones' connections are due again.
            async with asyncio.timeout(self._ttl_s / 4):
                for start in range(0, len(connections), _MAX_BATCH):
                    strangers += await self._touch(connections[start : start + _MAX_BATCH])
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("presence not told", zone=zone, reason=str(error) or "no answer in time")
        except Exception:
            log.exception("presence not told", zone=zone)
        else:
            return strangers
        PRESENCE_FAILURES.add(zone)
        return None

    async def _touch(self, connections: Sequence[Connection]) -> list[Connection]:
        """Tells Redis of connections; returns those of drivers whom their zone does not know."""
        now = time.monotonic()
        by_zone: dict[str, list[Connection]] = defaultdict(list)
        for connection in connections:
            connection.told, connection.told_at = connection.seen, now
            # It may have been closed while its driver was looked up.
            is_open = self.connections.find(connection.actor.address, connection.id) is connection
            if is_open and self._life_ms(connection, now) > 0:
                by_zone[connection.zone].append(connection)
        strangers = []
        try:
            for zone, of_zone in by_zone.items():
                touches = [
                    Touch(c.actor.address, c.id, c.metadata, self._life_ms(c, now), c.version)
                    for c in of_zone
                ]
                results = await self._scripts.touch_presence(keys_of(zone), touches)
                for connection, result in zip(of_zone, results, strict=True):
                    if result is not TouchResult.HERE:
                        strangers.append(connection)
                    if result is TouchResult.ELSEWHERE:
                        connection.untell()
        except BaseException:
            for connection in connections:
                connection.untell()
            raise
        return strangers

    def _life_ms(self, connection: Connection, now: float) -> int:
        return int((self._ttl_s - (now - connection.seen)) * 1000)
