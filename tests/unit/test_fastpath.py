"""What `dispatcher.web.fastpath` leans on inside aiohttp is there, and behaves as it expects.

A failure here says that the installed aiohttp has changed: adapt `fastpath`, then the bound in
pyproject.toml.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from dispatcher.web import fastpath
from dispatcher.web.connection import Connection
from tests.unit.connection_harness import CALL, HEAD, Server, open_server

#: The minor version of aiohttp that all of this was tested with.
TESTED = (3, 14)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with open_server() as served:
        yield served


def test_the_installed_version_is_the_tested_one() -> None:
    installed = tuple(int(part) for part in aiohttp.__version__.split(".")[:2])
    assert installed == TESTED, "run this file's tests with it, then raise TESTED and the bound"


def test_what_is_overridden_exists() -> None:
    assert inspect.iscoroutinefunction(web.AppRunner._make_server)
    accepted = inspect.signature(web.RequestHandler).parameters
    used = {"loop", "access_log", "auto_decompress", "lingering_time", "keepalive_timeout"}
    assert used <= accepted.keys()
    assert {"request_factory", "handler_cancellation"} <= inspect.signature(web.Server).parameters.keys()


async def test_the_runner_makes_a_server_that_can_be_taken_over() -> None:
    runner = web.AppRunner(web.Application())
    made = await runner._make_server()
    assert callable(made.request_handler)
    assert callable(made.request_factory)
    ours = fastpath._Server(made.request_handler, request_factory=made.request_factory)
    assert type(ours()) is Connection
    await runner.cleanup()


async def test_fixed_paths_do_not_go_through_the_router(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: Any) -> Any:
        raise AssertionError("the router was asked")

    monkeypatch.setattr(web.UrlDispatcher, "resolve", resolve)
    assert (await server.exchange(CALL)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_body_is_at_hand_only_where_all_of_it_has_arrived(server: Server) -> None:
    await server.exchange(CALL)
    await server.exchange(HEAD + b"\r\n{", b"}")
    chunked = (
        b"POST /fixed HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    )
    await server.exchange(chunked)
    assert server.bodies == [b"{}", None, None]
