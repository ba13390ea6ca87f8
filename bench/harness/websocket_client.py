"""A minimal WebSocket client on a raw connection: one driver's app."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Protocol

from harness.encoding import pong_frame

TEXT, CLOSE, PING = 0x1, 0x8, 0x9


class SocketEvents(Protocol):
    """Receives what happens on the sockets of a load."""

    codes: Counter[str]

    def text(self, socket: WebSocketClient, text: bytes) -> None: ...
    def refused(self, socket: WebSocketClient, status: bytes) -> None: ...
    def lost(self, socket: WebSocketClient) -> None: ...


class WebSocketClient(asyncio.Protocol):
    """One driver's connection. Splits the stream into frames and hands each text to its load."""

    __slots__ = ("buffer", "index", "load", "started", "transport", "upgraded", "waiting")

    def __init__(self, load: SocketEvents, index: int) -> None:
        self.load = load
        self.index = index
        self.buffer = b""
        self.upgraded = False
        self.started = 0.0
        self.waiting = False  # for a welcome, an ack or an error
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.load.lost(self)

    def send(self, payload: bytes) -> None:
        if self.transport is not None:
            self.transport.write(payload)

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        at = 0
        if not self.upgraded:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.buffer = data
                return
            if data[9:12] != b"101":
                self.load.refused(self, data[9:12])
                return
            self.upgraded = True
            at = end + 4
        size = len(data)
        while size - at >= 2:
            length, start = data[at + 1], at + 2
            if length == 126:
                start += 2
                length = int.from_bytes(data[at + 2 : start], "big")
            elif length == 127:
                start += 8
                length = int.from_bytes(data[at + 2 : start], "big")
            if start + length > size:
                break
            opcode = data[at] & 0x0F
            at = start + length
            if opcode == TEXT:
                self.load.text(self, data[start:at])
            elif opcode == PING:
                self.send(pong_frame(data[start:at]))
            elif opcode == CLOSE:
                code = int.from_bytes(data[start : start + 2], "big")
                self.load.codes[f"closed {code}"] += 1
        self.buffer = data[at:]


def is_answer(text: bytes) -> bool:
    """Whether the frame answers a request or welcomes the driver. `type` is a frame's first field."""
    head = text[:40]
    return b'"ack"' in head or b'"error"' in head or b'"welcome"' in head


def frame_code(text: bytes) -> str:
    """The `type` of a frame; for an error, also its `response_code`."""
    at = text.find(b'"response_code":"')
    if b'"error"' in text[:40] and at >= 0:
        return "error " + text[at + 17 : text.find(b'"', at + 17)].decode()
    return text.partition(b'"type":"')[2].partition(b'"')[0].decode()
