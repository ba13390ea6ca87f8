"""The connections of one server process, by user."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from dispatcher.core.actors import Actor
from dispatcher.service.driver_directory import DirectoryEntry

#: The connection of an app that has no socket: it lives on from call to call.
HTTP: Final = "http"
#: So many are looked at in one turn of the event loop, some 1 ms: a server may have a hundred thousand.
_USERS_A_TURN: Final = 2_000


@dataclass(slots=True)
class Connection:
    """One connection of a user. Times are this process' monotonic clock, in s.

    `zone` is empty until it has been looked up. `version` is that of the driver's row that says so, -1
    where there is none.
    """

    id: str
    actor: Actor
    zone: str
    metadata: str
    seen: float = field(default_factory=time.monotonic)
    #: The sign of life that Redis was last told of, and when.
    told: float = 0.0
    told_at: float = 0.0
    version: int = -1

    def follow(self, entry: DirectoryEntry) -> str:
        """Goes where a driver's row says, unless it is older than the one that brought it where it is.

        Returns the zone that was left, or an empty text.
        """
        if entry.version <= self.version:
            return ""
        former, self.zone, self.version = self.zone, entry.zone, entry.version
        if former == self.zone:
            return ""
        self.untell()
        return former

    def untell(self) -> None:
        """Redis, or the zone that it is in by now, has to be told of it again."""
        self.told = self.told_at = 0.0


class Connections:
    """Every connection of this process; each lives for `ttl_s` after a sign of life."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._by_user: defaultdict[str, dict[str, Connection]] = defaultdict(dict)

    def __iter__(self) -> Iterator[Connection]:
        for of_user in list(self._by_user.values()):
            yield from list(of_user.values())

    def __len__(self) -> int:
        return sum(map(len, self._by_user.values()))

    def add(self, connection: Connection) -> None:
        """A user has connected."""
        self._by_user[connection.actor.address][connection.id] = connection

    def remove(self, connection: Connection) -> None:
        """A connection is over."""
        address = connection.actor.address
        of_user = self._by_user.get(address, {})
        of_user.pop(connection.id, None)
        if not of_user:
            self._by_user.pop(address, None)

    def find(self, address: str, connection_id: str) -> Connection | None:
        """A user's connection of this id."""
        of_user = self._by_user.get(address)
        return of_user.get(connection_id) if of_user else None

    def of_user(self, address: str) -> list[Connection]:
        """All connections of a user (role:id)."""
        return list(self._by_user.get(address, {}).values())

    def is_told(self, connection: Connection, now: float) -> bool:
        """Whether Redis was told of the connection, and remembers it until a flush prolongs it: for at
        least half of its TTL from now on."""
        return connection.told > 0 and now < connection.told + self._ttl_s / 2

    async def due(self, unreached: Mapping[str, float]) -> list[Connection]:
        """The connections that Redis is to be told of.

        Each is told of again after a quarter of its life, if it gave a sign of it: often enough, and no
        more. `unreached` are zones that may have lost what they were told before a time of the monotonic
        clock, in s: all their connections are due. Apps without a socket that fell silent are forgotten.
        """
        now = time.monotonic()
        told_before, seen_before = now - self._ttl_s / 4, now - self._ttl_s
        due: list[Connection] = []
        users = list(self._by_user.values())
        for first in range(0, len(users), _USERS_A_TURN):
            silent: list[Connection] = []
            for of_user in users[first : first + _USERS_A_TURN]:
                for connection in of_user.values():
                    if unreached and connection.told_at < unreached.get(connection.zone, 0.0):
                        due.append(connection)
                    elif connection.seen > connection.told:
                        if connection.told_at <= told_before:
                            due.append(connection)
                    elif connection.seen < seen_before and connection.id == HTTP:
                        silent.append(connection)
            for connection in silent:
                self.remove(connection)
            await asyncio.sleep(0)
        return [each for each in due if self.find(each.actor.address, each.id) is each]
