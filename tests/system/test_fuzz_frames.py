"""Whatever comes over a WebSocket, as JSON or as bytes: an answer, or an end with a code that is told.

The server goes on, logs no error, and what it committed keeps the rules.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatcher.core.errors import PROBLEMS
from dispatcher.web.protocol import ClientFrameType, CloseCode, ServerFrameType
from tests.harness.servers import Serve, Server, make_token
from tests.system.test_fuzz import _OFF, _TOKENS, _send, objects, texts, values

#: Beside our own: what a client's own close frame is answered with (RFC 6455, 7.4.1).
_ECHOED = (1000, 1001, 3000, 4999)
_EXAMPLES = int(os.environ.get("FRAME_EXAMPLES", "60"))
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10


class Frame(NamedTuple):
    """A frame as it goes over the wire, right or wrong."""

    opcode: int
    payload: bytes
    is_final: bool = True
    reserved: int = 0
    is_masked: bool = True
    #: What the head says more or less than there is.
    off_by: int = 0

    def encoded(self) -> bytes:
        length = max(0, len(self.payload) + self.off_by)
        head = bytes([self.is_final << 7 | self.reserved << 4 | self.opcode])
        masked = self.is_masked << 7
        if length < 126:
            head += bytes([masked | length])
        elif length < 65_536:
            head += bytes([masked | 126]) + struct.pack("!H", length)
        else:
            head += bytes([masked | 127]) + struct.pack("!Q", length)
        if not self.is_masked:
            return head + self.payload
        mask = b"\x11\x22\x33\x44"
        return head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(self.payload))


frame_types = st.sampled_from([*ClientFrameType, *ServerFrameType]) | texts
json_frames = (
    st.tuples(
        objects,
        st.fixed_dictionaries({"type": frame_types}, optional={
            "id": values, "token": texts, "idempotency_key": values, "zone": texts,
        }),
    ).map(lambda parts: parts[0] | parts[1])
    | values
).map(lambda data: Frame(_TEXT, json.dumps(data).encode(errors="surrogatepass")))  # fmt: skip
wire_frames = st.builds(
    Frame,
    st.sampled_from([_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG, 3, 15]),
    st.binary(max_size=130) | st.sampled_from([b"", b"\x03\xe8", b"\x00", b'{"type":"heartbeat"}', b"x" * 66_000]),
    is_final=st.booleans(),
    reserved=st.sampled_from([0, 0, 0, 1, 4, 7]),
    is_masked=st.sampled_from([True, True, True, False]),
    off_by=st.sampled_from([0] * 12 + [-1, 1, 100_000]),
)  # fmt: skip


def _talk(
    server: Server, token: str | None, frames: list[Frame], *, answers: int = 0
) -> tuple[list[dict[str, Any]], int | None]:
    """Opens a socket, sends the frames and a goodbye; returns what came back, and the code of the end.

    The goodbye waits for so many frames of the server: those that it overtakes are not sent.
    """
    address = urlsplit(server.url)
    lines = ["GET /ws HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade",
             "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: " + base64.b64encode(b"0" * 16).decode()]  # fmt: skip
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    with socket.create_connection((str(address.hostname), address.port or 80), timeout=20) as sock:
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        reader = sock.makefile("rb")
        status = int(reader.readline().split()[1])
        while reader.readline() not in (b"\r\n", b""):
            pass
        if status != 101:
            assert status < 500
            return [], None
        got: list[dict[str, Any]] = []
        try:
            sock.sendall(b"".join(frame.encoded() for frame in frames))
            if answers:
                got, _ = _received(reader, answers)
            sock.sendall(Frame(_CLOSE, struct.pack("!H", 1000)).encoded())
        except OSError:
            pass  # it has hung up already
        # After a frame that says that more is to come, the server rightly waits.
        sock.settimeout(0.3 if any(frame.off_by > 0 for frame in frames) else 20)
        rest, code = _received(reader)
        return got + rest, code


def _received(reader: Any, most: int | None = None) -> tuple[list[dict[str, Any]], int | None]:
    """What the server says until its goodbye, and that; or so many frames."""
    got: list[dict[str, Any]] = []
    try:
        while len(got) != most and (head := reader.read(2)):
            length = head[1] & 127
            if length >= 126:
                length = int.from_bytes(reader.read(2 if length == 126 else 8), "big")
            payload = reader.read(length)
            if head[0] & 15 == _CLOSE:
                return got, struct.unpack("!H", payload[:2])[0] if payload else None
            if head[0] & 15 == _TEXT:
                got.append(json.loads(payload))
    except (ConnectionError, TimeoutError):
        pass  # ended without a goodbye, or the rest is waited for
    return got, None


@pytest.mark.timeout(300)
async def test_no_frame_makes_it_fail(serve: Serve, database_url: str) -> None:
    server = await serve(
        env={**_OFF, "DISPATCHER_LIMIT_CONNECTION": "100000/1", "DISPATCHER_BAN_S": "0"}
    )

    @settings(max_examples=_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from([*_TOKENS, *_TOKENS, None]),
        st.lists(json_frames, max_size=8) | st.lists(json_frames | wire_frames, max_size=4),
    )
    def fuzz(token: str | None, frames: list[Frame]) -> None:
        if token is None:
            frames = [Frame(_TEXT, json.dumps({"type": "auth", "token": _TOKENS[0]}).encode()), *frames]
        got, code = _talk(server, token, frames)
        assert code is None or code in {*CloseCode, *_ECHOED}, code
        for frame in got:
            assert frame["type"] in set(ServerFrameType), frame
            if frame["type"] == ServerFrameType.ERROR:
                problem = PROBLEMS[frame["response_code"]]
                assert frame["status"] == problem.status < 500, frame

    fuzz()
    assert [line for line in server.log_lines() if '"level":"error"' in line] == []
    assert _send(server, "GET", "/readyz", {}, None)[0] == 200
    postgres = await asyncpg.connect(database_url)
    try:
        wrong = await postgres.fetchval(
            """
            SELECT count(*) FROM trip_requests t
            WHERE t.version + 1 <> (SELECT count(*) FROM trip_events e WHERE e.trip_id = t.id)
            """
        )
        assert wrong == 0
    finally:
        await postgres.close()


async def test_a_frame_that_is_right_is_answered(serve: Serve) -> None:
    """So that the fuzzing above speaks a WebSocket at all."""
    server = await serve(env=_OFF)
    token = make_token("d1", "driver")
    frames = [Frame(_TEXT, b'{"type":"heartbeat","id":7}'), Frame(_TEXT, b'{"type":"nonsense","id":8}')]
    got, code = _talk(server, token, frames, answers=3)
    assert [frame["type"] for frame in got][:1] == ["welcome"]
    assert [(f["type"], f["id"]) for f in got if "id" in f] == [("ack", 7), ("error", 8)]
    assert code == 1000
