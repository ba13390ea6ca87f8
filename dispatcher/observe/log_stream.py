"""Where all log lines are written, and the time that each of them carries."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import time
from typing import BinaryIO, Final


class LogStream:
    """A stream for log lines that writes at most fifty times a second, and not once a line.

    A crowd of refused drivers causes one line each. A process that is killed loses the lines of
    its last 20 ms.
    """

    _WRITE_INTERVAL_S: Final = 0.02

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._lines: list[bytes] = []
        self._scheduled_on: asyncio.AbstractEventLoop | None = None
        #: Takes one line or a part of one, as bytes.
        self.write = self._lines.append
        atexit.register(self._write_out)

    def flush(self) -> None:
        """Have what was written reach the stream soon; at once outside of an event loop."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # another thread, or the loop has not started or has ended
            self._write_out()
            return
        if self._scheduled_on is not loop:
            self._scheduled_on = loop
            loop.call_later(self._WRITE_INTERVAL_S, self._write_out)

    def _write_out(self) -> None:
        self._scheduled_on = None
        lines = self._lines[:]
        del self._lines[: len(lines)]  # another thread may have added lines since
        with contextlib.suppress(OSError):  # the reader of a pipe may be gone
            self._out.write(b"".join(lines))
            self._out.flush()


class LogClock:
    """The time of day as log lines show it; formats each second once, since lines come in crowds."""

    def __init__(self) -> None:
        self._second = 0
        self._formatted_second = ""

    def timestamp(self) -> str:
        """The time in UTC, in ISO 8601 with microseconds."""
        second, ns = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._formatted_second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._formatted_second}.{ns // 1000:06d}Z"
