"""The client against servers that fail in every way: what is sent again, with which key, and when not."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from typing import Any

import aiohttp
import orjson
import pytest
import uvloop
from aiohttp import WSMsgType, web

from dispatcher.client import (
    ApiError,
    CustomerClient,
    DriverClient,
    FrameRefused,
    HttpCalls,
    NoAnswer,
    Offer,
    Retries,
    Socket,
    TripChanged,
    Welcome,
    problems,
)
from dispatcher.client.replies import PASSING_CODES
from dispatcher.core.errors import PROBLEMS

PLACE = (40.75, -73.98)
QUICK = Retries(deadline_s=5.0, attempt_s=2.0, first_rest_s=0.01, max_rest_s=0.02)


def trip(version: int = 1, status: str = "accepted", id_: str = "default_1") -> dict[str, Any]:
    return {
        "id": id_, "zone": "default", "current_status": status, "version": version,
        "customer_id": "c1", "driver_id": "d1", "vehicle_type": "car",
        "pickup": {"lat": 1.0, "lng": 2.0}, "dropoff": None,
        "created_at": "2026-01-01T00:00:00.000Z", "updated_at": "2026-01-01T00:00:00.000Z",
        "a_field_of_later": [1],
    }  # fmt: skip


def welcome(**snapshot: Any) -> dict[str, Any]:
    told = snapshot or {"driver": None, "trip": None, "offers": []}
    return {
        "type": "welcome", "connection_id": "c", "heartbeat_s": 1, "timeout_s": 3, "snapshot": told,
    }  # fmt: skip


def offer(id_: str) -> dict[str, Any]:
    return {"trip": trip(0, "pending", id_), "deadline_ms": 1, "expires_in_ms": 1}


def problem(code: str, **fields: Any) -> web.Response:
    status = PROBLEMS[code].status
    body = {"response_code": code, "message": f"It is {code}.", "status": status, **fields}
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/problem+json")


def accepted(request: web.Request) -> web.Response:
    return web.json_response({"response_code": "trip_accepted", "trip": trip()})


Answer = Callable[[web.Request], Any]


class Server:
    """Answers call after call with what it was told, the last for ever; keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[web.Request] = []
        self.keys: list[str | None] = []
        self.tokens: list[str] = []
        self.socket: Callable[[web.WebSocketResponse], Awaitable[None]] | None = None
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        self.keys.append(request.headers.get("Idempotency-Key"))
        self.tokens.append(request.headers["Authorization"].removeprefix("Bearer "))
        if request.path == "/ws" and self.socket is not None:
            websocket = web.WebSocketResponse()
            await websocket.prepare(request)
            await self.socket(websocket)
            return websocket
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        made = answer(request)
        return await made if asyncio.iscoroutine(made) else made


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    application = web.Application()
    application.router.add_route("*", "/{rest:.*}", made.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def driver(server: Server) -> AsyncIterator[DriverClient]:
    async with DriverClient(server.url, "token", retries=QUICK) as made:
        yield made


async def drop(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def test_there_is_one_exception_for_each_problem() -> None:
    kinds = {kind.code: kind for kind in vars(problems).values()
             if isinstance(kind, type) and issubclass(kind, ApiError) and kind is not ApiError}  # fmt: skip
    assert list(kinds) == list(PROBLEMS)
    for code, kind in kinds.items():
        assert kind.__name__ == code.title().replace("_", "")
        error = ApiError.of(409, {"response_code": code, "message": "m", "version": 3}, 2.0)
        assert type(error) is kind
        assert (error.code, error.status, error.retry_after) == (code, 409, 2.0)
        assert (str(error), error.fields["version"]) == ("m", 3)
    unknown = ApiError.of(418, {"response_code": "of_later", "message": "m"}, None)
    assert (type(unknown), unknown.code) == (ApiError, "of_later")


def test_what_passes_is_kept_for_no_key() -> None:
    assert {code for code in PASSING_CODES if PROBLEMS[code].kept} == set()


async def test_one_key_through_all_that_can_happen_to_an_intent(
    server: Server, driver: DriverClient
) -> None:
    server.answers = [
        drop,
        lambda _: problem("outcome_unknown", retry_after=0),
        lambda _: problem("request_in_progress", retry_after=0),
        lambda _: web.Response(status=502, text="<html>a proxy"),
        lambda _: web.Response(status=503, text="{}", headers={"Retry-After": "0"}),
        lambda _: problem("service_unavailable"),
        accepted,
    ]
    assert (await driver.accept("default_1")).version == 1
    assert driver.trip is not None
    assert len(server.keys) == 7
    assert len(set(server.keys)) == 1
    await driver.accept("default_1")
    assert server.keys[-1] != server.keys[0], "another intent has another key"


@pytest.mark.parametrize("code", sorted(set(PROBLEMS) - PASSING_CODES))
async def test_what_does_not_pass_is_not_sent_again(
    server: Server, driver: DriverClient, code: str
) -> None:
    server.answers = [lambda _: problem(code, version=4)]
    with pytest.raises(ApiError) as caught:
        await driver.accept("default_1")
    assert (caught.value.code, caught.value.status) == (code, PROBLEMS[code].status)
    assert len(server.asked) == 1


async def test_retry_after_is_obeyed_up_to_the_deadline(server: Server) -> None:
    loop, at = asyncio.get_running_loop(), []

    def limited(request: web.Request) -> web.Response:
        at.append(loop.time())
        return problem("rate_limit_exceeded", retry_after=0.3)

    server.answers = [limited, limited, accepted]
    async with DriverClient(server.url, "t", retries=QUICK) as driver:
        await driver.accept("default_1")
    assert at[1] - at[0] >= 0.3
    server.answers = [lambda _: problem("rate_limit_exceeded", retry_after=45)]
    began = loop.time()
    async with DriverClient(server.url, "t", retries=QUICK) as driver:
        with pytest.raises(problems.RateLimitExceeded) as caught:
            await driver.accept("default_1")
    assert caught.value.retry_after == 45
    assert loop.time() - began < 4, "what cannot be in time is not waited for"


def page(status: int, retry_after: str | None = None) -> Answer:
    """What something on the way answers."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return lambda _: web.Response(
        status=status, text="<html>", content_type="text/html", headers=headers
    )


@pytest.mark.parametrize(
    "answer",
    [
        *(page(status) for status in (200, 302, 408, 425, 429, 500, 502, 503, 504)),
        page(503, "-5"), page(429, "soon"), page(429, "Sun, 06 Nov 1994 08:49:37 GMT"),
        lambda _: web.json_response({"hello": 1}),
        lambda _: web.json_response([1]),
        lambda _: web.json_response({"response_code": "trip_accepted"}),
        lambda _: web.json_response({"response_code": "trip_accepted", "trip": {"id": 1}}),
        lambda _: web.json_response({"message": "Too many"}, status=429),
    ],
)  # fmt: skip
async def test_what_is_no_answer_of_the_api_is_asked_again(
    server: Server, driver: DriverClient, answer: Answer
) -> None:
    server.answers = [answer, accepted]
    assert (await driver.accept("default_1")).version == 1
    assert len(set(server.keys)) == 1
    server.answers = [answer, lambda _: web.json_response({"trip": trip(3)})]
    assert (await driver.ride("default_1")).version == 3
    assert len(server.asked) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
async def test_a_definite_refusal_on_the_way_is_the_answer(
    server: Server, driver: DriverClient, status: int
) -> None:
    server.answers = [page(status)]
    with pytest.raises(ApiError) as caught:
        await driver.accept("default_1")
    assert (type(caught.value), caught.value.code, caught.value.status) == (ApiError, "", status)
    assert len(server.asked) == 1


async def test_a_success_that_is_never_readable_has_a_name(server: Server) -> None:
    later = {"Retry-After": "3600"}  # so that there is one attempt
    server.answers = [lambda _: web.json_response({"hello": 1}, headers=later)]
    async with CustomerClient(server.url, "t", retries=QUICK) as customer:
        for asking in (customer.create(PLACE), customer.ride("default_1"), customer.rides()):
            with pytest.raises(NoAnswer) as caught:
                await asking
            assert str(caught.value.__cause__) == "200 is no answer of this API"


def in_s(seconds: float) -> str:
    return formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
async def test_what_stands_before_the_server_says_when_to_ask_again(
    server: Server, driver: DriverClient, status: int
) -> None:
    loop, at = asyncio.get_running_loop(), []

    def told(header: str) -> Answer:
        def answer(request: web.Request) -> web.Response:
            at.append(loop.time())
            return page(status, header)(request)

        return answer

    server.answers = [told("1"), told(in_s(3)), accepted]
    await driver.accept("default_1")
    assert at[1] - at[0] >= 1
    for header in ("3600", in_s(3600)):
        server.answers, server.asked = [page(status, header)], []
        with pytest.raises((ApiError, NoAnswer)) as caught:
            await driver.accept("default_1")
        assert caught.type is (ApiError if status == 429 else NoAnswer)
        assert caught.value.retry_after == pytest.approx(3600, abs=5)
        assert len(server.asked) == 1, "what cannot be in time is not waited for"


async def test_a_server_that_hangs_is_given_up_and_the_intent_can_be_sent_again(server: Server) -> None:
    hold = asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        await hold.wait()
        return web.Response()

    server.answers = [hang]
    retries = Retries(deadline_s=0.5, attempt_s=0.2, first_rest_s=0.01, max_rest_s=0.02)
    async with DriverClient(server.url, "t", retries=retries) as driver:
        with pytest.raises(NoAnswer) as caught:
            await driver.accept("default_1")
        assert isinstance(caught.value.__cause__, TimeoutError)
        assert len(server.asked) > 1
        server.answers = [accepted]
        assert caught.value.intent is not None
        assert (await driver.change(caught.value.intent))["trip"]["version"] == 1
    assert len(set(server.keys)) == 1
    hold.set()


async def test_a_call_that_is_cancelled_is_not_sent_again(server: Server, driver: DriverClient) -> None:
    hold = asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        await hold.wait()
        return web.Response()

    server.answers = [hang]
    call = asyncio.create_task(driver.accept("default_1"))
    while not server.asked:
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(server.asked) == 1
    hold.set()


async def test_a_redirect_is_not_followed_with_the_token(server: Server, driver: DriverClient) -> None:
    server.answers = [lambda _: web.Response(status=307, headers={"Location": "/elsewhere"})]
    with pytest.raises(NoAnswer):
        await DriverClient(
            server.url, "t", session=driver._own_session, retries=Retries(0.2, first_rest_s=0.01)
        ).accept("default_1")
    assert {request.path for request in server.asked} == {"/api/driver/ride/trip-action"}


async def test_a_token_is_asked_for_anew_when_it_has_expired(server: Server) -> None:
    tokens = iter(["old", "new"])

    async def token() -> str:
        return next(tokens)

    server.answers = [lambda _: problem("token_expired"), accepted]
    async with DriverClient(server.url, token, retries=QUICK) as driver:
        await driver.accept("default_1")
    assert server.tokens == ["old", "new"]
    assert len(set(server.keys)) == 1


# --- the socket


async def play(websocket: web.WebSocketResponse, *frames: dict[str, Any]) -> None:
    for frame in frames:
        await websocket.send_json(frame)


async def test_a_lost_connection_is_made_again_and_tells_what_was_missed(
    server: Server, driver: DriverClient
) -> None:
    connections = 0

    async def serve(websocket: web.WebSocketResponse) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            await play(
                websocket, welcome(), {"type": "offer", **offer("default_1"), "wave": 1},
                {"type": "of_later"}, {"type": "offer", "malformed": True},
                {"type": "trip", "event": "accepted", "trip": trip(1)},
                {"type": "trip", "event": "created", "trip": trip(0)},
                {"type": "error", "id": None, "status": 429, "response_code": "too_many_frames"},
            )  # fmt: skip
            await websocket.close(code=1012)
        else:
            await play(websocket, welcome(driver=None, trip=trip(2, "arrived"),
                                          offers=[offer("default_2")]))  # fmt: skip
            await websocket.receive()

    server.socket = serve
    heard: list[Any] = []
    async for event in driver.events():
        heard.append(event)
        if isinstance(event, Offer) and event.trip.id == "default_2":
            break
    assert [type(event) for event in heard] == [
        Welcome, Offer, TripChanged, FrameRefused, Welcome, TripChanged, Offer,
    ]  # fmt: skip
    assert isinstance(heard[3].error, problems.TooManyFrames)
    assert (heard[5].event, heard[5].trip.current_status) == ("", "arrived")
    assert driver.trip is not None
    assert driver.trip.version == 2
    assert list(driver.offers) == ["default_2"]


async def test_changes_go_over_the_socket_and_over_http_once_it_is_lost(
    server: Server, driver: DriverClient
) -> None:
    frames: list[dict[str, Any]] = []

    async def serve(websocket: web.WebSocketResponse) -> None:
        await play(websocket, welcome())
        async for message in websocket:
            frame = orjson.loads(message.data)
            if frame["type"] == "heartbeat":
                continue
            frames.append(frame)
            if len(frames) == 1:
                head = {"type": "ack", "id": frame["id"], "status": 200, "replayed": False}
                await play(websocket, {**head, "response_code": "trip_accepted", "trip": trip(1)})
            else:
                await websocket.close()

    server.socket = serve
    server.answers = [accepted]
    await driver.connected()
    assert (await driver.accept("default_1", version=0)).version == 1
    assert (frames[0]["action"], frames[0]["version"]) == ("accept", 0)
    await driver.arrive("default_1")
    assert server.keys[-1] == frames[1]["idempotency_key"] != frames[0]["idempotency_key"]


async def test_silence_is_noticed_and_heartbeats_are_sent(server: Server, driver: DriverClient) -> None:
    """A server that is gone without a word: the heartbeats are not answered, so another one is tried."""
    beats: list[Any] = []
    connections = 0

    async def serve(websocket: web.WebSocketResponse) -> None:
        nonlocal connections
        connections += 1
        await play(websocket, {**welcome(), "heartbeat_s": 0.05, "timeout_s": 0.2})
        async for message in websocket:
            if message.type is WSMsgType.TEXT:
                beats.append(orjson.loads(message.data))

    server.socket = serve
    welcomes = 0
    async for event in driver.events():
        welcomes += isinstance(event, Welcome)
        if welcomes == 2:
            break
    assert connections == 2
    assert {beat["type"] for beat in beats} == {"heartbeat"}
    assert all("id" in beat for beat in beats), "else nobody would answer"


async def test_a_user_who_is_refused_is_told(server: Server, driver: DriverClient) -> None:
    challenge = (
        'Bearer realm="dispatcher", error="invalid_token", error_description="The token has expired"'
    )
    server.answers = [lambda _: web.Response(status=401, headers={"WWW-Authenticate": challenge})]
    with pytest.raises(problems.TokenExpired):
        async for _ in driver.events():
            raise AssertionError
    assert len(server.asked) == 1


async def test_an_app_that_does_not_read_starts_again_from_a_snapshot(
    server: Server, driver: DriverClient
) -> None:
    connections = 0

    async def serve(websocket: web.WebSocketResponse) -> None:
        nonlocal connections
        connections += 1
        await play(websocket, welcome())
        if connections == 1:
            for version in range(2_000):
                await websocket.send_json({"type": "trip", "event": "accepted", "trip": trip(version)})
        await websocket.receive()

    server.socket = serve
    await driver.connected()
    while connections < 2:
        await asyncio.sleep(0.01)
    async for event in driver.events():
        assert isinstance(event, Welcome), "what was not read is forgotten"
        break


async def test_a_customer_hears_how_a_trip_ended_while_away(server: Server) -> None:
    connections = 0

    async def serve(websocket: web.WebSocketResponse) -> None:
        nonlocal connections
        connections += 1
        await play(websocket, welcome(trips=[trip(1)] if connections == 1 else []))
        if connections > 1:
            await websocket.receive()

    server.socket = serve
    server.answers = [lambda _: web.json_response({"trip": trip(4, "completed")})]
    async with CustomerClient(server.url, "t", retries=QUICK) as customer:
        heard = []
        async for event in customer.events():
            if isinstance(event, TripChanged):
                heard.append((event.trip.current_status, list(customer.trips)))
            if len(heard) == 2:
                break
    assert heard == [("accepted", ["default_1"]), ("completed", [])]


async def _abort_a_socket() -> tuple[int | None, int | None]:
    """Opens a WebSocket, aborts it, and returns the close codes that server and app see."""
    server_saw: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def serve(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.send_json(welcome())
        async for message in websocket:
            assert message.type is WSMsgType.TEXT
        server_saw.set_result(websocket.close_code)
        return websocket

    application = web.Application()
    application.router.add_get("/ws", serve)
    listener = web.AppRunner(application)
    await listener.setup()
    await web.TCPSite(listener, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{listener.addresses[0][1]}"
        socket = await Socket.open(HttpCalls(session, url, "token"))
        async for frame in socket.frames():
            assert frame["type"] == "welcome"
            request = asyncio.create_task(socket.request({"type": "trip_action"}))
            await asyncio.sleep(0)
            socket.abort()
        with pytest.raises(ConnectionError):
            await request
        socket.abort()  # a second time, it does nothing
        codes = await server_saw, socket.close_code
    await listener.cleanup()
    return codes


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
async def test_an_aborted_socket_ends_without_a_close_frame(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """With what aiohttp and both event loops offer publicly; the demo loses connections this way, too."""

    def run() -> tuple[int | None, int | None]:
        with asyncio.Runner(loop_factory=new_loop) as loop:
            return loop.run(asyncio.wait_for(_abort_a_socket(), 10))

    assert await asyncio.to_thread(run) == (1006, 1006)


def test_rests_grow_and_differ() -> None:
    from tenacity import AsyncRetrying, RetryCallState

    random.seed(1)
    retries = Retries(first_rest_s=0.2, max_rest_s=5.0)
    rests = []
    for number in range(1, 12):
        state = RetryCallState(AsyncRetrying(), None, (), {})
        state.attempt_number = number
        rests.append(retries._rest_s(state))
    assert len(set(rests)) == len(rests)
    assert max(rests) <= 5.0
    assert rests[0] <= 0.2
