"""Apps without a socket are told of as soon as they are seen, not at the next flush."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context
from typing import Final

from dispatcher.service.connections import Connection

#: While an engine is away, new connections are told together, this far apart.
_REST_AFTER_FAILURE_S: Final = 1.0


class NewConnections:
    """New connections of one moment are told together; `tell` says whether everybody took them.

    What fails is left to the flush.
    """

    def __init__(self, tell: Callable[[Iterable[Connection]], Awaitable[bool]]) -> None:
        self._tell = tell
        #: By user.
        self._new: dict[str, Connection] = {}
        self._telling: asyncio.Task[None] | None = None

    def add(self, connection: Connection) -> None:
        """It is to be told of."""
        self._new[connection.actor.address] = connection
        if self._telling is None or self._telling.done():
            # In no call's context: what is logged there is about others, too.
            self._telling = asyncio.get_running_loop().create_task(self._run(), context=Context())

    async def close(self) -> None:
        """Leaves what is not told."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)

    async def _run(self) -> None:
        await asyncio.sleep(0)
        while self._new:
            new, self._new = self._new, {}
            if not await self._tell(new.values()):
                # Else each call of an outage would bring one more question, and one more log line.
                await asyncio.sleep(_REST_AFTER_FAILURE_S)
