"""What other servers commit while a zone's Redis, and with it the users' channels, is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson

from dispatcher.ledger.database import Database
from dispatcher.service.outbox import Outbox

Deliver = Callable[[Sequence[str], dict[str, Any]], None]

#: How far back it looks, by Postgres' clock: an event may become visible as long as a lease after the
#: time that it carries, and this server may have been kept from looking.
_BACK_S: Final = 20.0
#: Events that are read at once, the newest first.
_MAX_EVENTS: Final = 10_000


class EventTail:
    """Reads the newest events of other servers again and again, and hands each to its sockets once.

    What this server has committed itself is told by dispatcher/service/ledger_decider.py, at once.
    """

    def __init__(self, *, outbox: Outbox, database: Database, deliver: Deliver, node: str) -> None:
        self._outbox = outbox
        self._database = database
        self._deliver = deliver
        self._own = node + "."
        #: When a look last found an event that was told, by the monotonic clock, in s: it may come back
        #: where more was committed than a look reads, or other zones are looked at.
        self._told: dict[tuple[str, int], float] = {}

    async def tell(self, zones: Sequence[str]) -> int:
        """Tells the sockets of what is new in these zones. Returns how many events. Raises
        StoreUnavailable."""
        rows = await self._database.rows(
            "events_of_others",
            zones=zones, back_s=_BACK_S, own=self._own, max_rows=_MAX_EVENTS,
        )  # fmt: skip
        newest = [(row["trip_id"], row["version"]) for row in rows]
        new = [event for event in newest if event not in self._told]
        messages = await self._outbox.messages_of(new) if new else []
        for message in messages:
            self._deliver(message.to, orjson.loads(message.frame))
        now = time.monotonic()
        self._told = {event: at for event, at in self._told.items() if at > now - _BACK_S}
        self._told.update(dict.fromkeys(newest, now))
        return len(messages)
