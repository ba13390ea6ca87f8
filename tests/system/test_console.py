"""The console in a real browser, over a server of its own."""

from __future__ import annotations

import asyncio
import re
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from playwright.async_api import expect

from tests.harness.console import NEEDS_CHROMIUM, SETTINGS, Apps
from tests.harness.servers import Serve, Server, make_token

pytestmark = NEEDS_CHROMIUM
MARKUP = "<img src=x onerror=\"document.title='run'\"><b>late</b>"
#: As a round of matching keeps it with an offer.
_SCORE = """{"total_s": 57.5, "way_s": 60.0, "waiting_s": -2.5, "idle_s": 0.0, "turned_down_s": 0.0,
    "open_offers_s": 0.0, "next": [{"driver_id": "d-2", "total_s": 80.0}]}"""


async def test_a_trip_on_screen_from_its_creation_to_its_end(
    server: Server, apps: Apps, open_screen: Any, database_url: str
) -> None:
    await apps.online("d-1", "d-2", "d-3")
    screen = await open_screen(server)
    await screen.sign_in()
    assert "token" not in screen.page.url, "the token is not left in the address"
    trip = await apps.ask()
    await screen.expect_state(trip, "Waiting")
    await expect(screen.row(trip).locator(".detail")).to_contain_text("wave 1")
    await screen.keep("waiting")
    await apps.act("d-3", "decline", trip)
    for action, state in (
        ("accept", "To pickup"), ("arrive", "At pickup"), ("start", "Riding"), ("complete", "Completed"),
    ):  # fmt: skip
        await apps.act("d-1", action, trip)
        await screen.expect_state(trip, state)
    await expect(screen.page.locator(".figure", has_text="Ended")).to_contain_text("1 · 0")

    # Its page holds what Postgres holds, row by row, once outcomes are written down.
    await _all_outcomes(database_url, trip)
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "UPDATE trip_offers SET score = $2 WHERE trip_id = $1 AND driver_id = 'd-1'", trip, _SCORE
    )
    await connection.execute(
        "INSERT INTO trip_races SELECT trip_id, version, 'd-4', created_at + interval '31 ms'"
        "  FROM trip_events WHERE trip_id = $1 AND event = 'accepted'", trip
    )  # fmt: skip
    await screen.row(trip).locator("a").click()
    await expect(screen.page.locator(".history li[data-kind=event]")).to_have_count(5)
    await expect(screen.page.locator("tr[data-offer]")).to_have_count(3)
    score = screen.page.locator("tr[data-offer*=' d-1 '] td[title]")
    await expect(score).to_have_text("57.5 s")
    await expect(score).to_have_attribute(
        "title", "way 60.0 s, the trip's waiting -2.5 s; next: d-2 80.0 s"
    )
    events = await connection.fetch(
        "SELECT version, event FROM trip_events WHERE trip_id = $1 ORDER BY version", trip
    )
    # A decline that was saved before its offer has a row of wave 0 as well, and is told with the offer.
    offers = await connection.fetch(
        "SELECT wave, driver_id, outcome FROM trip_offers WHERE trip_id = $1 AND wave > 0"
        " ORDER BY wave, driver_id", trip
    )  # fmt: skip
    await connection.close()
    shown = await screen.page.locator(".history li[data-kind=event]").evaluate_all(
        "all => all.map(e => [Number(e.dataset.version), e.dataset.event])"
    )
    assert shown == [list(row) for row in events]
    shown = await screen.page.locator("tr[data-offer]").evaluate_all(
        "all => all.map(e => e.dataset.offer)"
    )
    assert shown == [" ".join(map(str, row)) for row in offers]
    history = screen.page.locator(".history")
    await expect(history).to_contain_text("Wave 1 asked 3")
    await expect(history).to_contain_text("d-3 declined")
    await expect(history).to_contain_text("Too late: d-4 by 31 ms. Withdrawn from: d-2.")
    await screen.keep("trip")


async def test_the_page_of_a_trip_has_all_its_offers(
    server: Server, apps: Apps, open_screen: Any, database_url: str
) -> None:
    trip = await apps.ask()
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "INSERT INTO trip_offers (trip_id, driver_id, wave, offered_at, deadline, outcome, outcome_at)"
        " SELECT $1, 'd-' || i, 1, now(), now(), 'expired', now() FROM generate_series(1, 250) AS i", trip
    )  # fmt: skip
    await connection.close()
    screen = await open_screen(server)
    await screen.sign_in()
    await screen.row(trip).locator("a").click()
    await expect(screen.page.locator("tr[data-offer]")).to_have_count(250)


async def test_why_a_driver_is_not_asked(server: Server, apps: Apps, open_screen: Any) -> None:
    await apps.online("d-1")
    trip = await apps.ask(vehicle_type="van")
    screen = await open_screen(server)
    await screen.sign_in()
    await screen.row(trip).locator("a").click()
    await screen.page.get_by_label("Driver", exact=True).fill("d-1")
    await screen.page.get_by_label("Driver", exact=True).press("Enter")
    answer = screen.page.locator("[data-part=why]")
    await expect(answer.locator("[data-verdict]")).to_contain_text("no offer now")
    await expect(answer.locator("[data-filter=other_vehicle_type][data-passes=false]")).to_be_visible()
    await expect(answer.locator("[data-filter=not_present][data-passes=true]")).to_be_visible()
    await screen.keep("why")
    await screen.page.get_by_label("Driver", exact=True).fill("<b>nobody</b>")
    await screen.page.get_by_role("button", name="Explain").click()
    await expect(answer.get_by_role("alert")).to_be_visible()


async def _all_outcomes(database_url: str, trip: str) -> None:
    """Waits until Postgres knows what became of each offer."""
    connection = await asyncpg.connect(database_url)
    try:
        async with asyncio.timeout(20):
            while await connection.fetchval(
                "SELECT count(*) FILTER (WHERE outcome = 'open') + 1 - least(count(*), 1)"
                " FROM trip_offers WHERE trip_id = $1 AND wave > 0", trip
            ):  # fmt: skip
                await asyncio.sleep(0.1)
    finally:
        await connection.close()


async def test_drivers_move_and_have_a_page(server: Server, apps: Apps, open_screen: Any) -> None:
    await apps.online("d-1", "d-2", **{"User-Agent": MARKUP})
    screen = await open_screen(server, color_scheme="dark")
    await screen.sign_in()
    await screen.go("drivers")
    await expect(screen.row("d-1").locator(".state")).to_have_text(re.compile("Free|Offered"))
    picture = screen.page.locator("canvas.canvas")
    before = await picture.evaluate("canvas => canvas.toDataURL()")
    await apps.move("d-1", 40.7659, -73.9764)
    async with asyncio.timeout(15):
        while await picture.evaluate("canvas => canvas.toDataURL()") == before:
            await asyncio.sleep(0.1)
    await screen.row("d-1").locator("a").click()
    facts = screen.page.locator(".facts")
    await expect(facts).to_contain_text("40.76590, -73.97640")
    await expect(facts).to_contain_text("s old")
    # What an app calls itself is text, as everything is.
    await expect(screen.page.get_by_text(MARKUP)).to_be_visible()
    await expect(screen.page.locator("img[src=x]")).to_have_count(0)
    trip = await apps.ask()
    await apps.act("d-1", "accept", trip)
    await expect(screen.page.locator(".obstacles li[data-code=active_trip]")).to_be_visible()
    await screen.keep("driver-dark")
    # Where work is waiting, below all that, while it is asked for.
    heat, cells = screen.page.locator("#heat"), screen.page.locator(".heat-cell")
    await expect(cells).to_have_count(0)
    await heat.click()
    await expect(cells.first).to_be_attached()
    await screen.keep("heat")
    await heat.click()
    await expect(cells).to_have_count(0)


async def test_a_search_finds_by_trip_customer_and_driver(
    server: Server, apps: Apps, open_screen: Any
) -> None:
    await apps.online("d-1")
    first, second = await apps.ask("rider-1"), await apps.ask("rider-2")
    await apps.act("d-1", "accept", first)
    screen = await open_screen(server)
    await screen.sign_in()
    await expect(screen.row("default_")).to_have_count(2)
    search = screen.page.get_by_role("searchbox")
    for text, found in ((second, second), ("rider-1", first), ("d-1", first)):
        await search.fill(text)
        await expect(screen.row("default_")).to_have_count(1)
        await expect(screen.row("default_").locator("a")).to_have_attribute("title", found)
    await search.fill("<b>nobody</b>")
    await expect(screen.page.locator(".note")).to_contain_text("No trip, customer or driver")
    await screen.go("drivers")
    await screen.page.get_by_role("searchbox").fill("d-")
    await expect(screen.row("d-1")).to_have_count(1)


async def test_an_operator_assigns_takes_back_and_cancels_by_keyboard(
    server: Server, apps: Apps, open_screen: Any, database_url: str
) -> None:
    await apps.online("d-1", "d-2")
    trip = await apps.ask()
    screen = await open_screen(server)
    await screen.sign_in()
    page = screen.page
    await screen.go(f"trip/{trip}")
    await page.locator("[data-action=offer]").focus()
    await page.keyboard.press("Enter")
    dialog = page.locator("#confirm")
    await dialog.get_by_label("Driver", exact=True).fill("nobody")
    await page.keyboard.press("Enter")
    await expect(dialog.get_by_role("alert")).to_contain_text("There is no such driver")
    await dialog.get_by_label("Driver", exact=True).fill("d-2")
    await page.keyboard.press("Enter")
    await expect(page.locator("#notices")).to_contain_text("d-2 is asked.")
    await page.locator("[data-action=assign]").focus()
    await page.keyboard.press("Enter")
    await expect(dialog.get_by_role("button", name="Assign")).to_be_disabled()
    await dialog.get_by_label("Driver", exact=True).fill("nobody")
    await page.keyboard.press("Enter")
    await expect(dialog.get_by_role("alert")).to_have_text(
        "The driver is not online in the trip's zone."
    )
    await dialog.locator(".choice", has_text="d-1").click()
    await screen.keep("assign")
    await page.keyboard.press("Enter")
    await expect(page.locator("#notices")).to_contain_text("d-1 has the trip.")
    await expect(page.locator(".history")).to_contain_text("Assigned by admin operator-1")

    await screen.go("driver/d-1")
    await page.get_by_role("button", name="Force offline …").click()
    await dialog.get_by_role("button", name="Force offline").click()
    await expect(page.locator(".obstacles li[data-code=offline]")).to_be_visible()
    await screen.go(f"trip/{trip}")
    await expect(page.locator(".history")).to_contain_text(
        "Taken back: driver offline by admin operator-1"
    )

    await page.get_by_role("button", name="Cancel the trip …").click()
    await dialog.get_by_label("Reason").fill(MARKUP)
    await dialog.get_by_role("button", name="Cancel the trip").click()
    # Once in the trip's facts, and once in its history.
    await expect(page.get_by_text(MARKUP)).to_have_count(2)
    await expect(page.locator("img[src=x]")).to_have_count(0)
    assert await page.title() == "dispatcher console"

    stranded = await apps.ask("rider-2")
    for action in ("accept", "arrive", "start"):
        await apps.act("d-2", action, stranded)
    await screen.go(f"trip/{stranded}")
    await page.get_by_role("button", name="End the ride …").click()
    await dialog.get_by_role("button", name="End the ride").click()
    await expect(page.locator(".history")).to_contain_text(
        "Ended without the driver by admin operator-1"
    )

    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch(
        "SELECT event, actor_id, actor_role FROM trip_events WHERE trip_id = $1 ORDER BY version", trip
    )
    await connection.close()
    assert [tuple(row) for row in rows] == [
        ("created", "rider-1", "customer"), ("accepted", "operator-1", "admin"),
        ("released", "operator-1", "admin"), ("cancelled", "operator-1", "admin"),
    ]  # fmt: skip


async def test_it_comes_back_after_a_restart_of_the_server(
    serve: Serve, server: Server, apps: Apps, open_screen: Any
) -> None:
    await apps.online("d-1")
    trip = await apps.ask()
    screen = await open_screen(server)
    await screen.sign_in()
    await screen.expect_state(trip, "Waiting")
    await server.stop()
    await expect(screen.page.locator("#link")).to_contain_text("Reconnecting")
    port = str(urlsplit(server.url).port)
    again = await serve(env={**SETTINGS, "DISPATCHER_PORT": port})
    await expect(screen.page.locator("#link")).to_have_text("Live")
    async with Apps.of(again) as others:
        await others.act("d-1", "accept", trip)
    await screen.expect_state(trip, "To pickup")


async def test_a_phone_signs_in_with_a_token_that_is_pasted(
    server: Server, apps: Apps, open_screen: Any
) -> None:
    await apps.online("d-1")
    screen = await open_screen(
        server, viewport={"width": 390, "height": 844}, has_touch=True, device_scale_factor=2
    )
    page = screen.page
    await page.goto(f"{server.url}/")
    dialog = page.locator("#sign-in")
    token = dialog.get_by_label("Token")
    for wrong, says in (
        ("nonsense", "This is not a token"), (make_token("d-1", "driver"), "this one's is driver"),
        (make_token("a", "admin")[:-8] + "AAAAAAAA", "not valid"),
    ):  # fmt: skip
        await token.fill(wrong)
        await page.keyboard.press("Enter")
        await expect(dialog.get_by_role("alert")).to_contain_text(says)
    await token.fill(make_token("operator-1", "admin"))
    await page.keyboard.press("Enter")
    await expect(dialog).to_be_hidden()
    await screen.go("drivers")
    await expect(screen.row("d-1")).to_be_visible()
    width = await page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, "nothing makes the page wider than a phone"
    await screen.keep("phone")
    await page.get_by_role("button", name="Sign out").click()
    await expect(dialog).to_be_visible()
    assert await page.evaluate("sessionStorage.getItem('dispatcher.token')") is None
