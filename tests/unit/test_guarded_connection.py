"""No connection takes the server from the others: turns, rates, warnings, bans, caps and deadlines.

What that leans on inside aiohttp is there: a failure of the last tests says that the installed one has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_network
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol

from dispatcher.core.limits import Rate
from dispatcher.web import bans as bans_module
from dispatcher.web import guarded_connection
from dispatcher.web.allowance import Allowance
from dispatcher.web.bans import Bans
from dispatcher.web.client_ip import ClientIp
from dispatcher.web.door import Door, DoorLimits
from dispatcher.web.protocol import CloseCode
from tests.unit.http_harness import DRIVER, Client, open_client
from tests.unit.test_upgraded_connection import HELLO, Line, encoded
from tests.unit.websocket_harness import App, open_app

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
UNKNOWN = b"GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n"
ACTION = f"POST /api/driver/ride/trip-action HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {DRIVER}\r\n"
BEHIND_PROXY = ClientIp([ip_network("127.0.0.1")])


class Wire:
    """A connection of bare bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, client: Client, data: bytes = b"", *, source: str | None = None) -> Wire:
        local = (source, 0) if source else None
        wire = cls(*await asyncio.open_connection("127.0.0.1", client.port, local_addr=local))
        wire.writer.write(data)
        return wire

    async def answer(self) -> tuple[int, bytes]:
        """(status, body) of the next answer."""
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            return int(head.split()[1]), await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """All until its end."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""
            finally:
                self.close()

    def close(self) -> None:
        self.writer.close()


Opened = Callable[..., contextlib.AbstractAsyncContextManager[Client]]


@pytest.fixture
def served() -> Opened:
    """A server behind a door of given limits."""

    @contextlib.asynccontextmanager
    async def opened(client_ip: ClientIp | None = None, **limits: Any) -> AsyncIterator[Client]:
        door = Door(DoorLimits(**limits), client_ip)
        async for client in open_client(door):
            client.door = door  # type: ignore[attr-defined]
            yield client

    return opened


def refused(client: Any) -> dict[str, int]:
    return dict(client.door.refused)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


# --- deadlines


@pytest.mark.parametrize("begun", [b"", b"GET /heal"])
async def test_a_head_that_does_not_come(served: Opened, begun: bytes) -> None:
    async with served(head_timeout_s=0.2) as client:
        wire = await Wire.open(client, begun)
        assert (await wire.rest()).startswith(b"HTTP/1.1 408")
        assert refused(client) == {"head": 1}


async def test_a_head_that_comes_in_drops(served: Opened) -> None:
    async with served(head_timeout_s=0.3) as client:
        wire = await Wire.open(client, HEALTH)
        assert (await wire.answer())[0] == 200
        with contextlib.suppress(ConnectionError):
            for byte in HEALTH:
                wire.writer.write(bytes([byte]))
                await asyncio.sleep(0.03)
        assert refused(client) == {"head": 1}
        wire.close()


async def test_a_body_that_does_not_come(served: Opened) -> None:
    async with served(body_timeout_s=0.2) as client:
        wire = await Wire.open(client, f'{ACTION}Content-Length: 99\r\n\r\n{{"action"'.encode())
        status, body = await wire.answer()
        assert (status, orjson.loads(body)["response_code"]) == (408, "request_timeout")
        assert await wire.rest() == b""
        assert refused(client) == {"body": 1}
        assert client.notes.calls == []


async def test_an_idle_connection(served: Opened) -> None:
    async with served(idle_timeout_s=0.2, head_timeout_s=30) as client:
        wire = await Wire.open(client, HEALTH)
        assert (await wire.answer())[0] == 200
        assert await wire.rest() == b""
        assert refused(client) == {"idle": 1}


async def test_an_answer_that_is_not_read(served: Opened) -> None:
    async with served(body_timeout_s=0.2, rate=Rate(0, 1)) as client:
        wire = await Wire.open(client, b"GET /docs HTTP/1.1\r\nHost: h\r\n\r\n" * 1_000)
        await eventually(lambda: "answer" in refused(client))
        wire.close()


# --- caps


async def test_the_cap_keeps_room_for_health(served: Opened) -> None:
    async with served(max_connections=2) as client:
        inside = [await Wire.open(client, HEALTH) for _ in range(2)]
        for wire in inside:
            assert (await wire.answer())[0] == 200
        silent = [await Wire.open(client) for _ in range(100)]
        late = await Wire.open(client, UNKNOWN)
        status, body = await late.answer()
        assert (status, orjson.loads(body)["response_code"]) == (503, "service_unavailable")
        asking = await Wire.open(client, HEALTH)
        assert (await asking.answer())[0] == 200
        assert refused(client)["cap"] == 102
        assert len(client.door) < 30  # type: ignore[attr-defined]
        inside.pop().close()
        await eventually(lambda: client.door._admitted == 1)  # type: ignore[attr-defined]
        again = await Wire.open(client, UNKNOWN)
        assert (await again.answer())[0] == 404
        for wire in (*inside, *silent, late, asking, again):
            wire.close()


async def test_the_cap_of_an_address_is_not_that_of_another(served: Opened) -> None:
    async with served(max_connections_per_ip=2) as client:
        inside = [await Wire.open(client, HEALTH, source="127.0.0.2") for _ in range(2)]
        for wire in inside:
            assert (await wire.answer())[0] == 200
        late = await Wire.open(client, UNKNOWN, source="127.0.0.2")
        assert (await late.answer())[0] == 503
        crowd = [await Wire.open(client, source="127.0.0.2") for _ in range(30)]
        other = await Wire.open(client, UNKNOWN, source="127.0.0.3")
        assert (await other.answer())[0] == 404
        assert refused(client)["cap of an IP"] == 31
        for wire in (*inside, *crowd, late, other):
            wire.close()
        await eventually(lambda: not client.door._by_address)  # type: ignore[attr-defined]


async def test_sockets_behind_a_proxy_are_their_clients() -> None:
    door = Door(DoorLimits(max_connections_per_ip=1), BEHIND_PROXY)
    async with open_app(door) as app:
        first = await app.session.ws_connect(app.url, headers=forwarded("10.0.0.1"))
        _, problem = await app.refused(**forwarded("10.0.0.1"))
        assert problem["response_code"] == "too_many_connections"
        second = await app.session.ws_connect(app.url, headers=forwarded("10.0.0.2"))
        await first.close()
        await eventually(lambda: door._by_address == {"10.0.0.2": 1})
        again = await app.session.ws_connect(app.url, headers=forwarded("10.0.0.1"))
        await second.close()
        await again.close()


def forwarded(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address, "Authorization": f"Bearer {DRIVER}"}


# --- floods

FLOODS = {
    "pings": encoded(b"", opcode=9),
    "pongs": encoded(b"", opcode=10),
    "frames": encoded(HELLO),
}


@pytest.mark.parametrize("token", [DRIVER, None])
@pytest.mark.parametrize("flood", FLOODS)
async def test_a_socket_that_goes_on_after_a_warning(flood: str, token: str | None) -> None:
    door = Door(DoorLimits(rate=Rate(50, 1)))
    async with open_app(door) as app:
        if token is None and flood == "frames":
            return  # the first of them ends it
        line = await Line.open(app, token, then=FLOODS[flood] * 2_000)
        await line.until(b"too_many_frames")
        assert await line.close_code() == CloseCode.TOO_MANY_FRAMES
        assert dict(door.refused) == {"flood": 1}


async def test_fragments_that_never_end(app: App, door: Door) -> None:
    begin, more = b"\x01\x80\1\2\3\4", b"\x00\x80\1\2\3\4"
    line = await Line.open(app, then=begin + more * 2_000)
    assert await line.close_code() == CloseCode.TOO_MANY_FRAMES


async def test_a_burst_is_warned_and_not_closed(app: App, door: Door) -> None:
    line = await Line.open(app, then=encoded(HELLO) * 60)
    await line.until(b"too_many_frames")
    async with asyncio.timeout(10):
        while line.received.count(b'"ack"') < 60:
            line.received += await asyncio.get_running_loop().sock_recv(line.socket, 65536)
    assert not door.refused
    line.cut()


@pytest.fixture
def door() -> Door:
    return Door(DoorLimits(rate=Rate(50, 1)))


@pytest.fixture
async def app(door: Door) -> AsyncIterator[App]:
    async with open_app(door) as opened:
        yield opened


async def test_calls_that_are_piled_up(served: Opened) -> None:
    async with served(rate=Rate(50, 1)) as client:
        wire = await Wire.open(client, HEALTH * 5_000)
        statuses = []
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                statuses.append((await wire.answer())[0])
        assert statuses[:8] == [200] * 8
        assert 429 in statuses
        assert len(statuses) < 200
        wire.close()
        assert refused(client) == {"flood": 1}


async def test_who_waits_for_answers_is_only_slowed(served: Opened) -> None:
    async with served(rate=Rate(50, 1)) as client:
        wire = await Wire.open(client)
        began = time.monotonic()
        for _ in range(100):
            wire.writer.write(HEALTH)
            assert (await wire.answer())[0] == 200
        assert time.monotonic() - began > 0.8
        assert not refused(client)
        wire.close()


async def test_others_have_their_turn_among_calls_that_are_piled_up(served: Opened) -> None:
    async with served(rate=Rate(0, 1)) as client:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        turning = asyncio.create_task(turn())
        wire = await Wire.open(client, HEALTH * 3_000)
        for _ in range(3_000):
            await wire.answer()
        turning.cancel()
        assert turns > 3_000 / guarded_connection._CALLS_A_TURN
        wire.close()


async def test_a_body_in_many_parts_and_in_one(served: Opened) -> None:
    body = orjson.dumps({"action": "accept", "trip_request_id": "default_t1", "reason": "x" * 400})
    body += b" " * (64 * 1024 - len(body))
    head = f"{ACTION}Content-Length: {len(body)}\r\n\r\n".encode()
    async with served() as client:
        wire = await Wire.open(client, (head + body) * 3)
        for _ in range(3):
            assert (await wire.answer())[0] == 200
        assert not refused(client)
        wire.close()


# --- bans


async def test_an_address_that_comes_back_is_refused_early(served: Opened) -> None:
    async with served(rate=Rate(20, 1), ban_s=1.5) as client:
        floods = [await Wire.open(client, HEALTH * 2_000, source="127.0.0.4") for _ in range(3)]
        await asyncio.gather(*(wire.rest() for wire in floods))
        assert refused(client) == {"flood": 3}
        early = await Wire.open(client, HEALTH, source="127.0.0.4")
        assert await early.rest() == b""
        assert refused(client)["banned"] == 1
        other = await Wire.open(client, HEALTH, source="127.0.0.5")
        assert (await other.answer())[0] == 200
        await eventually(lambda: not client.door.banned_s("127.0.0.4"))  # type: ignore[attr-defined]
        back = await Wire.open(client, HEALTH, source="127.0.0.4")
        assert (await back.answer())[0] == 200
        for wire in (*floods, early, other, back):
            wire.close()


async def test_a_client_behind_a_proxy_is_refused_and_no_other(served: Opened) -> None:
    async with served(BEHIND_PROXY, rate=Rate(10, 1)) as client:
        flood = HEALTH.replace(b"Host: h", b"Host: h\r\nX-Forwarded-For: 10.0.0.1")
        good = HEALTH.replace(b"Host: h", b"Host: h\r\nX-Forwarded-For: 10.0.0.2")
        wire = await Wire.open(client, flood * 200 + good)
        statuses = [(await wire.answer())[0] for _ in range(201)]
        assert statuses[:10] == [200] * 10
        assert set(statuses[20:200]) == {429}
        assert statuses[200] == 200
        assert client.door.banned_s("10.0.0.1") > 0  # type: ignore[attr-defined]
        wire.writer.write(flood.replace(b"/healthz", b"/ws"))
        assert (await wire.answer())[0] == 429
        wire.writer.write(HEALTH * 20)  # the proxy's own
        assert [(await wire.answer())[0] for _ in range(20)] == [200] * 20
        wire.close()


async def test_large_bodies_behind_a_proxy_are_only_slowed(served: Opened) -> None:
    body = orjson.dumps({"action": "accept", "trip_request_id": "default_t1"}) + b" " * 20_000
    head = f"{ACTION}X-Forwarded-For: 10.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with served(BEHIND_PROXY, rate=Rate(20, 1)) as client:
        wire = await Wire.open(client, (head + body) * 12)
        assert [(await wire.answer())[0] for _ in range(12)] == [200] * 12
        assert not refused(client)
        wire.close()


def test_bans_end_and_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bans_module, "_MAX_ADDRESSES", 100)
    bans = Bans(60)
    assert [bans.strike("a", now) for now in (0, 1, 2)] == [False, False, True]
    assert bans.remaining_s("a", 10) == 52
    assert bans.remaining_s("a", 62) == 0
    assert [bans.strike("b", now) for now in (0, 70, 140, 210)] == [False] * 4
    for number in range(1_000):
        bans.strike(str(number), 300)
    assert len(bans) == 100


def test_an_allowance() -> None:
    rate = Rate(10, 2)
    allowance = Allowance(rate, 0)
    allowance.left = 0
    assert allowance.wait_s(rate, 0) == pytest.approx(0.25)
    assert allowance.wait_s(rate, 0.25) == 0
    assert allowance.left == pytest.approx(1.25)
    assert allowance.wait_s(rate, 100) == 0
    assert allowance.left == 10
    assert [allowance.warn(now) for now in (100, 105, 120)] == [True, False, True]


# --- what is leant on


def test_what_is_leant_on_exists() -> None:
    slots = {*BaseProtocol.__slots__, *web.RequestHandler.__slots__}
    assert {
        "_messages", "_waiter", "_request_count", "_request_in_progress", "_current_request", "_paused",
        "_reading_paused", "_buffer_paused", "_lingering_time", "_message_tail", "_manager",
    } <= slots  # fmt: skip
    for name in ("_pause_transport_reading", "_resume_transport_reading", "force_close"):
        assert list(inspect.signature(getattr(web.RequestHandler, name)).parameters) == ["self"]
    assert isinstance(web.BaseRequest.protocol, property)
