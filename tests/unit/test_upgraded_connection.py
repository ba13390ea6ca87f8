"""Sockets that have ended are freed at once; what that leans on inside aiohttp is there.

A failure here says that the installed aiohttp has changed: adapt `upgraded_connection`, then the bound
in pyproject.toml.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import uvloop
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import RawRequestMessage, WebSocketReader, WebSocketWriter

from dispatcher.core.errors import StoreUnavailable
from dispatcher.web.fastpath import DIRECT_HANDLERS, make_runner
from dispatcher.web.protocol import CloseCode
from dispatcher.web.upgraded_connection import MaskedFrames, UpgradableConnection
from dispatcher.web.websocket_connection import WebSocketConnection
from tests.unit.http_harness import DRIVER
from tests.unit.websocket_harness import HANDSHAKE, App, open_app

#: What a socket is made of. None of it may be left.
PARTS = (
    UpgradableConnection, web.BaseRequest, web.WebSocketResponse, WebSocketConnection, MaskedFrames,
    WebSocketReader, WebSocketWriter, RawRequestMessage,
)  # fmt: skip
SOCKETS = 20
HELLO = b'{"type":"heartbeat","id":1}'


def encoded(text: bytes, *, opcode: int = 1, mask: bytes | None = b"\1\2\3\4") -> bytes:
    """A frame (RFC 6455, 5.2); without a mask where that is None."""
    bit, size = 0x80 if mask is not None else 0, len(text)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, bit | size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, bit | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, bit | 127, size)
    if mask is None:
        return head + text
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))


class Line:
    """A client of bare bytes, which leaves nothing behind for the garbage collector."""

    def __init__(self, line: socket.socket) -> None:
        self.socket = line
        self.received = b""

    @classmethod
    async def open(cls, app: App, token: str | None = DRIVER, then: bytes = b"") -> Line:
        """Asks for a WebSocket, and sends some bytes right behind that."""
        line = socket.socket()
        line.setblocking(False)
        host, port = app.url.removeprefix("http://").removesuffix("/ws").split(":")
        await asyncio.get_running_loop().sock_connect(line, (host, int(port)))
        headers = {"Host": host, **HANDSHAKE}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        opened = cls(line)
        await opened.send(f"GET /ws HTTP/1.1\r\n{head}\r\n".encode() + then)
        await opened.until(b"\r\n\r\n")
        return opened

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def until(self, wanted: bytes) -> None:
        async with asyncio.timeout(10):
            while wanted not in self.received:
                more = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
                assert more, self.received
                self.received += more

    async def close_code(self) -> int:
        """The code that the server closes it with. Answers as a client has to."""
        await self.until(b"\x88")
        at = self.received.rindex(b"\x88")
        while len(self.received) < at + 4:
            self.received += await asyncio.get_running_loop().sock_recv(self.socket, 65536)
        with contextlib.suppress(ConnectionError):
            await self.send(encoded(struct.pack("!H", 1000), opcode=8))
        self.socket.close()
        return int.from_bytes(self.received[at + 2 : at + 4], "big")

    def cut(self) -> None:
        """As a network does: with no word of farewell."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@pytest.fixture
async def app() -> AsyncIterator[App]:
    async with open_app() as opened:
        yield opened


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # what is there is looked at no more: some hundred thousand objects of other tests
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def parts() -> Counter[str]:
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, PARTS))


# --- ends of a socket


async def cut(app: App) -> None:
    line = await Line.open(app)
    await line.until(b'"welcome"')
    line.cut()


async def cut_amid_a_frame(app: App) -> None:
    line = await Line.open(app)
    await line.until(b'"welcome"')
    await line.send(encoded(HELLO) + encoded(HELLO)[:9])
    line.cut()


async def cut_before_the_first_frame(app: App) -> None:
    (await Line.open(app, None)).cut()


async def closed_by_the_client(app: App) -> None:
    line = await Line.open(app)
    await line.until(b'"welcome"')
    await line.send(encoded(struct.pack("!H", 1000), opcode=8))
    assert await line.close_code() == 1000


async def closed_by_the_server(app: App) -> None:
    line = await Line.open(app, then=encoded(b"{}", opcode=2))
    assert await line.close_code() == CloseCode.UNSUPPORTED


async def not_masked(app: App) -> None:
    line = await Line.open(app, then=encoded(HELLO, mask=None))
    assert await line.close_code() == CloseCode.PROTOCOL_ERROR


async def refused_by_its_first_frame(app: App) -> None:
    line = await Line.open(app, None, then=encoded(HELLO))
    assert await line.close_code() == CloseCode.BAD_FIRST_FRAME


async def failed(app: App) -> None:
    app.presence.failure = StoreUnavailable()
    line = await Line.open(app)
    assert await line.close_code() == CloseCode.TRY_AGAIN_LATER
    app.presence.failure = None  # its traceback holds the frames of the last one who was told


async def refused(app: App) -> None:
    line = await Line.open(app, "nonsense")
    await line.until(b"invalid_token")
    line.cut()


@pytest.mark.parametrize(
    "end",
    [
        cut, cut_amid_a_frame, cut_before_the_first_frame, closed_by_the_client, closed_by_the_server,
        not_masked, refused_by_its_first_frame, failed, refused,
    ],
)  # fmt: skip
def test_a_socket_that_has_ended_is_freed_without_the_collector(
    end: Callable[[App], Any],
) -> None:
    async def end_many(app: App) -> tuple[Counter[str], int]:
        with no_collector():
            before = parts()
            for _ in range(SOCKETS):
                await end(app)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    while parts() - before:
                        await asyncio.sleep(0.01)
            return parts() - before, gc.collect()

    async def ends() -> tuple[Counter[str], int]:
        async with open_app() as app:
            await end(app)  # what is made once and kept is made now
            await asyncio.sleep(0.05)
            left, garbage = await end_many(app)
            more_left, more = await end_many(app)
            # What was made once, and is of no use any more, is garbage as well, but not twice.
            return left + more_left, min(garbage, more)

    # On the loop of the product: asyncio's own leaves each of its transports to the collector.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        left, garbage = runner.run(ends())
    assert left == Counter()
    assert garbage < SOCKETS, "each socket leaves some garbage"


async def test_an_open_socket_holds_nothing_of_its_request(app: App) -> None:
    before = parts()
    line = await Line.open(app)
    await line.until(b'"welcome"')
    opened = parts() - before
    assert opened["Request"] == 1
    assert RawRequestMessage.__name__ not in opened
    line.cut()


async def test_the_answer_to_an_upgrade_names_no_versions(app: App) -> None:
    line = await Line.open(app)
    assert b"\r\nServer: dispatcher\r\n" in line.received
    assert b"aiohttp" not in line.received
    line.cut()


async def test_frames_that_are_not_masked_end_the_connection(app: App) -> None:
    line = await Line.open(app)
    await line.until(b'"welcome"')
    for byte in encoded(HELLO):
        await line.send(bytes([byte]))
    await line.until(b'"ack"')
    await line.send(encoded(HELLO, mask=None))
    assert await line.close_code() == CloseCode.PROTOCOL_ERROR
    assert line.received.count(b'"ack"') == 1


class Noted:
    """A reader that takes notes."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""


def fed(chunks: list[bytes]) -> bytes:
    noted: Any = Noted()
    frames = MaskedFrames(noted)
    for chunk in chunks:
        frames.feed_data(chunk)
    return bytes(noted.data)


@pytest.mark.parametrize("sizes", [(0, 5, 125), (126, 3), (65536, 1), (126, 65536)])
def test_masked_frames_pass_however_they_arrive(sizes: tuple[int, ...]) -> None:
    stream = b"".join(encoded(b"x" * size) for size in sizes)
    whole = stream + encoded(b"last", opcode=9)
    assert fed([whole]) == whole
    assert fed([whole[at : at + 1] for at in range(len(whole))]) == whole
    for at in (*range(1, 20), *range(len(stream) - 20, len(whole))):
        assert fed([whole[:at], whole[at:]]) == whole
    bad = encoded(b"secret", mask=None)
    for at in (1, 2, 5):
        noted = fed([stream + bad[:at], bad[at:]])
        assert noted.startswith(stream)
        assert b"secret" not in noted


# --- what is leant on


def test_what_is_overridden_exists() -> None:
    for name, parameters in (
        ("data_received", ["self", "data"]),
        ("set_parser", ["self", "parser", "data_received_cb"]),
    ):
        assert list(inspect.signature(getattr(web.RequestHandler, name)).parameters) == parameters
    slots = {*BaseProtocol.__slots__, *web.RequestHandler.__slots__}
    assert {"_upgraded", "_payload_parser", "_parser", "_messages"} <= slots
    used = {"_message", "_headers", "_rel_url", "_match_info", "_cache", "_state"}
    assert used <= web.Request.ATTRS
    assert "_exception" in web.WebSocketResponse.__annotations__


async def test_a_declined_upgrade_is_answered() -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(text=request.headers["Upgrade"] + request.path)

    app = web.Application()
    app.router.add_get("/ws", handle)
    app[DIRECT_HANDLERS] = {}
    runner = make_runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
    head = b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    writer.write(head * 2)
    for _ in range(2):
        assert (await reader.readuntil(b"websocket/ws")).startswith(b"HTTP/1.1 200")
    writer.close()
    await runner.cleanup()
