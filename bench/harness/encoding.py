"""Encodes HTTP/1.1 requests and WebSocket frames, which happens before the clock starts."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import jwt
import orjson

AUDIENCE = "dispatcher"


@lru_cache(maxsize=200_000)
def token(secret: str, role: str, subject: str) -> str:
    """A bearer token as an identity provider would issue it, valid for a day."""
    now = int(time.time())
    claims = {"sub": subject, "role": role, "aud": AUDIENCE, "iat": now - 1, "exp": now + 86_400}
    return jwt.encode(claims, secret, algorithm="HS256")


def request(
    method: str, path: str, body: Any = None, *, bearer: str | None = None, key: str | None = None
) -> bytes:
    """One keep-alive request. `key` is the `Idempotency-Key`."""
    payload = b"" if body is None else orjson.dumps(body)
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\n"
    if bearer is not None:
        head += f"Authorization: Bearer {bearer}\r\n"
    if key is not None:
        head += f"Idempotency-Key: {key}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
    return head.encode() + b"\r\n" + payload


def websocket_handshake(path: str, *, bearer: str) -> bytes:
    """The opening handshake; the nonce may be constant, since nothing here caches answers."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YmVuY2gtYmVuY2gtYmVuYw==\r\n"
        f"Authorization: Bearer {bearer}\r\n\r\n"
    ).encode()


def text_frame(message: Any) -> bytes:
    """A client's text frame.

    RFC 6455 5.3 asks for a mask, and an all-zero one is legal: the server unmasks as usual, while
    the generator sends the payload unchanged.
    """
    return _frame(0x81, orjson.dumps(message))


def pong_frame(payload: bytes) -> bytes:
    return _frame(0x8A, payload)


def _frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65_536:
        head = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload


def address(url: str) -> tuple[str, int]:
    """Host and port of a URL."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80
