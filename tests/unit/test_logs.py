"""Log lines: the form of each, whichever way it takes, and refusals that are counted."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from dispatcher.config import Settings
from dispatcher.observe import logs
from dispatcher.observe.log_stream import LogStream
from dispatcher.observe.metrics import Metrics
from dispatcher.observe.refusal_log import REFUSAL_LOG, RefusalLog, log_refusal

Configure = Callable[..., io.BytesIO]


@pytest.fixture
def configure() -> Iterator[Configure]:
    """Configures log lines as `serve` does, into a buffer; what was before is restored."""
    root = logging.getLogger()
    before, handlers, level = structlog.get_config(), root.handlers[:], root.level

    def configured(worker: int | None = None, **settings: str) -> io.BytesIO:
        out = io.BytesIO()
        logs.configure(Settings(**settings), out, worker=worker)  # type: ignore[arg-type]
        return out

    yield configured
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)
    REFUSAL_LOG.write_through_structlog()


async def _lines(out: io.BytesIO) -> list[dict[str, Any]]:
    await asyncio.sleep(0.05)  # two and a half of the stream's intervals
    return [json.loads(line) for line in out.getvalue().splitlines()]


async def test_a_line_is_one_json_object(configure: Configure) -> None:
    out = configure()
    structlog.get_logger("ours").info("Migration applied", migration="0001_x", path=io)
    logging.getLogger("library").warning("%d connections", 3)
    ours, library = await _lines(out)
    assert list(ours) == ["migration", "path", "event", "level", "logger", "timestamp"]
    assert ours["event"] == "Migration applied"
    assert (ours["level"], ours["logger"]) == ("info", "ours")
    assert (library["event"], library["logger"]) == ("3 connections", "library")


async def test_every_line_of_a_worker_names_it(configure: Configure) -> None:
    out = configure(worker=3)
    structlog.get_logger("ours").info("Migration applied")
    logging.getLogger("library").warning("%d connections", 3)
    log_refusal("rate_limit_exceeded", user="d1")
    REFUSAL_LOG.write_through_structlog()
    log_refusal("rate_limit_exceeded", user="d1")
    assert [line["worker"] for line in await _lines(out)] == [3, 3, 3, 3]


async def test_a_traceback_is_part_of_its_line(configure: Configure) -> None:
    out = configure()
    try:
        raise ValueError("reason")
    except ValueError:
        structlog.get_logger("ours").exception("It failed")
    (line,) = await _lines(out)
    assert line["exception"].endswith("ValueError: reason")


async def test_lines_for_people(configure: Configure) -> None:
    out = configure(log_format="console")
    structlog.get_logger("ours").info("Migration applied", migration="0001_x")
    log_refusal("version_conflict", user="d1")
    await asyncio.sleep(0.05)
    first, second = out.getvalue().decode().splitlines()
    assert "Migration applied" in first and "migration=0001_x" in first
    assert "Optimistic lock conflict" in second and "user=d1" in second


async def test_lines_below_the_level_are_left_out(configure: Configure) -> None:
    out = configure(log_level="warning")
    structlog.get_logger("ours").info("Migration applied")
    log_refusal("version_conflict", user="d1")
    log_refusal("rate_limit_exceeded", user="d1")
    assert [line["event"] for line in await _lines(out)] == ["Rate limit exceeded"]


async def test_a_refusal_looks_the_same_on_both_ways(configure: Configure) -> None:
    out = configure()
    log_refusal("trip_already_assigned", user="d1", trip_id=None)
    REFUSAL_LOG.write_through_structlog()
    log_refusal("trip_already_assigned", user="d1", trip_id=None)
    straight, through_structlog = await _lines(out)
    assert len(straight.pop("timestamp")) == len(through_structlog.pop("timestamp"))
    assert straight == through_structlog
    assert list(straight) == list(through_structlog)


def test_refusals_are_counted_by_code() -> None:
    refusals = RefusalLog()
    for code in ("trip_not_found", "trip_not_found", "driver_busy"):
        refusals.record(code, {})
    assert refusals.counts == {"trip_not_found": 2, "driver_busy": 1}


async def test_the_metrics_tell_what_was_counted() -> None:
    code = "a_code_of_this_test"
    log_refusal(code)
    metrics = Metrics()
    metrics.gauge("dispatcher_sockets", "Open WebSockets.", lambda: 3)
    for took_s in (0.0005, 0.001, 0.3, 9):
        metrics.count_request("GET", "/x", 200, took_s)
    lines = (await metrics.render()).decode().splitlines()
    assert f'dispatcher_refusals_total{{code="{code}"}} 1.0' in lines
    assert "dispatcher_sockets 3.0" in lines
    labels = 'method="GET",route="/x",status="200"'
    for end, number in {"0.001": 2.0, "0.25": 2.0, "0.5": 3.0, "5.0": 3.0, "+Inf": 4.0}.items():
        assert f'dispatcher_http_request_seconds_bucket{{le="{end}",{labels}}} {number}' in lines
    assert f"dispatcher_http_request_seconds_sum{{{labels}}} 9.3015" in lines


async def test_a_stream_is_written_once_for_many_lines() -> None:
    class Counted(io.BytesIO):
        writes = 0

        def write(self, data: Any) -> int:
            self.writes += 1
            return super().write(data)

    out = Counted()
    stream = LogStream(out)
    for _ in range(100):
        stream.write(b"line\n")
        stream.flush()
    assert out.writes == 0
    await asyncio.sleep(0.05)
    assert out.writes == 1
    assert out.getvalue() == b"line\n" * 100
