"""One line for many: what a crowd brings about within a second is told once, with its number."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Hashable
from contextvars import Context
from typing import Any, Final

from dispatcher.observe.call_ids import add_call_ids
from dispatcher.observe.straight_lines import STRAIGHT_LINES

#: How long a line waits for others of its kind.
INTERVAL_S: Final = 1.0
#: Lines that wait at most; with more of them, all are written at once.
_MAX_WAITING: Final = 1_000


class _Crowd:
    """A line that waits, with the fields of the first who brought it about."""

    __slots__ = ("event", "fields", "level", "logger", "number")

    def __init__(self, level: int, logger: str, event: str, fields: dict[str, Any]) -> None:
        self.level, self.logger, self.event, self.fields = level, logger, event, fields
        self.number = 1


class CrowdLines:
    """Gathers lines of the same key for a second. A process that is killed loses what waits."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, _Crowd] = {}
        self._scheduled_on: asyncio.AbstractEventLoop | None = None
        atexit.register(self.write_out)

    def add(self, key: Hashable, level: int, logger: str, event: str, fields: dict[str, Any]) -> None:
        """Have a line written within a second; `count` says how many of its key there were.

        Its fields, and the ids of its call, are those of the first; empty ones are left out.
        """
        crowd = self._waiting.get(key)
        if crowd is not None:
            crowd.number += 1
            return
        told = {name: value for name, value in fields.items() if value not in (None, "")}
        add_call_ids(None, "", told)
        self._waiting[key] = _Crowd(level, logger, event, told)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # nobody would come back
            self.write_out()
            return
        if len(self._waiting) >= _MAX_WAITING:
            self.write_out()
        elif self._scheduled_on is not loop:
            self._scheduled_on = loop
            loop.call_later(INTERVAL_S, self._end_interval)

    def _end_interval(self) -> None:
        self._scheduled_on = None
        self.write_out()

    def write_out(self) -> None:
        """Write all lines that wait."""
        # Not in the context of this call: the lines are of others, too.
        Context().run(self._write_out)

    def _write_out(self) -> None:
        crowds, self._waiting = self._waiting, {}
        for crowd in crowds.values():
            fields = crowd.fields | {"count": crowd.number}
            STRAIGHT_LINES.write(crowd.level, crowd.logger, crowd.event, fields)


#: One for each process, like the loggers of the standard library.
CROWD_LINES: Final = CrowdLines()
