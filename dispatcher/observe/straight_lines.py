"""Lines that come so often that they are written past structlog's processors; they look the same."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any, Final

import orjson
import structlog

from dispatcher.observe.call_ids import add_call_ids
from dispatcher.observe.log_stream import LogClock, LogStream

_LEVEL_NAMES: Final = {logging.INFO: "info", logging.WARNING: "warning"}


class StraightLines:
    """JSON lines go straight to the stream, at a tenth of the cost; lines for people do not."""

    def __init__(self) -> None:
        self._stream: LogStream | None = None
        self._level = logging.INFO
        self._worker: int | None = None
        self._clock = LogClock()

    def write_json_to(self, stream: LogStream, level: int, worker: int | None = None) -> None:
        """From now on write JSON lines of `level` and above straight to `stream`.

        `worker` is the number of a worker, which each line then carries.
        """
        self._stream, self._level, self._worker = stream, level, worker

    def write_through_structlog(self) -> None:
        """From now on hand lines to structlog, as it is the case before the first configuration."""
        self._stream = None

    def write(self, level: int, logger: str, event: str, fields: MutableMapping[str, Any]) -> None:
        """Write a line of INFO or WARNING with `fields`, whose values JSON knows."""
        stream = self._stream
        if stream is None:
            structlog.get_logger(logger).log(level, event, **fields)
        elif level >= self._level:
            fields["event"] = event
            line = add_call_ids(None, "", fields)
            line["level"] = _LEVEL_NAMES[level]
            line["logger"] = logger
            if self._worker is not None:
                line["worker"] = self._worker
            line["timestamp"] = self._clock.timestamp()
            stream.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            stream.flush()


#: One for each process, like the loggers of the standard library.
STRAIGHT_LINES: Final = StraightLines()
