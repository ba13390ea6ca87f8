"""What other servers commit while a zone's Redis, and with it the users' channels, is away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import orjson

from dispatcher.core.times import moment, now_ms
from dispatcher.ledger.database import Database
from dispatcher.service.outbox import Outbox

Deliver = Callable[[Sequence[str], dict[str, Any]], None]

#: An event may become visible this long after the time that it carries: clocks differ.
_OVERLAP_MS: Final = 10_000
#: Events of a zone that are read at once.
_MAX_EVENTS: Final = 1_000


class EventTail:
    """Reads the newest events of other servers again and again, and hands each to its sockets once.

    What this server has committed itself is told by dispatcher/service/ledger_decider.py, at once.
    """

    def __init__(self, *, outbox: Outbox, database: Database, deliver: Deliver, node: str) -> None:
        self._outbox = outbox
        self._database = database
        self._deliver = deliver
        self._own = node + "."
        self._told: dict[str, dict[tuple[str, int], int]] = {}

    async def tell(self, zone: str) -> int:
        """Tells the sockets of what is new. Returns how many events. Raises StoreUnavailable."""
        now = now_ms()
        known = self._told.setdefault(zone, {})
        since_ms = now - 2 * _OVERLAP_MS
        rows = await self._database.rows(
            "events_of_others_since",
            prefix=zone + "_", since=moment(since_ms), own=self._own, max_rows=_MAX_EVENTS,
        )  # fmt: skip
        new = [(row["trip_id"], row["version"]) for row in rows]
        new = [event for event in new if event not in known]
        messages = await self._outbox.messages_of(new) if new else []
        for message in messages:
            self._deliver(message.to, orjson.loads(message.frame))
        known.update(dict.fromkeys(new, now))
        for event in [event for event, at_ms in known.items() if at_ms < since_ms - _OVERLAP_MS]:
            del known[event]
        return len(messages)

    def forget(self, zone: str) -> None:
        """The users' channels are there again."""
        self._told.pop(zone, None)
