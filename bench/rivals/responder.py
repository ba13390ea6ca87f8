"""The least a server can do: one canned answer for each chunk that arrives. Shows the ceiling of
the load generator itself."""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop


def canned(size: int) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + b"x" * size


class Responder(asyncio.Protocol):
    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = transport.write  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.write(self.answer)


async def main(size: int) -> None:
    answer = canned(size)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Responder(answer), "127.0.0.1", 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    print("ready", json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
