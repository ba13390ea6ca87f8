"""What operators see: structured log lines on stderr, and metrics for Prometheus."""

from __future__ import annotations

import logging
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, Protocol

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
_log = structlog.get_logger("dispatcher.refusals")


def refusal(code: str, **fields: Any) -> None:
    """Counts a refusal, and logs it where it is one of the three that operators watch."""
    _refusals[code] += 1
    line = _LINES.get(code)
    if line is not None:
        _log.log(*line, **fields)


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
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor]
    if settings.log_format == "json":
        last = [structlog.processors.format_exc_info, _as_json]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=out.isatty()), _as_bytes]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_ToStructlog()]
    root.setLevel(max(level, logging.INFO))  # libraries' debug lines drown everything else


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
