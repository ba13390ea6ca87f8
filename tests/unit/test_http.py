"""HTTP itself: odd requests, versions, and clients that go away."""

from __future__ import annotations

import asyncio
import re

import pytest
import structlog

from dispatcher.web.responses import HttpResponse, encode
from tests.unit.http_harness import (
    ACTION,
    CREATE,
    DRIVER,
    Client,
    check_problem,
)


async def test_unknown_addresses_and_methods(client: Client) -> None:
    for path in ("/nope", "/api", CREATE + "/", "/%ff", "/api/driver/ride/a/b"):
        status, headers, problem = await client.send("GET", path)
        check_problem(status, headers, problem)
        assert problem["response_code"] == "not_found", path
    status, headers, problem = await client.send("DELETE", ACTION, DRIVER)
    check_problem(status, headers, problem)
    assert (status, "POST" in headers["Allow"]) == (405, True)
    status, headers, _ = await client.send("HEAD", "/healthz")
    assert status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"POST /api/driver/ride/trip-action HTTP/1.1\r\nHost: x\r\nIdempotency-Key: a\x01b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 10_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: something\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: \xe6\xff\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_no_http(client: Client, data: bytes) -> None:
    status, headers, problem = await client.raw(data)
    check_problem(status, headers, problem)
    assert problem["response_code"] == "malformed_request"
    assert headers["server"] == "dispatcher"


async def test_a_broken_chunk(client: Client) -> None:
    head = (
        f"POST {ACTION} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {DRIVER}\r\n"
        "Transfer-Encoding: chunked\r\n\r\nZZ\r\n"
    )
    status, headers, problem = await client.raw(head.encode())
    check_problem(status, headers, problem)
    assert problem["response_code"] == "malformed_request"


async def test_odd_targets_are_no_errors_of_ours(client: Client) -> None:
    for target in (
        b"OPTIONS *",
        b"CONNECT a:1",
        b"GET http://other/healthz",
        b"GET //",
        b"GET /?%",
        b"GET /#x",
    ):
        status, _, _ = await client.raw(target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert status < 500, target


async def test_a_client_that_goes_away(client: Client) -> None:
    with structlog.testing.capture_logs() as lines:
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        head = f"POST {ACTION} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {DRIVER}\r\nContent-Length: 50\r\n\r\n{{"
        writer.write(head.encode())
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.sleep(0.05)
    assert [line for line in lines if line["log_level"] in ("error", "warning")] == []
    assert client.notes.calls == []


def test_a_header_with_a_line_break_is_not_sent() -> None:
    for value in ("a\r\nSet-Cookie: b", "a\nb", "a\rb"):
        with pytest.raises(ValueError, match="line break"):
            encode(HttpResponse(200, b"{}", {"X-Request-Id": value}))


async def _exchange(port: int, request: bytes) -> tuple[bytes, bytes, bool]:
    """Status line and headers, body, and whether the server kept the connection open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    body = b""
    if not request.startswith(b"HEAD") and length is not None:
        body = await reader.readexactly(int(length[1]))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    try:
        kept = bool(await reader.read(1))
    except ConnectionError:
        kept = False
    writer.close()
    return head, body, kept


async def test_http_versions_and_methods(client: Client) -> None:
    """Replies in one write and those of aiohttp's own tell the same."""
    whole, body, kept = await _exchange(client.port, b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (whole[:15], body, kept) == (b"HTTP/1.1 200 OK", b'{"status":"ok"}', True)
    assert b"\r\nContent-Type: application/json\r\n" in whole
    assert b"\r\nServer: dispatcher\r\n" in whole
    assert b"\r\nDate: " in whole
    head, body, kept = await _exchange(client.port, b"HEAD /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (body, kept) == (b"", True)
    assert b"\r\nContent-Length: 15\r\n" in head
    closing = b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    head, body, kept = await _exchange(client.port, closing)
    assert (body, kept) == (b'{"status":"ok"}', False)
    assert b"\r\nConnection: close\r\n" in head
    head, body, kept = await _exchange(client.port, b"GET /healthz HTTP/1.0\r\nHost: h\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK")
    assert (body, kept) == (b'{"status":"ok"}', False)


async def test_two_requests_in_one_packet(client: Client) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n" * 3)
    for _ in range(3):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert await reader.readexactly(15) == b'{"status":"ok"}'
    writer.close()
