"""The form of log lines: one JSON object a line, or colours for people."""

from __future__ import annotations

import logging
import sys
from typing import Any, BinaryIO, Final, Protocol, cast

import orjson
import structlog
from structlog.typing import EventDict, Processor

from dispatcher.observe.call_ids import add_call_ids
from dispatcher.observe.log_stream import LogClock, LogStream
from dispatcher.observe.straight_lines import STRAIGHT_LINES

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class LogSettings(Protocol):
    """The settings that concern log lines."""

    @property
    def log_level(self) -> str: ...

    @property
    def log_format(self) -> str: ...


def configure(
    settings: LogSettings, stream: BinaryIO | None = None, *, worker: int | None = None
) -> None:
    """Set the form of all log lines of this process, those of libraries included.

    `stream` is stderr by default. `worker` is the number of a worker, which each line then carries.
    """
    out = stream or sys.stderr.buffer
    level = _LEVELS[settings.log_level]
    log_stream = LogStream(out)
    for_people = out.isatty() if settings.log_format == "auto" else settings.log_format == "console"
    if for_people:
        render: list[Processor] = [structlog.dev.ConsoleRenderer(colors=out.isatty()), _encode]
        STRAIGHT_LINES.write_through_structlog()
    else:
        render = [structlog.processors.format_exc_info, _render_json]
        STRAIGHT_LINES.write_json_to(log_stream, level, worker)
    name: list[Processor] = [add_call_ids, structlog.stdlib.add_log_level, _add_logger_name]
    if worker is not None:
        name.append(_make_numberer(worker))
    structlog.configure(
        processors=[*name, _make_timestamper(), *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # A BytesLogger calls write and flush, and nothing else of a file.
        logger_factory=structlog.BytesLoggerFactory(cast(BinaryIO, log_stream)),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_StructlogHandler()]
    root.setLevel(max(level, logging.INFO))  # debug lines of libraries would bury all others


class _StructlogHandler(logging.Handler):
    """Hands lines of the standard library's loggers to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            structlog.get_logger(record.name).log(
                record.levelno, record.getMessage(), exc_info=record.exc_info
            )
        except Exception:
            self.handleError(record)


def _add_logger_name(logger: Any, _: str, event: EventDict) -> EventDict:
    name = getattr(logger, "name", None)
    if name:
        event["logger"] = name
    return event


def _make_numberer(worker: int) -> Processor:
    def add_worker(_: Any, __: str, event: EventDict) -> EventDict:
        event["worker"] = worker
        return event

    return add_worker


def _make_timestamper() -> Processor:
    clock = LogClock()

    def add_timestamp(_: Any, __: str, event: EventDict) -> EventDict:
        event["timestamp"] = clock.timestamp()
        return event

    return add_timestamp


def _render_json(_: Any, __: str, event: EventDict) -> bytes:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS)


def _encode(_: Any, __: str, text: Any) -> bytes:
    return str(text).encode(errors="backslashreplace")
