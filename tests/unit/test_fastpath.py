"""What `dispatcher.web.fastpath` leans on inside aiohttp is there, and behaves as it expects.

A failure here says that the installed aiohttp has changed: adapt `fastpath`, then the bound in
pyproject.toml.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any
from unittest import mock

import aiohttp
import pytest
from aiohttp import hdrs, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import StreamWriter

from dispatcher.web import fastpath
from dispatcher.web.fastpath import DIRECT_HANDLERS, body_at_hand, make_runner
from dispatcher.web.responses import HttpResponse

#: The minor version of aiohttp that all of this was tested with.
TESTED = (3, 14)


class Server:
    """A server of one POST handler, which notes what it finds."""

    def __init__(self) -> None:
        self.connections: list[Any] = []
        self.tasks: set[Any] = set()
        self.bodies: list[bytes | None] = []
        self.port = 0

    async def handle(self, request: web.Request) -> Any:
        self.connections.append(request.protocol)
        self.tasks.add(asyncio.current_task())
        self.bodies.append(body_at_hand(request))
        await request.read()
        return HttpResponse(200, b"{}", {hdrs.CONTENT_TYPE: "application/json"})

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        transport = request.transport
        assert transport is not None, "a request keeps its transport after the upgrade"
        transport.abort()
        return socket


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    served = Server()
    app = web.Application()
    app.router.add_post("/fixed", served.handle)
    app.router.add_get("/ws", served.socket)
    app[DIRECT_HANDLERS] = {("POST", "/fixed"): served.handle}
    runner = make_runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.port = runner.addresses[0][1]
    yield served
    await runner.cleanup()


HEAD = b"POST /fixed HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n"


async def exchange(server: Server, *parts: bytes, answers: int = 1) -> bytes:
    """Sends the parts with a pause in between, and reads so many answers with the body `{}`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0.05)
    raw = b""
    for _ in range(answers):
        raw += await asyncio.wait_for(reader.readuntil(b"\r\n\r\n{}"), 10)
    writer.close()
    return raw


def test_the_installed_version_is_the_tested_one() -> None:
    installed = tuple(int(part) for part in aiohttp.__version__.split(".")[:2])
    assert installed == TESTED, "run this file's tests with it, then raise TESTED and the bound"


def test_what_is_overridden_exists() -> None:
    assert inspect.iscoroutinefunction(web.AppRunner._make_server)
    for name, parameters in (
        ("connection_made", ["self", "transport"]),
        ("handle_error", ["self", "request", "status", "exc", "message"]),
        ("finish_response", ["self", "request", "resp", "start_time"]),
    ):
        assert list(inspect.signature(getattr(web.RequestHandler, name)).parameters) == parameters
    assert {"_loop", "_upgraded"} <= {*BaseProtocol.__slots__, *web.RequestHandler.__slots__}
    assert isinstance(web.RequestHandler.writing_paused, property)
    accepted = inspect.signature(web.RequestHandler).parameters
    assert {"loop", "access_log", "auto_decompress", "lingering_time"} <= accepted.keys()
    assert {"request_factory", "handler_cancellation"} <= inspect.signature(web.Server).parameters.keys()


async def test_the_runner_makes_a_server_that_can_be_taken_over() -> None:
    runner = web.AppRunner(web.Application())
    made = await runner._make_server()
    assert callable(made.request_handler)
    assert callable(made.request_factory)
    ours = fastpath._Server(made.request_handler, request_factory=made.request_factory)
    assert type(ours()) is fastpath._Connection
    await runner.cleanup()


async def test_fixed_paths_do_not_go_through_the_router(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: Any) -> Any:
        raise AssertionError("the router was asked")

    monkeypatch.setattr(web.UrlDispatcher, "resolve", resolve)
    assert (await exchange(server, HEAD + b"\r\n{}")).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_the_requests_of_a_connection_share_its_task(server: Server) -> None:
    await exchange(server, (HEAD + b"\r\n{}") * 3, answers=3)
    assert len(set(server.connections)) == 1
    if sys.version_info < (3, 12):
        assert len(server.tasks) == 1, "aiohttp made tasks by another way than its loop's create_task"
        assert isinstance(server.connections[0]._loop, fastpath._LoopWithoutTasks)
    else:
        assert not isinstance(server.connections[0]._loop, fastpath._LoopWithoutTasks)


async def test_a_response_is_one_write_and_closes_where_it_must(server: Server) -> None:
    raw = await exchange(server, HEAD + b"\r\n{}")
    names = re.findall(rb"\r\n([A-Za-z-]+): ", raw)
    assert names == [b"Content-Type", b"Content-Length", b"Date", b"Server"]
    date = re.search(rb"Date: (.+)\r\n", raw)
    assert date is not None
    assert parsedate_to_datetime(date[1].decode()).tzinfo is not None
    assert date[1].endswith(b" GMT")
    raw = await exchange(server, HEAD + b"Connection: close\r\n\r\n{}")
    assert b"\r\nConnection: close\r\n" in raw


async def test_a_body_is_at_hand_only_where_all_of_it_has_arrived(server: Server) -> None:
    await exchange(server, HEAD + b"\r\n{}")
    await exchange(server, HEAD + b"\r\n{", b"}")
    chunked = (
        b"POST /fixed HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    )
    await exchange(server, chunked)
    assert server.bodies == [b"{}", None, None]


async def test_a_declined_upgrade_does_not_hide_the_next_request(server: Server) -> None:
    upgrade = HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n{}"
    await exchange(server, upgrade + HEAD + b"\r\n{}", answers=2)
    assert len(server.bodies) == 2
    assert server.connections[0]._upgraded is False


async def test_an_upgraded_connection_can_be_cut_by_its_request(server: Server) -> None:
    async with aiohttp.ClientSession() as session:
        socket = await session.ws_connect(f"http://127.0.0.1:{server.port}/ws")
        await socket.send_str("x")
        message = await socket.receive(timeout=10)
        assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        assert socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE


async def test_a_client_that_does_not_read_is_waited_for() -> None:
    """A transport that is full pauses the protocol, and a request's writer waits until it is not."""

    async def handler(_: Any) -> Any:
        raise NotImplementedError

    connection = fastpath._Server(handler)()
    connection.transport = mock.Mock(asyncio.Transport)
    draining = asyncio.create_task(StreamWriter(connection, asyncio.get_running_loop()).drain())
    await draining
    connection.pause_writing()
    assert connection.writing_paused
    draining = asyncio.create_task(StreamWriter(connection, asyncio.get_running_loop()).drain())
    await asyncio.sleep(0.01)
    assert not draining.done()
    connection.resume_writing()
    await draining
    assert not connection.writing_paused
