"""What operators see: structured logs on stderr, and metrics for Prometheus."""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dispatcher.config import Settings

#: The three lines that operators watch for, by the code of the refusal.
WATCHED: Final = {
    "rate_limit_exceeded": "Rate limit exceeded",
    "version_conflict": "Optimistic lock conflict",
    "trip_already_assigned": "Trip already assigned",
}

_log = structlog.get_logger("dispatcher.refusals")


def refusal(code: str, **fields: Any) -> None:
    """Logs one of the watched lines, if `code` has one."""
    event = WATCHED.get(code)
    if event is not None:
        _log.info(event, response_code=code, **fields)


def configure_logging(settings: Settings) -> None:
    """Sends every log line to stderr, one JSON object each (or readable lines for a console)."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    as_json = settings.log_format == "json"
    shared: list[Any] = [
        structlog.stdlib.add_log_level if not as_json else structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info if as_json else structlog.processors.StackInfoRenderer(),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer(serializer=_to_json)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


def _to_json(event: dict[str, Any], **_: Any) -> str:
    return orjson.dumps(event, default=str).decode()


class Metrics:
    """The metrics of one server process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "dispatcher_requests", "Answers by route and status", ("route", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "dispatcher_request_seconds", "Time to answer a request", ("route",),
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self.registry,
        )  # fmt: skip
        self._cached: dict[tuple[str, int], tuple[Any, Any]] = {}
        self.batches = Gauge(
            "dispatcher_ledger_batches", "Commits sent to Postgres", registry=self.registry
        )
        self.changes = Gauge(
            "dispatcher_ledger_changes", "Changes in those commits", registry=self.registry
        )
        self.sockets = Gauge("dispatcher_sockets", "Open WebSockets", registry=self.registry)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Counts an answer. Labels are looked up once: it is in the way of every request."""
        found = self._cached.get((route, status))
        if found is None:
            found = self.requests.labels(route, str(status)), self.seconds.labels(route)
            self._cached[route, status] = found
        found[0].inc()
        found[1].observe(seconds)
