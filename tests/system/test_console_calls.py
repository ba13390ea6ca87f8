"""How often the console calls the server, and what it shows where a call is not answered."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.async_api import Page, Route, expect

from dispatcher.embedded.valkey import Valkey
from tests.harness.console import NEEDS_CHROMIUM, SETTINGS, Apps
from tests.harness.servers import Serve, Server

pytestmark = NEEDS_CHROMIUM
_HIDE = """isHidden => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => isHidden });
  dispatchEvent(new Event("visibilitychange"));
}"""


class Calls(list[str]):
    """The paths of a page's calls to the API."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        page.on("request", self._on_request)

    def _on_request(self, request: Any) -> None:
        if found := re.search(r"/api/(admin/.*)", request.url):
            self.append(found[1])


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not holds():
            await asyncio.sleep(0.05)


async def test_a_page_is_one_call_and_none_while_nobody_sees_it(
    server: Server, apps: Apps, open_screen: Any
) -> None:
    await apps.online("d-1")
    trip = await apps.ask()
    screen = await open_screen(server)
    await screen.sign_in()
    calls = Calls(screen.page)
    await screen.go(f"trip/{trip}")
    await expect(screen.page.locator(".history li[data-kind=event]")).to_have_count(1)
    # On news of the trip, which may come at this moment, it is made once more.
    assert set(calls) == {f"admin/ride/{trip}/timeline"}
    calls.clear()
    await screen.go("driver/d-1")
    await expect(screen.page.locator(".facts")).to_contain_text("s old")
    assert set(calls) == {"admin/driver/d-1"}

    # Where the driver is comes with the frames.
    await _until(lambda: bool(calls))
    await screen.page.evaluate(_HIDE, True)
    calls.clear()
    await apps.move("d-1", 40.7659, -73.9764)
    await expect(screen.page.locator(".facts")).to_contain_text("40.76590, -73.97640")
    await apps.act("d-1", "accept", trip)
    await screen.go("trips")
    await screen.expect_state(trip, "To pickup")
    await screen.go("driver/d-1")
    await expect(screen.page.locator("article.page")).to_be_visible()
    assert calls == []
    await screen.page.evaluate(_HIDE, False)
    await expect(screen.page.locator(".obstacles li[data-code=active_trip]")).to_be_visible()
    assert calls == ["admin/driver/d-1"]


async def test_a_page_knows_the_place_of_a_driver_whom_the_frames_tell_of_later(
    server: Server, apps: Apps, open_screen: Any
) -> None:
    await apps.online("d-1", "d-2")
    await apps.post("driver/availability", "driver", "d-1", {"is_online": False})
    screen = await open_screen(server)
    await screen.sign_in()
    await screen.go("drivers")
    await expect(screen.row("d-2")).to_be_visible()
    await expect(screen.row("d-1")).to_have_count(0)
    await screen.go("driver/d-1")
    await expect(screen.page.locator(".facts")).to_contain_text("40.75590, -73.98640")

    await screen.page.evaluate(_HIDE, True)
    there = {"lat": 40.7659, "lng": -73.9764}
    body = {"is_online": True, "availability_status": "available", "location": there}
    await apps.post("driver/availability", "driver", "d-1", body)
    await expect(screen.page.locator(".facts")).to_contain_text("40.76590, -73.97640")


async def test_a_page_that_could_not_be_read_says_so_and_is_read_again(
    server: Server, apps: Apps, open_screen: Any
) -> None:
    await apps.online("d-1")
    trip = await apps.ask()
    screen = await open_screen(server)
    await screen.sign_in()
    page = screen.page
    await screen.go("driver/d-1")
    facts, fault = page.locator(".facts"), page.locator(".page > .fault")
    await expect(facts).to_contain_text("s old")
    await expect(fault).to_be_hidden()

    async def lose(route: Route) -> None:
        await route.abort()

    async def limit(route: Route) -> None:
        problem = '{"response_code": "rate_limit_exceeded", "message": "Too many requests."}'
        await route.fulfill(status=429, body=problem, headers={"Retry-After": "1"})

    await page.route("**/api/admin/driver/d-1", lose)
    await apps.act("d-1", "accept", trip)
    await expect(fault).to_contain_text("The server did not answer. This is as of")
    await expect(facts).to_be_visible()
    await page.unroute("**/api/admin/driver/d-1")
    # Nothing more happens to the driver: the page comes back by itself.
    await expect(page.locator(".obstacles li[data-code=active_trip]")).to_be_visible()
    await expect(fault).to_be_hidden()

    await page.route("**/api/admin/ride/*/timeline", limit)
    await screen.go(f"trip/{trip}")
    await expect(fault).to_contain_text("Too many requests.")
    await page.unroute("**/api/admin/ride/*/timeline")
    await expect(page.locator(".history li[data-kind=event]")).to_have_count(2)
    await page.route("**/api/admin/ride/*/timeline", limit)
    await apps.act("d-1", "arrive", trip)
    await expect(fault).to_contain_text("Too many requests. This is as of")
    await expect(page.locator(".history li[data-kind=event]")).to_have_count(2)
    await page.unroute("**/api/admin/ride/*/timeline")
    await expect(page.locator(".history li[data-kind=event]")).to_have_count(3)
    await expect(fault).to_be_hidden()


async def test_a_page_opened_while_the_server_is_away_comes_when_it_is_back(
    serve: Serve, server: Server, apps: Apps, open_screen: Any
) -> None:
    await apps.online("d-1")
    screen = await open_screen(server)
    await screen.sign_in()
    await server.stop()
    await expect(screen.page.locator("#link")).to_contain_text("Reconnecting")
    await screen.go("driver/d-1")
    await expect(screen.page.locator(".page > .fault")).to_contain_text("The server did not answer.")
    await serve(env={**SETTINGS, "DISPATCHER_PORT": server.url.rpartition(":")[2]})
    await expect(screen.page.locator("#link")).to_have_text("Live")
    await expect(screen.page.locator(".facts")).to_contain_text("40.75590, -73.98640")
    await expect(screen.page.locator(".page > .fault")).to_be_hidden()


async def test_an_action_keeps_its_key_until_it_is_answered(
    server: Server, apps: Apps, open_screen: Any
) -> None:
    await apps.online("d-1")
    screen = await open_screen(server)
    await screen.sign_in()
    await screen.go("driver/d-1")
    keys: list[str] = []
    refusals = ["trip_busy", "", "", "", "", ""]

    async def intercept(route: Route) -> None:
        keys.append(route.request.headers["idempotency-key"])
        if not refusals:
            await route.continue_()
        elif code := refusals.pop(0):
            await route.fulfill(status=409, body=f'{{"response_code": "{code}", "message": "Busy."}}')
        else:
            await route.abort()

    await screen.page.route("**/api/admin/driver/offline", intercept)
    await screen.page.get_by_role("button", name="Force offline …").click()
    dialog = screen.page.locator("#confirm")
    button = dialog.get_by_role("button", name="Force offline")
    await button.click()
    await expect(dialog.get_by_role("alert")).to_have_text("The server did not answer.")
    await button.click()
    await expect(screen.page.locator("#notices")).to_contain_text("d-1 is offline.")
    assert len(keys) == 7
    assert len(set(keys)) == 1


async def test_a_picture_without_redis_says_of_when_it_is(
    serve: Serve, database_url: str, data_dir: Path, open_screen: Any
) -> None:
    valkey = Valkey(data_dir / "valkey")
    valkey.start()
    assert valkey.process is not None
    try:
        server = await serve(
            env={
                **SETTINGS,
                "DISPATCHER_REDIS_URL": valkey.url,
                "DISPATCHER_REDIS_TIMEOUT_S": "0.5",
            }
        )
        async with Apps.of(server) as apps:
            await apps.online("d-1")
            screen = await open_screen(server)
            await screen.sign_in()
            await screen.go("drivers")
            await expect(screen.row("d-1").locator(".state")).to_have_text("Free")
            os.kill(valkey.process.pid, signal.SIGSTOP)
            trip = await apps.ask()
            link = screen.page.locator("#link")
            await expect(link).to_have_text(
                re.compile(r"^Picture of \d+ s ago: Redis is \w+, Postgres decides$")
            )
            await screen.go("trips")
            await screen.expect_state(trip, "Waiting")
            await expect(screen.page.locator(".figure", has_text="Waiting")).to_contain_text("1")
            await expect(screen.page.locator(".figure", has_text="Postgres")).to_contain_text(
                re.compile(r"\d ms")
            )
            await screen.go("driver/d-1")
            await expect(screen.page.locator(".facts")).to_contain_text("not known while Redis is away")
            await screen.go(f"trip/{trip}")
            await screen.page.get_by_label("Driver", exact=True).fill("d-1")
            await screen.page.get_by_role("button", name="Explain").click()
            verdict = screen.page.locator("[data-verdict=not_known]")
            await expect(verdict).to_contain_text("not known while Redis is away")
            await screen.keep("without-redis")
            os.kill(valkey.process.pid, signal.SIGCONT)
            await expect(link).to_have_text("Live", timeout=30_000)
            await server.stop()
    finally:
        os.kill(valkey.process.pid, signal.SIGCONT)
        valkey.stop()
