"""A WebSocket endpoint over real sockets and services that take notes, and a client of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from dispatcher.config import Settings
from dispatcher.core.actors import Actor
from dispatcher.core.errors import Refusal
from dispatcher.observe.metrics import Metrics
from dispatcher.service.hub import Hub
from dispatcher.service.presence import Connection
from dispatcher.web.application import build_application
from dispatcher.web.auth import Authenticator
from dispatcher.web.client_ip import ClientIp
from dispatcher.web.door import Door
from dispatcher.web.fastpath import make_runner
from dispatcher.web.websocket_endpoint import WebSocketEndpoint
from tests.harness.servers import JWT_SECRET
from tests.unit.http_harness import (
    DRIVER,
    Notes,
    boundary_of,
    check_problem,
    commands_as_notes,
    frame_handlers_of,
    handlers_of,
)

#: What asks for a WebSocket (RFC 6455, 4.1).
HANDSHAKE = {
    "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


class NotedPresence:
    """Notes who came and who left."""

    def __init__(self) -> None:
        self.present: list[str] = []
        self.failure: Exception | None = None

    async def register(self, id_: str, actor: Actor, ip: str | None, user_agent: str) -> Connection:
        if self.failure is not None:
            raise self.failure
        self.present.append(actor.user_id)
        return Connection(id_, actor, "default", "")

    def seen(self, connection: Connection) -> None:
        connection.seen = time.monotonic()

    async def remove(self, connection: Connection) -> None:
        self.present.remove(connection.actor.user_id)


class NotedSnapshots:
    """Snapshots, which fail with these errors first, and wait where the gate is closed."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def of(self, actor: Actor) -> dict[str, Any]:
        self.asked += 1
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop()
        return {"of": actor.user_id}


class NotedZoneViews:
    """Notes who watches which zone."""

    def __init__(self) -> None:
        self.watching: dict[Any, str] = {}

    def watch(self, zone: str, viewer: Any) -> None:
        if zone != "default":
            raise Refusal("invalid_zone")
        self.watching[viewer] = zone

    def unwatch(self, viewer: Any) -> None:
        self.watching.pop(viewer, None)


class NotedChannels:
    """Listens to nothing; remembers for whom it would."""

    def __init__(self) -> None:
        self.open_for: list[str] = []

    async def open(self, address: str, zone: str) -> None:
        self.open_for.append(address)

    async def follow(self, address: str, zones: Any) -> bool:
        assert address in self.open_for
        return False

    def close(self, address: str) -> None:
        self.open_for.remove(address)


class App:
    """A session of clients, the endpoint that they connect to, and what its services noted."""

    def __init__(self, session: aiohttp.ClientSession, url: str, **parts: Any) -> None:
        self.session, self.url = session, url
        self.notes: Notes = parts["notes"]
        self.endpoint: WebSocketEndpoint = parts["endpoint"]
        self.hub: Hub = parts["hub"]
        self.presence: NotedPresence = parts["presence"]
        self.snapshots: NotedSnapshots = parts["snapshots"]
        self.zone_views: NotedZoneViews = parts["zone_views"]
        self.channels: NotedChannels = parts["channels"]

    async def connect(
        self, token: str | None = DRIVER, **headers: str
    ) -> aiohttp.ClientWebSocketResponse:
        if token is not None:
            headers.setdefault("Authorization", f"Bearer {token}")
        return await self.session.ws_connect(self.url, headers=headers)

    async def refused(self, **headers: str) -> tuple[Any, Any]:
        """(headers, problem) of an upgrade that is refused."""
        return await self.refused_call(**{**HANDSHAKE, **headers})

    async def refused_call(self, **headers: str) -> tuple[Any, Any]:
        """The same of any call."""
        async with self.session.get(self.url, headers=headers) as response:
            problem = orjson.loads(await response.read())
            check_problem(response.status, response.headers, problem)
            return response.headers, problem


async def frame(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    message = await socket.receive(timeout=10)
    assert message.type is aiohttp.WSMsgType.TEXT, message
    read: dict[str, Any] = orjson.loads(message.data)
    return read


async def closed(socket: aiohttp.ClientWebSocketResponse) -> int | None:
    async for _ in socket:
        pass
    return socket.close_code


@contextlib.asynccontextmanager
async def open_app(door: Door | None = None) -> AsyncIterator[App]:
    """A server of its own, and a client of it."""
    notes, hub, presence, metrics = Notes(), Hub(), NotedPresence(), Metrics()
    settings = Settings(jwt_secret=JWT_SECRET)
    service: Any = notes
    shown: Any = presence
    snapshots = NotedSnapshots()
    read: Any = snapshots
    zone_views = NotedZoneViews()
    views: Any = zone_views
    channels = NotedChannels()
    listening: Any = channels
    endpoint = WebSocketEndpoint(
        authenticator=Authenticator.from_settings(settings),
        client_ip=ClientIp([]),
        frames=frame_handlers_of(notes),
        hub=hub, channels=listening, presence=shown, snapshots=read, zone_views=views, limits=service,
        allowed_origins=["https://listed.example"], heartbeat_timeout_s=60,
    )  # fmt: skip
    application = build_application(
        handlers_of(notes, metrics), boundary_of(settings, notes, []), websocket=endpoint.handle
    )
    runner = make_runner(application, door=door)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/ws"
    with commands_as_notes():
        async with aiohttp.ClientSession() as session:
            yield App(
                session, url,
                notes=notes, endpoint=endpoint, hub=hub, presence=presence, snapshots=snapshots,
                zone_views=zone_views, channels=channels,
            )  # fmt: skip
    await runner.cleanup()
