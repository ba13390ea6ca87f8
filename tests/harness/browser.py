"""A real browser, and what may not happen in a page that it shows."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, Page, async_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_CHROMIUM = "there is no Chromium here: Debian's package chromium has one"
WAIT_MS = 15_000
_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync",
]  # fmt: skip


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """The machine's own Chromium, headless."""
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield started
        await started.close()


class Faults(list[str]):
    """What went wrong in a page: its errors, its policy broken, and whatever it asked of another server."""

    def __init__(self, page: Page, url: str) -> None:
        super().__init__()
        self._host = urlsplit(url).netloc
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on("console", self._on_message)
        page.on("request", self._on_request)

    def _on_message(self, message: Any) -> None:
        if "Content Security Policy" in message.text:
            self.append(message.text)

    def _on_request(self, request: Any) -> None:
        if urlsplit(request.url).netloc != self._host:
            self.append(f"asked elsewhere: {request.url}")
