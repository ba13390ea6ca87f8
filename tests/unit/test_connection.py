"""The loop over the calls of a connection, and what `dispatcher.web.connection` leans on inside aiohttp.

A failure of the last tests here says that the installed aiohttp has changed: adapt `connection`, then
the bound in pyproject.toml.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import socket
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any
from unittest import mock

import aiohttp
import pytest
import structlog
from aiohttp import hdrs, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, RawRequestMessage, StreamWriter
from aiohttp.web_protocol import ERROR, _ErrInfo

from dispatcher.web import fastpath
from dispatcher.web.door import Door, DoorLimits
from tests.unit.connection_harness import CALL, HEAD, SMALL_BUFFER, Server, open_server

WITHIN_S = 10
UPGRADE = HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n{}"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with open_server() as served:
        yield served


async def test_the_calls_of_a_connection_share_its_task(server: Server) -> None:
    await server.exchange(CALL * 3, answers=3)
    assert len(set(server.connections)) == 1
    assert len(server.tasks) == 1


async def test_a_response_is_one_write_and_closes_where_it_must(server: Server) -> None:
    raw = await server.exchange(CALL)
    names = re.findall(rb"\r\n([A-Za-z-]+): ", raw)
    assert names == [b"Content-Type", b"Content-Length", b"Date", b"Server"]
    date = re.search(rb"Date: (.+)\r\n", raw)
    assert date is not None
    assert parsedate_to_datetime(date[1].decode()).tzinfo is not None
    assert date[1].endswith(b" GMT")
    reader, writer = await server.connect()
    writer.write(HEAD + b"Connection: close\r\n\r\n{}")
    raw = await asyncio.wait_for(reader.read(), WITHIN_S)
    assert b"\r\nConnection: close\r\n" in raw
    writer.close()


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (b"POST /fixed HTTP/1.0\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}", b"\r\n\r\n{}"),
        (HEAD + b"Connection: close\r\nExpect: much\r\n\r\n{}", b"malformed_request"),
        (b"POST /broken HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}", b"internal_error"),
        (b"no request at all\r\n\r\n", b"malformed_request"),
    ],
)
async def test_what_ends_a_connection_is_answered(server: Server, call: bytes, answer: bytes) -> None:
    reader, writer = await server.connect()
    writer.write(CALL)
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n{}"), WITHIN_S)
    writer.write(call)
    assert answer in await asyncio.wait_for(reader.read(), WITHIN_S)
    writer.close()


async def test_a_declined_upgrade_does_not_hide_the_next_request(server: Server) -> None:
    await server.exchange(UPGRADE + CALL, answers=2)
    assert len(server.bodies) == 2
    assert server.connections[0]._upgraded is False


async def test_an_upgraded_connection_can_be_cut_by_its_request(server: Server) -> None:
    async with aiohttp.ClientSession() as session:
        socket = await session.ws_connect(f"http://127.0.0.1:{server.port}/ws")
        await socket.send_str("x")
        message = await socket.receive(timeout=10)
        assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        assert socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE


async def test_an_idle_connection_holds_nothing_of_its_last_call(server: Server) -> None:
    reader, writer = await server.connect()
    writer.write(CALL)
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n{}"), WITHIN_S)
    assert [request() for request in server.requests] == [None]
    writer.close()


async def test_a_client_that_leaves_while_its_body_is_dropped_leaves_nothing(server: Server) -> None:
    reader, writer = await server.connect()
    writer.write(b"POST /unread HTTP/1.1\r\nHost: h\r\nContent-Length: 9999\r\n\r\n{")
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n{}"), WITHIN_S)
    (task,) = server.tasks
    assert not task.done()
    writer.transport.abort()
    with structlog.testing.capture_logs() as lines:
        await asyncio.wait_for(task, 2)  # and not after the five seconds that the body has
    assert lines == []


async def test_a_client_that_is_gone_before_its_call_is_taken_is_not_answered() -> None:
    async def respond(_: Any) -> Any:
        raise AssertionError("nobody waits for it")

    connection = fastpath._Server(respond)()
    transport = mock.Mock(asyncio.Transport, get_extra_info=mock.Mock(return_value=None))
    with structlog.testing.capture_logs() as lines:
        connection.connection_made(transport)
        task = connection._task_handler
        assert task is not None
        await asyncio.sleep(0)  # it waits for a call
        connection.data_received(CALL)
        connection.connection_lost(None)
        await asyncio.wait_for(task, WITHIN_S)
    assert lines == []


async def test_a_body_that_comes_late_is_dropped_and_the_connection_goes_on(server: Server) -> None:
    reader, writer = await server.connect()
    writer.write(b"POST /unread HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n{")
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n{}"), WITHIN_S)
    writer.write(b"   " + CALL)
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n{}"), WITHIN_S)
    assert len(server.tasks) == 1
    writer.close()


async def test_a_stop_ends_idle_connections_and_waits_for_answers() -> None:
    async with open_server() as server:
        idle, idle_writer = await server.connect()
        idle_writer.write(CALL)
        await asyncio.wait_for(idle.readuntil(b"\r\n\r\n{}"), WITHIN_S)
        busy, busy_writer = await server.connect()
        busy_writer.write(CALL.replace(b"/fixed", b"/slow"))
        await asyncio.wait_for(server.slow_calls.acquire(), WITHIN_S)
        stop = asyncio.create_task(server.runner.cleanup())
        assert await asyncio.wait_for(idle.read(), WITHIN_S) == b""
        assert not stop.done()
        server.go_on.set()
        assert b"\r\n\r\n{}" in await asyncio.wait_for(busy.read(), WITHIN_S)
        await asyncio.wait_for(stop, WITHIN_S)
        for writer in (idle_writer, busy_writer):
            writer.close()


async def test_answers_after_the_beginning_of_a_stop_say_that_they_are_the_last() -> None:
    async with (
        open_server() as server,
        aiohttp.ClientSession() as session,
        asyncio.timeout(WITHIN_S),
    ):
        socket = await session.ws_connect(f"http://127.0.0.1:{server.port}/ws")
        idle, idle_writer = await server.connect()
        idle_writer.write(CALL)
        assert b"Connection" not in await idle.readuntil(b"\r\n\r\n{}")
        busy, busy_writer = await server.connect()
        busy_writer.write(CALL.replace(b"/fixed", b"/slow") + CALL)
        await server.slow_calls.acquire()
        server.runner.announce_end()
        assert len(server.runner.server.connections) == 3  # type: ignore[union-attr]
        server.go_on.set()
        idle_writer.write(CALL)
        for reader in (idle, busy):  # of the calls behind the last answer, none is begun
            assert re.findall(rb"Connection: \w+", await reader.read()) == [b"Connection: close"]
        await socket.send_str("x")
        assert (await socket.receive()).type is not aiohttp.WSMsgType.CLOSE  # it was cut, as told
        assert len(server.bodies) == 2
        for writer in (idle_writer, busy_writer):
            writer.close()


async def test_a_stop_does_not_wait_for_a_body_that_is_dropped() -> None:
    async with open_server() as server:
        reader, writer = await server.connect()
        writer.write(b"POST /unread HTTP/1.1\r\nHost: h\r\nContent-Length: 9999\r\n\r\n{")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n{}"), WITHIN_S)
        await asyncio.wait_for(server.runner.cleanup(), 2)
        assert all(task.done() for task in server.tasks)
        writer.close()


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


@pytest.mark.parametrize("end", ["Connection: close\r\n", ""], ids=["asked for", "idle"])
async def test_a_client_that_does_not_read_the_rest_is_cut_off(end: str) -> None:
    door = Door(DoorLimits(idle_timeout_s=0.1, body_timeout_s=0.2))
    async with open_server(door) as server:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(b"POST /large HTTP/1.1\r\nHost: h\r\n" + end.encode() + b"\r\n")
            async with asyncio.timeout(WITHIN_S):
                while door.refused["answer"] < 1 or len(door) > 0:
                    await asyncio.sleep(0.01)
        assert door.refused["body"] == 0


# --- what is leant on


def test_what_is_overridden_and_called_exists() -> None:
    for name, parameters in (
        ("start", ["self"]),
        ("shutdown", ["self", "timeout"]),
        ("handle_error", ["self", "request", "status", "exc", "message"]),
        ("finish_response", ["self", "request", "resp", "start_time"]),
        ("_make_error_handler", ["self", "err_info"]),
        ("_resume_reading_if_drained", ["self"]),
    ):
        assert list(inspect.signature(getattr(web.RequestHandler, name)).parameters) == parameters
    assert {
        "_upgraded", "_messages", "_waiter", "_handler_waiter", "_parser", "_buffer_paused",
        "_msg_queue_resume_size", "_request_in_progress", "_current_request", "_task_handler",
        "_request_handler", "_request_factory", "_close", "_force_close", "_lingering_time", "_paused",
    } <= {*BaseProtocol.__slots__, *web.RequestHandler.__slots__}  # fmt: skip
    assert isinstance(web.RequestHandler.writing_paused, property)
    assert {"_message", "_payload"} <= web.Request.ATTRS
    assert "request_factory" in inspect.signature(web.Server).parameters
    assert isinstance(web.Server.connections, property)
    assert callable(HttpRequestParser.message_consumed)


def test_what_could_not_be_parsed_is_no_message() -> None:
    assert isinstance(ERROR, RawRequestMessage)
    assert not issubclass(_ErrInfo, RawRequestMessage)
    assert {"status", "exc", "message"} <= {field.name for field in _ErrInfo.__attrs_attrs__}  # type: ignore[attr-defined]
    assert hdrs.EXPECT not in ERROR.headers
