"""The page of the API in a real browser, over a server of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.async_api import expect

from dispatcher.core.errors import PROBLEMS
from dispatcher.web.endpoints import ENDPOINTS
from tests.harness.browser import CHROMIUM, NO_CHROMIUM, WAIT_MS, Faults, open_browser
from tests.harness.servers import Serve, make_token

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)


async def test_every_operation_is_shown_and_one_is_tried(serve: Serve) -> None:
    # The page has copies of the documents, which are not shown here themselves.
    server = await serve(env={"DISPATCHER_PUBLIC_PAGES": "docs", "DISPATCHER_DRAIN_S": "0"})
    async with open_browser() as browser:
        page = await browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
        page.set_default_timeout(WAIT_MS)
        faults = Faults(page, server.url)
        await page.goto(f"{server.url}/docs")
        await expect(page.locator(".opblock")).to_have_count(len(ENDPOINTS), timeout=WAIT_MS)
        await expect(page.locator("html")).to_have_class("dark-mode")
        shown = await page.locator(".opblock-summary-control").all_inner_texts()
        assert sorted(" ".join(text.split()[:2]).replace("\u200b", "") for text in shown) == sorted(
            f"{endpoint.method} {endpoint.path}" for endpoint in ENDPOINTS
        )
        await expect(page.locator("#problems tbody tr")).to_have_count(len(PROBLEMS))
        if pictures := os.environ.get("CONSOLE_SCREENSHOTS"):
            await page.screenshot(path=Path(pictures) / "docs.png")

        await page.locator(".btn.authorize").click()
        await page.locator(".auth-container input").fill(make_token("d1", "driver"))
        await page.locator(".auth-container button[type=submit]").click()
        await page.locator(".auth-container .btn-done").click()
        block = page.locator("#operations-driver-availability")
        await block.locator(".opblock-summary-control").click()
        await block.locator(".try-out__btn").click()
        await block.locator(".execute").click()
        answer = block.locator(".live-responses-table tbody").first
        await expect(answer).to_contain_text("availability_updated", timeout=WAIT_MS)
        assert faults == []
    assert await server.stop() == 0
