"""The WebSocket over real sockets and services that take notes: opening, answers, and closing."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import orjson
import pytest
import structlog
from structlog.testing import capture_logs

from dispatcher.core.errors import OutcomeUnknown, StoreUnavailable
from dispatcher.observe.call_ids import TRIP_ID, add_call_ids
from dispatcher.observe.crowd_lines import CROWD_LINES
from dispatcher.observe.straight_lines import STRAIGHT_LINES
from dispatcher.service.answers import Answer, RateLimited
from dispatcher.web import websocket_admission, websocket_connection
from dispatcher.web.protocol import CloseCode
from tests.harness.servers import make_token
from tests.unit.http_harness import DRIVER, PLACE, TRIP, state
from tests.unit.websocket_harness import HANDSHAKE, App, closed, frame, open_app


@pytest.fixture
async def app() -> AsyncIterator[App]:
    async with open_app() as opened:
        yield opened


async def test_a_header_opens_it(app: App) -> None:
    socket = await app.connect(Authorization=f"bearer {DRIVER}", Origin="https://listed.example")
    welcome = await frame(socket)
    assert welcome == {
        "type": "welcome", "connection_id": welcome["connection_id"], "heartbeat_s": 20,
        "timeout_s": 60, "snapshot": {"of": "d1"},
    }  # fmt: skip
    assert app.notes.counted == [("general", "d1", "127.0.0.1")]
    assert app.presence.present == ["d1"]
    app.hub.hand_on("driver:d1", b'{"type":"offer"}')
    assert await frame(socket) == {"type": "offer"}
    app.hub.resync("driver:d1")
    assert (await frame(socket))["type"] == "welcome"
    assert len(app.endpoint) == 1
    await socket.close()
    async with asyncio.timeout(10):
        while app.presence.present or len(app.endpoint):
            await asyncio.sleep(0.01)
    assert app.channels.open_for == []


async def test_a_first_frame_opens_it(app: App) -> None:
    socket = await app.connect(None)
    await socket.send_json({"type": "auth", "token": DRIVER})
    assert (await frame(socket))["type"] == "welcome"
    assert app.notes.counted == [("general", "d1", "127.0.0.1")]
    await socket.close()


async def test_upgrades_that_are_refused_count_like_other_refusals(app: App) -> None:
    for headers, code in (
        ({"Authorization": "Bearer nonsense"}, "invalid_token"),
        ({"Authorization": "Basic abc"}, "missing_token"),
        ({"Origin": "https://elsewhere.example"}, "origin_not_allowed"),
        ({"Origin": "http://["}, "origin_not_allowed"),
    ):
        sent, problem = await app.refused(**headers)
        assert problem["response_code"] == code
        assert sent["RateLimit"].startswith('"general"')  # as the notes answer every count
        assert ("WWW-Authenticate" in sent) == (problem["status"] == 401)
        assert "X-Request-Id" in sent
    assert app.notes.counted == [("anonymous", None, "127.0.0.1")] * 4
    app.notes.limit = RateLimited(state("general", 0))
    sent, problem = await app.refused(Authorization=f"Bearer {DRIVER}")
    assert (problem["response_code"], sent["Retry-After"]) == ("rate_limit_exceeded", "42")
    app.notes.limit = StoreUnavailable()
    _, problem = await app.refused(Authorization=f"Bearer {DRIVER}")
    assert problem["response_code"] == "service_unavailable"
    _, problem = await app.refused(Authorization="Bearer nonsense")
    assert problem["response_code"] == "invalid_token"


async def test_what_asks_for_no_upgrade_is_told_to(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    for headers in (
        {"Authorization": f"Bearer {DRIVER}"},
        {},
        {**HANDSHAKE, "Upgrade": "h2c"},
        {**HANDSHAKE, "Sec-WebSocket-Version": "12"},
        {**HANDSHAKE, "Sec-WebSocket-Key": "short"},
    ):
        sent, problem = await app.refused_call(**headers)
        assert problem["response_code"] == "upgrade_required"
        assert (sent["Upgrade"], sent["Connection"]) == ("websocket", "Upgrade")
    async with app.session.head(app.url, headers=HANDSHAKE) as response:
        assert response.status == 426
    assert app.notes.counted == [("anonymous", None, "127.0.0.1")] * 6
    assert "Request failed" not in capsys.readouterr().out


async def test_a_failure_after_the_upgrade_is_a_close_code(app: App) -> None:
    for failure, code, close_code in (
        (StoreUnavailable(), "service_unavailable", CloseCode.TRY_AGAIN_LATER),
        (RuntimeError("secret detail"), "internal_error", CloseCode.INTERNAL_ERROR),
        (ConnectionResetError("not the client's"), "internal_error", CloseCode.INTERNAL_ERROR),
    ):
        for place in ("presence", "snapshot"):
            if place == "presence":
                app.presence.failure = failure
            else:
                app.presence.failure = None
                app.snapshots.failures = [failure]
            socket = await app.connect()
            error = await frame(socket)
            assert (error["type"], error["response_code"]) == ("error", code)
            assert "secret" not in orjson.dumps(error).decode()
            assert await closed(socket) == close_code
            assert socket.exception() is None
    assert app.presence.present == []
    assert len(app.endpoint) == 0


async def test_a_snapshot_that_fails_is_read_again(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_connection, "_MIN_REST_S", 0.01)
    socket = await app.connect()
    await frame(socket)
    app.snapshots.failures = [StoreUnavailable() for _ in range(4)]
    app.hub.resync("driver:d1")
    assert (await frame(socket))["type"] == "welcome"
    assert app.snapshots.failures == []
    app.snapshots.failures = [RuntimeError("nobody foresaw it")]
    app.hub.resync("driver:d1")
    assert await closed(socket) == CloseCode.INTERNAL_ERROR


async def test_what_is_lost_while_a_snapshot_is_read_is_in_the_next_one(app: App) -> None:
    socket = await app.connect()
    await frame(socket)
    app.snapshots.gate.clear()
    app.hub.resync("driver:d1")
    async with asyncio.timeout(10):
        while app.snapshots.asked < 2:
            await asyncio.sleep(0)
    app.hub.resync("driver:d1")
    app.snapshots.gate.set()
    for _ in range(2):
        assert (await frame(socket))["type"] == "welcome"
    await socket.close()


async def test_nul_is_refused_in_every_frame(app: App) -> None:
    stranger = await app.connect(None)
    await stranger.send_str('{"type":"auth","token":"a\\u0000b"}')
    assert (await frame(stranger))["response_code"] == "malformed_json"
    assert await closed(stranger) == CloseCode.BAD_FIRST_FRAME
    socket = await app.connect()
    await frame(socket)
    action = '"type":"trip_action","action":"accept","trip_request_id":"default_x"'
    for text in (
        '{"type":"heartbeat","id":"a\\u0000"}',
        '{"type":"heartbeat","id":"a\x00"}',
        f'{{{action},"idempotency_key":"k\\u0000"}}',
        f'{{{action},"more":{{"deep":["\\u0000"]}}}}',
        f'{{{action},"a\\u0000b":1}}',
        '{"type":"auth","token":"\\u0000"}',
    ):
        await socket.send_str(text)
        assert (await frame(socket))["response_code"] == "malformed_json"
    await socket.close()


async def test_first_frames_that_are_refused(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = RateLimited(state("anonymous", 0))
    for text, limit, code, close_code in (
        ('{"type":"heartbeat"}', None, "invalid_frame", CloseCode.BAD_FIRST_FRAME),
        ("[]", None, "malformed_json", CloseCode.BAD_FIRST_FRAME),
        ('{"type":"auth","token":"x"}', None, "invalid_token", CloseCode.UNAUTHORIZED),
        ('{"type":"auth","token":"x"}', limited, "rate_limit_exceeded", CloseCode.UNAUTHORIZED),
        (f'{{"type":"auth","token":"{DRIVER}"}}', StoreUnavailable(), "service_unavailable",
         CloseCode.TRY_AGAIN_LATER),
    ):  # fmt: skip
        app.notes.limit = limit
        socket = await app.connect(None)
        await socket.send_str(text)
        error = await frame(socket)
        assert (error["type"], error["response_code"], error["id"]) == ("error", code, None)
        assert await closed(socket) == close_code
    socket = await app.connect(None)
    await socket.send_bytes(b"{}")
    assert (await frame(socket))["response_code"] == "binary_frame"
    assert await closed(socket) == CloseCode.UNSUPPORTED
    monkeypatch.setattr(websocket_admission, "_AUTH_S", 0.05)
    socket = await app.connect(None)
    assert (await frame(socket))["response_code"] == "missing_token"
    assert await closed(socket) == CloseCode.UNAUTHORIZED
    assert app.presence.present == []


async def test_what_frames_are_answered(app: App) -> None:
    socket = await app.connect()
    await frame(socket)
    action = {"type": "trip_action", "action": "accept", "trip_request_id": TRIP}
    await socket.send_json({**action, "id": "a"})
    assert await frame(socket) == {
        "type": "ack", "id": "a", "status": 200, "replayed": False, "response_code": "done",
    }  # fmt: skip
    assert app.notes.calls[-1][1]["actor"].user_id == "d1"
    await socket.send_json({"type": "heartbeat"})
    await socket.send_json({"type": "location", **PLACE})
    await socket.send_json({"type": "heartbeat", "id": 1})
    ack = await frame(socket)
    assert (ack["id"], ack["response_code"]) == (1, "heartbeat"), "what has no id is not acknowledged"
    await socket.send_json({"type": "auth", "token": make_token("d1", "driver"), "id": 2})
    assert (await frame(socket))["response_code"] == "token_renewed"
    await socket.send_json({"type": "auth", "token": make_token("d2", "driver"), "id": 3})
    assert (await frame(socket))["response_code"] == "invalid_token"
    await socket.send_json({**action, "action": "fly", "id": 4})
    error = await frame(socket)
    assert (error["id"], error["response_code"]) == (4, "unknown_action")
    assert error["rate_limit"] == {"limit": 10, "remaining": 9, "reset": 1_800_000_043}
    assert error["problem"] == "urn:dispatcher:problem:unknown_action"
    await socket.close()


async def test_what_is_no_frame_asks_no_store(app: App) -> None:
    socket = await app.connect()
    await frame(socket)
    app.notes.limit = StoreUnavailable()
    for text, id_, code in (
        ("{", None, "malformed_json"),
        ('{"type":"trip_action","id":1,"reason":"a\\u0000b"}', None, "malformed_json"),
        ('{"type":"heartbeat","id":[]}', None, "invalid_frame"),
        ('{"type":["heartbeat"],"id":2}', 2, "unknown_frame_type"),
    ):
        await socket.send_str(text)
        error = await frame(socket)
        assert (error["response_code"], error["id"]) == (code, id_)
        assert "rate_limit" not in error
    await socket.close()


async def test_faults_are_the_problems_of_http(app: App) -> None:
    socket = await app.connect()
    await frame(socket)
    action = {"type": "trip_action", "action": "accept", "trip_request_id": TRIP, "id": 1}
    for error, code, retry_after in (
        (StoreUnavailable(), "service_unavailable", 1),
        (OutcomeUnknown(), "outcome_unknown", 1),
        (ConnectionResetError("not the client's"), "internal_error", None),
        (RuntimeError("secret detail"), "internal_error", None),
    ):
        app.notes.answer = error
        await socket.send_json(action)
        problem = await frame(socket)
        assert (problem["response_code"], problem.get("retry_after")) == (code, retry_after)
        assert "secret" not in orjson.dumps(problem).decode()
    app.notes.answer = Answer(200, b'{"response_code":"done"}')
    await socket.send_json(action)
    assert (await frame(socket))["type"] == "ack"
    await socket.close()


async def test_ends_that_the_server_chooses(app: App) -> None:
    flood = await app.connect()
    for _ in range(801):  # 200 at once, and 200 in the second after the warning
        await flood.send_str('{"type":"heartbeat"}')
    assert await closed(flood) == CloseCode.TOO_MANY_FRAMES
    binary = await app.connect()
    await binary.send_bytes(b"{}")
    assert await closed(binary) == CloseCode.UNSUPPORTED
    silent, expired = await app.connect(), await app.connect(make_token("d2", "driver"))
    await frame(silent)
    await frame(expired)
    for connection in app.endpoint._connections:
        if connection.actor.user_id == "d1":
            connection.presence.seen -= 61
        else:
            connection.expires_at_s = time.time()
    closing = asyncio.create_task(app.endpoint.close_stale())
    codes = await asyncio.gather(closed(silent), closed(expired))
    assert codes == [CloseCode.NO_HEARTBEAT, CloseCode.UNAUTHORIZED]
    await closing
    last = await app.connect()
    await frame(last)
    draining = asyncio.create_task(app.endpoint.drain(0.01))
    assert await closed(last) == CloseCode.RESTART
    await draining
    headers, problem = await app.refused(Authorization=f"Bearer {DRIVER}")
    assert (problem["response_code"], headers["Retry-After"]) == ("service_unavailable", "1")


async def test_only_admins_watch_zones(app: App) -> None:
    driver = await app.connect()
    await frame(driver)
    await driver.send_json({"type": "watch", "zone": "default", "id": 1})
    assert (await frame(driver))["response_code"] == "wrong_role"
    await driver.close()
    admin = await app.connect(make_token("a1", "admin"))
    await frame(admin)
    for zone, code in (("nowhere", "invalid_zone"), ("{}", "invalid_zone"), (None, "invalid_zone")):
        await admin.send_json({"type": "watch", "zone": zone})
        assert (await frame(admin))["response_code"] == code
    await admin.send_json({"type": "watch", "zone": "default", "id": 2})
    assert (await frame(admin))["response_code"] == "watching"
    assert list(app.zone_views.watching.values()) == ["default"]
    await admin.send_json({"type": "unwatch", "id": 3})
    assert (await frame(admin))["response_code"] == "not_watching"
    await admin.send_json({"type": "watch", "zone": "default", "id": 4})
    await frame(admin)
    await admin.close()
    async with asyncio.timeout(5):
        while app.zone_views.watching:
            await asyncio.sleep(0.01)


async def test_of_a_watched_zone_one_frame_waits_at_most(app: App) -> None:
    admin = await app.connect(make_token("a1", "admin"))
    await frame(admin)
    (connection,) = app.endpoint._connections
    assert connection.show(b'{"n":1}')
    assert not connection.show(b'{"n":2}'), "the first one has not been sent yet"
    assert (await frame(admin)) == {"n": 1}
    assert connection.show(b'{"n":3}')
    assert (await frame(admin)) == {"n": 3}
    await admin.close()


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The log lines so far, with those that wait for others of their kind."""
    before = structlog.get_config()
    with capture_logs(processors=[add_call_ids]) as logs:

        def so_far() -> list[dict[str, Any]]:
            CROWD_LINES.write_out()
            return logs

        STRAIGHT_LINES.write_through_structlog()
        yield so_far
    structlog.configure(**before)


async def test_a_crowd_of_bad_tokens_is_summed_up(
    app: App, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    CROWD_LINES.write_out()
    expired = make_token("d1", "driver", exp=5)

    async def come() -> None:
        socket = await app.connect(None)
        await socket.send_json({"type": "auth", "token": expired})
        assert await closed(socket) == CloseCode.UNAUTHORIZED

    await asyncio.gather(*(come() for _ in range(20)))
    counts = Counter[tuple[str, str]]()
    told = [line for line in lines() if "reason" in line]  # and not those of other tests' calls
    assert len(told) <= 4, "two a second"
    for line in told:
        counts[line["event"], line["reason"]] += line["count"]
    assert counts == {("Token refused", "expired"): 20, ("socket refused", "token_expired"): 20}


async def test_the_line_of_a_closed_socket_is_about_no_frame(
    app: App, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    socket = await app.connect(**{"X-Request-Id": "opening"})
    await frame(socket)
    action = {"type": "trip_action", "action": "accept", "trip_request_id": TRIP, "id": "f1"}
    await socket.send_json(action)
    assert (await frame(socket))["id"] == "f1"
    await socket.send_str("x" * (1 << 20))
    assert await closed(socket) == CloseCode.TOO_BIG
    (line,) = [line for line in lines() if line["event"] == "socket closed"]
    assert (line["code"], line["user"], line["request_id"]) == (1009, "d1", "opening")
    assert "trip_id" not in line
    assert line["connection"]


async def test_whose_message_a_slow_socket_is_closed_by_is_not_in_its_line(
    app: App, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    socket = await app.connect(**{"X-Request-Id": "opening"})
    await frame(socket)
    TRIP_ID.set("default_of_another")
    (connection,) = app.endpoint._connections
    connection.abort(CloseCode.TOO_SLOW, "too slow")
    TRIP_ID.set("")
    (line,) = [line for line in lines() if line["event"] == "socket closed"]
    assert (line["request_id"], line.get("trip_id")) == ("opening", None)
