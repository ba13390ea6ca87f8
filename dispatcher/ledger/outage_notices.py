"""Notices of outages: which zones' Redis a server that lives cannot tell of its connections."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, Final

from dispatcher.core.errors import StoreUnavailable
from dispatcher.ledger.connections import connect
from dispatcher.ledger.database import QUERIES, UNAVAILABLE_ERRORS, Database

#: Postgres' table of locks is finite and shared with every row lock that waits: a server with more
#: zones than this in an outage takes one lock that stands for all zones.
_MAX_LOCKS: Final = 256
_EVERY_ZONE: Final = ""


class OutageNotices:
    """What other servers can see of this server's outages.

    A server that cannot reach Redis may reach Postgres. There it holds a shared advisory lock a zone,
    in a session that is open as long as there is an outage: the notice ends with its server.
    """

    def __init__(self, url: str, database: Database, *, timeout_s: float) -> None:
        self._url = url
        self._database = database
        self._timeout_s = timeout_s
        self._connection: Any = None
        self._held: set[str] = set()

    async def hold(self, zones: Collection[str]) -> None:
        """Gives notice of these zones, and of no others.

        Raises StoreUnavailable where Postgres is away, which is asked for no zones, too.
        """
        wanted = set(zones) if len(zones) <= _MAX_LOCKS else {_EVERY_ZONE}
        if not wanted:
            self.close()
            await self._database.row("can_write")
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._hold(wanted)
        except UNAVAILABLE_ERRORS as error:
            self._drop()
            raise StoreUnavailable("postgres") from error

    async def _hold(self, wanted: set[str]) -> None:
        if self._connection is None or self._connection.is_closed():
            self._held = set()
            self._connection = await connect(
                self._url, server_settings={"application_name": "dispatcher"}
            )
        await QUERIES.give_notice(self._connection, zones=sorted(wanted - self._held))
        await QUERIES.withdraw_notice(self._connection, zones=sorted(self._held - wanted))
        self._held = wanted

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()  # a goodbye would wait for a Postgres that is silent
        self._connection, self._held = None, set()

    async def is_given(self, zone: str) -> bool:
        """Whether any server, this one included, has given notice of the zone.

        Raises StoreUnavailable.
        """
        return bool(await self._database.row("outage_noticed", zone=zone))

    def close(self) -> None:
        """Withdraws all notices."""
        self._drop()
