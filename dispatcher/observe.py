"""What operators see: structured log lines on stderr, and metrics for Prometheus."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, Protocol, cast

import orjson
import structlog
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}

#: The lines that operators of such systems search for, by the refusal's code.
_LINES: Final = {
    "rate_limit_exceeded": (logging.WARNING, "Rate limit exceeded"),
    "version_conflict": (logging.INFO, "Optimistic lock conflict"),
    "trip_already_assigned": (logging.INFO, "Trip already assigned"),
}
_refusals: Counter[str] = Counter()


def refusal(code: str, **fields: Any) -> None:
    """Counts a refusal, and logs it where it is one of the three that operators watch."""
    _refusals[code] += 1
    line = _LINES.get(code)
    if line is not None:
        _crowd.log(*line, fields)


class LogSettings(Protocol):
    """The settings that concern log lines."""

    @property
    def log_level(self) -> str: ...

    @property
    def log_format(self) -> str: ...


def configure(settings: LogSettings, stream: BinaryIO | None = None) -> None:
    """Sets the form of all log lines: one JSON object a line, or colours for people.

    Lines of the standard library's loggers take the same road. `stream` is stderr by default.
    """
    out = stream or sys.stderr.buffer
    level = _LEVELS[settings.log_level]
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        _add_name,
        _Stamp(),
    ]
    last: list[structlog.typing.Processor]
    if settings.log_format == "json":
        last = [structlog.processors.format_exc_info, _as_json]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=out.isatty()), _as_bytes]
    lines = _Lines(out)
    _crowd.lines = lines if settings.log_format == "json" else None
    _crowd.level = level
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(cast(BinaryIO, lines)),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_ToStructlog()]
    root.setLevel(max(level, logging.INFO))  # libraries' debug lines drown everything else


class _Lines:
    """The stream, written to some fifty times a second at most and not once a line.

    A crowd of refused drivers makes a line each. A process that is killed loses its last lines.
    """

    _EVERY_S: Final = 0.02

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._lines: list[bytes] = []
        self._scheduled_on: asyncio.AbstractEventLoop | None = None
        self.write = self._lines.append
        atexit.register(self._write_out)

    def flush(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # another thread, or no loop yet or any more
            self._write_out()
            return
        if self._scheduled_on is not loop:
            self._scheduled_on = loop
            loop.call_later(self._EVERY_S, self._write_out)

    def _write_out(self) -> None:
        self._scheduled_on = None
        lines = self._lines[:]
        del self._lines[: len(lines)]
        with contextlib.suppress(OSError):  # whoever read them is gone
            self._out.write(b"".join(lines))
            self._out.flush()


class _Stamp:
    """structlog's TimeStamper in UTC, with the seconds' text kept: lines come many to a second."""

    def __init__(self) -> None:
        self._second, self._text = 0, ""

    def now(self) -> str:
        second, ns = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._text}.{ns // 1000:06d}Z"

    def __call__(self, _: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["timestamp"] = self.now()
        return event


class _Crowd:
    """The lines of refusals. A crowd makes one for each loser, so in JSON they take a shorter road."""

    _NAME: Final = "dispatcher.refusals"

    def __init__(self) -> None:
        self.lines: _Lines | None = None
        self.level = logging.INFO
        self._stamp = _Stamp()

    def log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self.lines is None:
            structlog.get_logger(self._NAME).log(level, event, **fields)
        elif level >= self.level:
            name = "warning" if level == logging.WARNING else "info"
            head = {"event": event, "level": name, "logger": self._NAME, "timestamp": self._stamp.now()}
            self.lines.write(orjson.dumps(fields | head) + b"\n")
            self.lines.flush()


_crowd: Final = _Crowd()


class _ToStructlog(logging.Handler):
    """Hands lines of the standard library's loggers to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            structlog.get_logger(record.name).log(
                record.levelno, record.getMessage(), exc_info=record.exc_info
            )
        except Exception:
            self.handleError(record)


def _add_name(logger: Any, _: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    name = getattr(logger, "name", None)
    if name:
        event["logger"] = name
    return event


def _as_json(_: Any, __: str, event: structlog.typing.EventDict) -> bytes:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS)


def _as_bytes(_: Any, __: str, text: Any) -> bytes:
    return str(text).encode(errors="backslashreplace")


#: Upper ends in s. An accept takes 1 to 20 ms; what takes longer than 1 s is logged.
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class _Requests(Collector):
    """Durations by method, route and status. Counting is a tenth of prometheus_client's own cost."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, int], list[float]] = {}

    def count(self, method: str, route: str, status: int, took_s: float) -> None:
        series = self._series.get((method, route, status))
        if series is None:
            series = self._series[(method, route, status)] = [0.0] * (len(_BUCKETS) + 2)
        series[bisect_left(_BUCKETS, took_s)] += 1
        series[-1] += took_s

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "dispatcher_http_request_seconds",
            "Durations of HTTP requests.",
            labels=("method", "route", "status"),
        )
        for (method, route, status), series in list(self._series.items()):
            below, buckets = 0.0, []
            for end, number in zip((*map(str, _BUCKETS), "+Inf"), series, strict=False):
                below += number
                buckets.append((end, below))
            family.add_metric((method, route, str(status)), buckets, series[-1])
        yield family


class _Refusals(Collector):
    """Refused changes and limited calls by code."""

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "dispatcher_refusals", "Refused changes and limited calls.", labels=("code",)
        )
        for code, number in list(_refusals.items()):
            family.add_metric((code,), number)
        yield family


class Metrics:
    """The metrics of one server process; with several workers each tells its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        requests = _Requests()
        self.registry.register(requests)
        self.registry.register(_Refusals())
        ProcessCollector(registry=self.registry)
        self.count_request: Final = requests.count

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """A value that is read when somebody asks, like the number of sockets."""
        Gauge(name, documentation, registry=self.registry).set_function(read)

    def render(self) -> bytes:
        """The text exposition format, version 0.0.4."""
        return generate_latest(self.registry)
