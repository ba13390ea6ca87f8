"""The console's page and files, and the questions that it asks."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

import dispatcher.web
from dispatcher.config import SettingsError, load_settings
from dispatcher.core.actors import Actor, Role
from dispatcher.core.drivers import Driver
from dispatcher.core.obstacles import Obstacle
from dispatcher.web.console_pages import ConsolePages
from tests.unit.http_harness import ADMIN, DRIVER, TRIP, Client

FOLDER = Path(dispatcher.web.__path__[0]) / "console"
#: Of what was taken as it is from others: name, version and checksum.
VENDORED = (FOLDER / "VENDORED.md").read_text()


async def test_the_root_leads_to_the_console(client: Client) -> None:
    status, headers, _ = await client.send("GET", "/", allow_redirects=False)
    assert (status, headers["Location"]) == (302, "console")
    status, headers, page = await client.send("GET", "/console")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"<title>" in page


async def test_all_comes_from_the_server_itself(client: Client) -> None:
    _, headers, page = await client.send("GET", "/console")
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert (
        policy.pop("default-src") == policy.pop("base-uri") == policy.pop("frame-ancestors") == "'none'"
    )
    assert policy.pop("form-action") == "'none'"
    assert set(policy.values()) == {"'self'"}
    text = page.decode()
    assert not re.search(r"(src|href)\s*=\s*['\"]?(https?:)?//", text)
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bstyle=|\bon\w+=", text), "nothing inline"
    named = set(re.findall(r'(?:src|href)="console/([^"]+)"', text))
    assert named
    modules = {path.name for path in FOLDER.glob("*.js")}
    for name in named | modules:
        status, headers, body = await client.send("GET", f"/console/{name}")
        assert status == 200, name
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert set(re.findall(rb'from "\./([^"]+)"', body)) <= {module.encode() for module in modules}
        tag = headers["ETag"]
        status, _, body = await client.send("GET", f"/console/{name}", headers={"If-None-Match": tag})
        assert (status, body) == (304, b"")


async def test_nothing_else_is_served(client: Client) -> None:
    for name in ("index.html", "VENDORED.md", "..%2Fauth.py", "nothing.js"):
        status, _, problem = await client.send("GET", f"/console/{name}")
        assert (status, problem["response_code"]) == (404, "not_found"), name


def test_what_is_vendored_is_what_was_taken() -> None:
    listed = re.findall(r"`([^`]+)` \| `([0-9a-f]{64})`", VENDORED)
    assert {name for name, _ in listed} == {"leaflet.js", "leaflet.css"}
    for name, checksum in listed:
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == checksum
    assert "BSD" in (FOLDER / "leaflet-license.txt").read_text()


def test_ids_and_reasons_never_become_markup() -> None:
    """The page is made of text nodes: nothing in our modules parses markup, whoever wrote it."""
    for module in FOLDER.glob("*.js"):
        if module.name == "leaflet.js":
            continue
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|new Function",
            module.read_text(),
        )
        assert found == [], module.name


def test_every_obstacle_of_a_driver_is_in_words() -> None:
    words = (FOLDER / "words.js").read_text().split("export const OBSTACLES = {")[1].split("};")[0]
    shown = re.findall(r"^  (\w+): ", words, re.MULTILINE)
    told = Driver("d1", "default", trip_id="default_1").obstacles(None, 0)
    told += [Obstacle.STALE_POSITION, Obstacle.NOT_PRESENT, Obstacle.ENOUGH_OFFERS]
    assert shown == [code for code in Obstacle if code in told] == told


def test_tiles_extend_the_policy_by_their_host_alone() -> None:
    pages = ConsolePages("https://{s}.tiles.example/{z}/{x}/{y}.png")
    assert "img-src 'self' https://*.tiles.example;" in pages._headers["Content-Security-Policy"]
    for wrong in (
        "javascript:alert(1)",
        "https://tiles.example",
        "https://a;script-src */{z}",
        "ftp://a/b",
        "https://tiles.example/{x}/{y}.png",
    ):
        with pytest.raises(SettingsError, match="DISPATCHER_CONSOLE_TILE_URL"):
            load_settings(console_tile_url=wrong)


async def test_what_operators_ask_is_passed_on(client: Client) -> None:
    async def asked(path: str) -> object:
        status, _, answer = await client.send("GET", f"/api/admin/{path}", ADMIN)
        assert status == 200, answer
        return client.notes.calls[-1]

    assert await asked("rides?search=d1&status=pending&zone=default&limit=7&after=12~default_x") == (
        "trips",
        {
            "search": "d1",
            "zone": "default",
            "statuses": ["pending"],
            "after": "12~default_x",
            "limit": 7,
        },
    )
    assert await asked(f"ride/{TRIP}/offers?after=3~d1") == ("trip_offers", (TRIP, "3~d1", 50))
    assert await asked("drivers?search=a&online=true") == (
        "drivers",
        {"search": "a", "zone": None, "only_online": True, "after": None, "limit": 50},
    )
    assert await asked("driver/d%7C1") == ("driver", "d|1")
    assert await asked("driver/d1/offers") == ("driver_offers", ("d1", None, 50))
    assert await asked(f"ride/{TRIP}") == ("read", TRIP)
    _, _, zones = await client.send("GET", "/api/admin/zones", ADMIN)
    assert zones["map"] == {"tile_url": None, "attribution": ""}
    for path in ("rides", "drivers", "zones", "driver/d1", f"ride/{TRIP}"):
        status, _, _ = await client.send("GET", f"/api/admin/{path}", DRIVER)
        assert status == 403


async def test_wrong_questions_are_refused_by_name(client: Client) -> None:
    for path, code in (
        ("rides?after=x", "invalid_body"), ("rides?limit=0", "invalid_body"),
        ("rides?status=lost", "invalid_body"), ("driver/%20", "invalid_driver_id"),
        ("driver/<b>", "invalid_driver_id"), ("rides?search=a%00", "invalid_body"),
    ):  # fmt: skip
        status, _, problem = await client.send("GET", f"/api/admin/{path}", ADMIN)
        assert (status, problem["response_code"]) == (400, code), path


async def test_what_operators_do_is_passed_on(client: Client) -> None:
    operator = Actor("a1", Role.ADMIN)
    await client.send(
        "POST", "/api/admin/ride/assign", ADMIN,
        {"trip_request_id": TRIP, "driver_id": "d1", "version": 0}, headers={"Idempotency-Key": "k"},
    )  # fmt: skip
    name, got = client.notes.calls[-1]
    assert (name, got["actor"], got["driver_id"], got["version"]) == ("assign", operator, "d1", 0)
    assert got["key"].endpoint == "/api/admin/ride/assign"
    await client.send("POST", "/api/admin/driver/offline", ADMIN, {"driver_id": "d1"})
    name, got = client.notes.calls[-1]
    assert (name, got["actor"], got["driver_id"]) == ("force_offline", operator, "d1")
