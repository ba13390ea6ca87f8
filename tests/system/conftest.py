"""A browser, and a server with apps, for tests of the console."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Browser

from tests.harness.browser import open_browser
from tests.harness.console import SETTINGS, Apps, Screen
from tests.harness.servers import Serve, Server


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as started:
        yield started


@pytest.fixture
async def open_screen(browser: Browser) -> AsyncIterator[Any]:
    """Opens screens, and finds at the end that none of them broke its rules."""
    screens: list[Screen] = []
    contexts = []

    async def opened(server: Server, **options: Any) -> Screen:
        context = await browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        screens.append(Screen(await context.new_page(), server))
        return screens[-1]

    yield opened
    for context in contexts:
        await context.close()
    assert [fault for screen in screens for fault in screen.faults] == []


@pytest.fixture
async def server(serve: Serve) -> Server:
    return await serve(env=SETTINGS)


@pytest.fixture
async def apps(server: Server) -> AsyncIterator[Apps]:
    async with Apps.of(server) as apps:
        yield apps
