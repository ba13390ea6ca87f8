"""Counts every refusal, and logs those that operators watch."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, Final

import orjson
import structlog

from dispatcher.observe.log_stream import LogClock, LogStream

_LOGGER_NAME: Final = "dispatcher.refusals"

#: Level and event of the lines that operators of such systems search for, by the refusal's code.
_LOGGED: Final = {
    "rate_limit_exceeded": (logging.WARNING, "Rate limit exceeded"),
    "version_conflict": (logging.INFO, "Optimistic lock conflict"),
    "trip_already_assigned": (logging.INFO, "Trip already assigned"),
}
_LEVEL_NAMES: Final = {logging.INFO: "info", logging.WARNING: "warning"}


class RefusalLog:
    """The refusals of this process.

    Of a crowd of drivers all but one are refused, and each refusal is a line. So JSON lines go
    straight to the stream, past structlog's processors; they look the same either way.
    """

    def __init__(self) -> None:
        #: Refusals since the start of the process, by code.
        self.counts: Counter[str] = Counter()
        self._stream: LogStream | None = None
        self._level = logging.INFO
        self._process_fields: dict[str, int] = {}
        self._clock = LogClock()

    def write_json_to(self, stream: LogStream, level: int, worker: int | None = None) -> None:
        """From now on write JSON lines of `level` and above straight to `stream`.

        `worker` is the number of a worker, which each line then carries.
        """
        self._stream, self._level = stream, level
        self._process_fields = {} if worker is None else {"worker": worker}

    def write_through_structlog(self) -> None:
        """From now on hand lines to structlog, as it is the case before the first configuration."""
        self._stream = None

    def record(self, code: str, fields: dict[str, Any]) -> None:
        """Count a refusal; log it with `fields`, whose values JSON knows, if operators watch it."""
        self.counts[code] += 1
        logged = _LOGGED.get(code)
        if logged is None:
            return
        level, event = logged
        stream = self._stream
        if stream is None:
            structlog.get_logger(_LOGGER_NAME).log(level, event, **fields)
        elif level >= self._level:
            line = fields | {
                "event": event,
                "level": _LEVEL_NAMES[level],
                "logger": _LOGGER_NAME,
                **self._process_fields,
                "timestamp": self._clock.timestamp(),
            }
            stream.write(orjson.dumps(line) + b"\n")
            stream.flush()


#: One for each process, like the loggers of the standard library.
REFUSAL_LOG: Final = RefusalLog()


def log_refusal(code: str, **fields: Any) -> None:
    """Record a refusal in this process's log: see RefusalLog.record."""
    REFUSAL_LOG.record(code, fields)
