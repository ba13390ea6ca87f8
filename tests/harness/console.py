"""The console's screen in a browser, and the apps whose trips it shows."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
from playwright.async_api import Page, expect

from tests.harness.browser import CHROMIUM, NO_CHROMIUM, WAIT_MS, Faults
from tests.harness.servers import Server, make_token

NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
#: Where CI keeps what the console looked like.
SCREENSHOTS = os.environ.get("CONSOLE_SCREENSHOTS")
HERE = {"lat": 40.7559, "lng": -73.9864}
expect.set_options(timeout=WAIT_MS)
#: Apps are not limited; the operator is, as by default.
SETTINGS = {
    f"DISPATCHER_LIMIT_{name}": "off" for name in ("TRIP_ACCEPT", "LOCATION_UPDATE", "GENERAL")
} | {"DISPATCHER_POSITION_FLUSH_S": "0.2", "DISPATCHER_DRAIN_S": "0"}  # fmt: skip


class Screen:
    """A page of the console, and whatever went wrong in it."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page = page
        self.server = server
        self.faults = Faults(page, server.url)
        page.set_default_timeout(WAIT_MS)

    async def sign_in(self) -> None:
        """Opens the link that signs in, as the demo prints it."""
        token = make_token("operator-1", "admin")
        await self.page.goto(f"{self.server.url}/console#token={token}")
        await expect(self.page.locator("#link")).to_have_text("Live")

    async def go(self, place: str) -> None:
        await self.page.goto(f"{self.server.url}/console#/{place}")

    def row(self, id_: str) -> Any:
        """The row of an id, or those of all ids that begin so."""
        return self.page.locator(f'.rows li:has(a[title^="{id_}"])')

    async def expect_state(self, trip: str, state: str) -> None:
        await expect(self.row(trip).locator(".state")).to_have_text(state)

    async def keep(self, name: str) -> None:
        """Keeps a picture for whoever looks at CI's files."""
        if SCREENSHOTS:
            await self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


class Apps:
    """The apps of drivers and riders, who call over HTTP; drivers are connected as well."""

    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self._server = server
        self._session = session
        self._sockets: list[aiohttp.ClientWebSocketResponse] = []

    async def post(self, path: str, role: str, user: str, body: dict[str, Any], **headers: str) -> Any:
        headers["Authorization"] = f"Bearer {make_token(user, role)}"
        url = f"{self._server.url}/api/{path}"
        async with self._session.post(url, json=body, headers=headers) as response:
            answer = await response.json(content_type=None)
            assert response.status < 300, answer
            return answer

    async def online(self, *names: str, **headers: str) -> None:
        for i, name in enumerate(names):
            body = {"is_online": True, "availability_status": "available",
                    "location": {**HERE, "lat": HERE["lat"] + i * 0.004}}  # fmt: skip
            await self.post("driver/availability", "driver", name, body)
            # Who has no socket is present only once their calls have been told of.
            headers["Authorization"] = f"Bearer {make_token(name, 'driver')}"
            socket = await self._session.ws_connect(
                f"{self._server.url}/ws", headers=headers, timeout=aiohttp.ClientWSTimeout(ws_close=1)
            )
            self._sockets.append(socket)  # nobody else holds it
            await socket.receive()

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, server: Server) -> AsyncIterator[Self]:
        """The apps of a server, until the end of the block.

        Their sockets are closed: one that the garbage collector finds is a warning, in whichever test.
        """
        async with aiohttp.ClientSession() as session:
            apps = cls(server, session)
            try:
                yield apps
            finally:
                await asyncio.gather(*(socket.close() for socket in apps._sockets))

    async def move(self, name: str, lat: float, lng: float) -> None:
        await self.post("driver/ride/location", "driver", name, {"lat": lat, "lng": lng})

    async def ask(self, rider: str = "rider-1", **more: Any) -> str:
        body = {"pickup": HERE, "dropoff": {"lat": 40.78, "lng": -73.95}, **more}
        return str((await self.post("customer/ride/create", "customer", rider, body))["trip"]["id"])

    async def act(self, name: str, action: str, trip: str) -> None:
        await self.post(
            "driver/ride/trip-action", "driver", name, {"action": action, "trip_request_id": trip}
        )
