"""A response that is whole when it is made, and leaves in one write."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web
from aiohttp.helpers import rfc822_formatted_time

#: Instead of aiohttp's own, which names versions.
SERVER: Final = "dispatcher"
_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in HTTPStatus}
#: Their head is another one: aiohttp's own response knows how.
_WITHOUT_BODY: Final = frozenset({204, 304})


class Reply:
    """Status, headers and body. aiohttp's response, which can also stream, costs six times as much."""

    __slots__ = ("body", "headers", "keep_alive", "status")

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.keep_alive = True

    def can_be_whole(self, request: web.BaseRequest) -> bool:
        """Whether `encode` may write it: HTTP/1.1, and an answer that has a body."""
        return (
            request.version == (1, 1)
            and request.method != hdrs.METH_HEAD
            and self.status not in _WITHOUT_BODY
        )

    def encode(self) -> bytes:
        """Head and body (RFC 9112, 3 and 6.3). Raises ValueError where a header holds a line break."""
        lines = [f"{name}: {value}\r\n" for name, value in self.headers.items()]
        if not self.keep_alive:
            lines.append("Connection: close\r\n")
        head = "".join(lines)
        if head.count("\n") != len(lines) or head.count("\r") != len(lines):
            raise ValueError("a header holds a line break")
        return (
            f"{_STATUS_LINES[self.status]}{head}Content-Length: {len(self.body)}\r\n"
            f"Date: {rfc822_formatted_time()}\r\nServer: {SERVER}\r\n\r\n"
        ).encode("latin-1") + self.body

    def as_response(self) -> web.Response:
        """The same as a response of aiohttp's."""
        headers = {**self.headers, hdrs.SERVER: SERVER}
        response = web.Response(body=self.body, status=self.status, headers=headers)
        if not self.keep_alive:
            response.force_close()
        return response
