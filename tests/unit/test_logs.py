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
from dispatcher.core.actors import Actor, Role
from dispatcher.core.callers import Caller
from dispatcher.core.zones import Zone
from dispatcher.live.claim_results import ClaimCode, Refused
from dispatcher.observe import logs
from dispatcher.observe.call_ids import REQUEST_ID, TRIP_ID
from dispatcher.observe.crowd_lines import CROWD_LINES, CrowdLines
from dispatcher.observe.log_stream import LogStream
from dispatcher.observe.refusal_log import log_refusal
from dispatcher.observe.series import REFUSALS
from dispatcher.observe.straight_lines import STRAIGHT_LINES
from dispatcher.service.claim_refusals import answer_refused
from dispatcher.service.commands.accept import AcceptTrip
from dispatcher.service.race_log import RaceLog

Configure = Callable[..., io.BytesIO]


@pytest.fixture
def configure() -> Iterator[Configure]:
    """Configures log lines as `serve` does, into a buffer; what was before is restored."""
    root = logging.getLogger()
    before, handlers, level = structlog.get_config(), root.handlers[:], root.level
    CROWD_LINES.write_out()  # those of other tests, which would come within a second

    def configured(worker: int | None = None, **settings: str) -> io.BytesIO:
        out = io.BytesIO()
        logs.configure(Settings(**settings), out, worker=worker)  # type: ignore[arg-type]
        return out

    yield configured
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)
    STRAIGHT_LINES.write_through_structlog()
    for variable in (REQUEST_ID, TRIP_ID):
        variable.set("")


async def _lines(out: io.BytesIO) -> list[dict[str, Any]]:
    CROWD_LINES.write_out()
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
    CROWD_LINES.write_out()
    STRAIGHT_LINES.write_through_structlog()
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
    CROWD_LINES.write_out()
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


async def test_a_version_is_a_number(configure: Configure) -> None:
    out = configure()
    caller, zone = Caller(Actor("d1", Role.DRIVER)), Zone("default")
    for version in (0, 3, None):
        refused = Refused(ClaimCode.VERSION_CONFLICT, None, version)
        trip_id = f"default_{version}"
        answer_refused(
            AcceptTrip(caller, zone, trip_id, None, caller.actor.user_id), trip_id, refused, RaceLog()
        )
    assert [line.get("version") for line in await _lines(out)] == [0, 3, None]


async def test_a_refusal_looks_the_same_on_both_ways(configure: Configure) -> None:
    out = configure()
    log_refusal("trip_already_assigned", user="d1", trip_id=None)
    CROWD_LINES.write_out()
    STRAIGHT_LINES.write_through_structlog()
    log_refusal("trip_already_assigned", user="d1", trip_id=None)
    straight, through_structlog = await _lines(out)
    assert len(straight.pop("timestamp")) == len(through_structlog.pop("timestamp"))
    assert straight == through_structlog
    assert list(straight) == list(through_structlog)


def test_refusals_are_counted_by_code() -> None:
    before = REFUSALS.numbers.copy()
    for code in ("trip_not_found", "trip_not_found", "driver_busy"):
        log_refusal(code)
    assert REFUSALS.numbers - before == {("trip_not_found",): 2, ("driver_busy",): 1}


async def test_a_crowd_that_lost_a_trip_is_one_line_and_each_is_counted(configure: Configure) -> None:
    out = configure()
    before = REFUSALS.numbers.copy()
    for trip_id, losers in (("default_1", 200), ("default_2", 1)):
        for number in range(losers):
            REQUEST_ID.set(f"call-{number}")
            log_refusal("trip_already_assigned", trip_id=trip_id, user=f"d{number}")
    first, second = await _lines(out)
    assert (first["trip_id"], first["count"], first["user"], first["request_id"]) == (
        "default_1", 200, "d0", "call-0",
    )  # fmt: skip
    assert (second["trip_id"], second["count"]) == ("default_2", 1)
    assert REFUSALS.numbers - before == {("trip_already_assigned",): 201}


async def test_lines_of_a_crowd_come_by_themselves_and_carry_no_ids_of_others(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.observe.crowd_lines.INTERVAL_S", 0.01)
    out, crowd = configure(), CrowdLines()
    REQUEST_ID.set("a-call")
    TRIP_ID.set("default_1")
    crowd.add("a", logging.INFO, "ours", "A", {})
    REQUEST_ID.set("")
    TRIP_ID.set("")
    crowd.add("b", logging.INFO, "ours", "B", {})
    REQUEST_ID.set("a-later-call")
    TRIP_ID.set("default_2")
    while out.getvalue().count(b"\n") < 2:
        await asyncio.sleep(0.005)
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["request_id"], first["trip_id"]) == ("a-call", "default_1")
    assert not {"request_id", "trip_id"} & set(second)


async def test_lines_that_wait_are_bounded(configure: Configure) -> None:
    out, crowd = configure(), CrowdLines()
    for number in range(1_000):
        crowd.add(number, logging.INFO, "ours", "A", {})
    assert len(await _lines(out)) == 1_000


async def test_every_line_of_a_call_names_it_and_its_trip(configure: Configure) -> None:
    out = configure()
    REQUEST_ID.set("r-1")
    TRIP_ID.set("default_1")
    structlog.get_logger("ours").info("A")
    structlog.get_logger("ours").info("B", request_id="r-2", trip_id="default_2")
    logging.getLogger("library").warning("C")
    STRAIGHT_LINES.write(logging.INFO, "ours", "D", {})
    told = [(line["request_id"], line["trip_id"]) for line in await _lines(out)]
    ours = ("r-1", "default_1")
    assert told == [ours, ("r-2", "default_2"), ours, ours]


async def test_lines_are_for_people_on_a_terminal(configure: Configure) -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    logs.configure(Settings(), out)
    structlog.get_logger("ours").info("Migration applied")
    await asyncio.sleep(0.05)
    assert b"{" not in out.getvalue()
    assert b"\x1b[" in out.getvalue()


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


async def test_a_line_for_many_has_the_ids_of_the_first_and_of_nobody_else(
    configure: Configure,
) -> None:
    out = configure()
    lines = CrowdLines()
    REQUEST_ID.set("r-1")
    TRIP_ID.set("default_1")
    lines.add("a", logging.INFO, "ours", "A", {"user": "u1", "trip_id": ""})
    REQUEST_ID.set("")
    TRIP_ID.set("")
    lines.add("b", logging.INFO, "ours", "B", {"user": "u2", "version": ""})
    REQUEST_ID.set("r-2")
    TRIP_ID.set("default_2")
    lines.add("a", logging.INFO, "ours", "A", {"user": "u3"})
    lines.write_out()  # by whoever fills the list
    first, second = await _lines(out)
    assert (first["request_id"], first["trip_id"], first["user"]) == ("r-1", "default_1", "u1")
    assert not {"request_id", "trip_id", "version"} & set(second)


async def test_a_line_that_names_no_trip_has_that_of_its_call(configure: Configure) -> None:
    out = configure()
    TRIP_ID.set("default_1")
    structlog.get_logger("ours").info("A", trip_id="")
    (line,) = await _lines(out)
    assert line["trip_id"] == "default_1"
