"""Every line of a call or frame names it, over HTTP and over WebSockets."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog

from dispatcher.core.errors import StoreUnavailable
from dispatcher.core.limits import LimitState, Rate
from dispatcher.observe.call_ids import REQUEST_ID, TRIP_ID, add_call_ids
from dispatcher.observe.crowd_lines import CROWD_LINES
from dispatcher.service.answers import Answer, rate_limited_answer
from dispatcher.service.rate_limits import log_limited
from dispatcher.web.request_ids import frame_request_id
from tests.unit.http_harness import (
    ACTION,
    ADMIN,
    CUSTOMER,
    DRIVER,
    GOOD,
    PLACE,
    TRIP,
    Client,
)
from tests.unit.websocket_harness import App, frame, open_app


@pytest.fixture
async def app() -> AsyncIterator[App]:
    async with open_app() as opened:
        yield opened


@pytest.fixture
def lines() -> Any:
    """Log lines with the ids that they would carry."""
    before = structlog.get_config()
    CROWD_LINES.write_out()  # those of other tests
    caught = structlog.testing.LogCapture()
    structlog.configure(processors=[add_call_ids, caught], cache_logger_on_first_use=False)
    yield caught.entries
    structlog.configure(**before)


class Talkative:
    """Answers, and logs a line for each call."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def execute(self, _: Any) -> Answer:
        TRIP_ID.set(TRIP)
        structlog.get_logger("a test").info("working")
        return Answer(200, b'{"response_code":"trip_accepted"}')


async def test_lines_of_a_call(
    client: Client, lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.notes, "execute", Talkative(client.notes).execute)
    _, headers, _ = await client.good(ACTION, headers={"X-Request-Id": "mine-1"})
    assert headers["X-Request-Id"] == "mine-1"
    _, headers, _ = await client.good(ACTION, headers={"X-Request-Id": "no good"})
    made = headers["X-Request-Id"]
    assert re.fullmatch("[0-9a-f]+-[0-9a-f]+", made)
    assert [(line["request_id"], line["trip_id"]) for line in lines] == [("mine-1", TRIP), (made, TRIP)]
    client.notes.is_ready = False
    await client.send("GET", "/readyz", headers={"X-Request-Id": "mine-2"})
    CROWD_LINES.write_out()
    assert lines[-1]["request_id"] == "mine-2"
    assert "trip_id" not in lines[-1]  # that of the call before on the same connection


async def test_calls_of_an_outage_are_one_line_a_second(client: Client, lines: list[Any]) -> None:
    client.notes.answer = StoreUnavailable("away")
    for number in range(50):
        assert (await client.good(ACTION, headers={"X-Request-Id": f"mine-{number}"}))[0] == 503
    CROWD_LINES.write_out()
    (line,) = lines
    assert (line["event"], line["count"], line["request_id"]) == ("Request not served", 50, "mine-0")


@pytest.mark.parametrize("path", sorted(GOOD))
async def test_lines_of_a_call_that_fails_name_the_trip_it_names(
    client: Client, lines: list[Any], path: str
) -> None:
    client.notes.answer = StoreUnavailable("away")
    assert (await client.good(path))[0] == 503
    CROWD_LINES.write_out()
    (line,) = lines
    assert line["event"] == "Request not served"
    assert line.get("trip_id") == GOOD[path][1].get("trip_request_id")
    await client.send("GET", "/fails")
    CROWD_LINES.write_out()
    assert "trip_id" not in lines[-1]


@pytest.mark.parametrize(
    "path",
    [
        f"/api/customer/ride/{TRIP}",
        f"/api/driver/ride/{TRIP}",
        f"/api/admin/ride/{TRIP}",
        f"/api/admin/ride/{TRIP}/timeline",
        f"/api/admin/ride/{TRIP}/offers",
        f"/api/admin/why?trip={TRIP}&driver=d1",
    ],
)
async def test_lines_of_a_question_name_the_trip_it_names(
    client: Client, lines: list[Any], path: str
) -> None:
    token = {"customer": CUSTOMER, "driver": DRIVER, "admin": ADMIN}[path.split("/")[2]]
    client.notes.limit = StoreUnavailable("away")
    assert (await client.send("GET", path, token))[0] == 503
    CROWD_LINES.write_out()
    assert lines[-1]["trip_id"] == TRIP
    wrong = path.replace(TRIP, "no%20trip")
    assert (await client.send("GET", wrong, token))[0] == 503
    CROWD_LINES.write_out()
    assert "trip_id" not in lines[-1]


class Counting:
    """Counts by a limit that was hit, as the service does that stands behind all limits."""

    async def refuse(self, refusal: Any, actor: Any, ip: Any) -> Answer:
        limit = LimitState("general", Rate(1, 60), 0, 1, 0)
        log_limited(limit, actor, ip)
        return rate_limited_answer(limit)


async def test_a_limit_that_is_hit_names_the_trip(
    client: Client, app: App, lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the rest of what was sent is nonsense."""
    for notes in (client.notes, app.notes):
        monkeypatch.setattr(notes, "refuse", Counting().refuse)
    wrong = {"action": "accept", "trip_request_id": TRIP, "version": "x"}
    assert (await client.send("POST", ACTION, DRIVER, wrong))[0] == 429
    CROWD_LINES.write_out()
    assert (lines[-1]["event"], lines[-1]["trip_id"]) == ("Rate limit exceeded", TRIP)
    assert (await client.send("POST", ACTION, DRIVER, {**wrong, "trip_request_id": "no trip"}))[0] == 429
    CROWD_LINES.write_out()
    assert "trip_id" not in lines[-1]
    socket = await app.connect()
    await frame(socket)
    await socket.send_json({"type": "trip_action", "id": 1, **wrong})
    assert (await frame(socket))["response_code"] == "rate_limit_exceeded"
    CROWD_LINES.write_out()
    assert (lines[-1]["event"], lines[-1]["trip_id"]) == ("Rate limit exceeded", TRIP)
    await socket.close()


async def test_lines_of_a_frame_that_fails_name_its_trip(app: App, lines: list[Any]) -> None:
    app.notes.answer = RuntimeError("broken")
    socket = await app.connect()
    await frame(socket)
    await socket.send_json({"type": "trip_action", "action": "accept", "trip_request_id": TRIP})
    await frame(socket)
    assert (lines[-1]["event"], lines[-1]["trip_id"]) == ("frame failed", TRIP)
    await socket.close()


async def test_lines_of_a_frame(app: App, lines: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.notes, "execute", Talkative(app.notes).execute)
    socket = await app.connect(**{"X-Request-Id": "phone-7"})
    assert socket._response.headers["X-Request-Id"] == "phone-7"
    await frame(socket)
    action = {"type": "trip_action", "action": "accept", "trip_request_id": TRIP}
    for id_ in ("a-1", 2, "no good", None):
        await socket.send_json({**action, **({} if id_ is None else {"id": id_})})
        await frame(socket)
    assert [line["request_id"] for line in lines] == ["phone-7/a-1", "phone-7/2", "phone-7", "phone-7"]
    assert {line["trip_id"] for line in lines} == {TRIP}
    app.notes.answer = RuntimeError("broken")
    await socket.send_json({"type": "location", "id": 3, **PLACE})
    await frame(socket)
    assert lines[-1]["request_id"] == "phone-7/3"
    assert "trip_id" not in lines[-1]
    await socket.close()


def test_ids_of_frames_are_sane() -> None:
    assert frame_request_id("s", "x" * 64) == "s/" + "x" * 64
    for bad in ("x" * 65, "a\nb", "", "é"):
        assert frame_request_id("s", bad) == "s"
    assert frame_request_id("s", 10**70) == "s"
    assert REQUEST_ID.get() == TRIP_ID.get() == ""
