"""The page of the API and its files: all from this server, under a strict policy."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import orjson

import dispatcher.web
from dispatcher.core.errors import PROBLEMS
from tests.unit.http_harness import Client

FOLDER = Path(dispatcher.web.__path__[0]) / "docs"
VENDORED = (FOLDER / "VENDORED.md").read_text()


async def test_all_comes_from_the_server_itself(client: Client) -> None:
    status, headers, page = await client.send("GET", "/docs")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["img-src"] == "'self' data:"
    text = page.decode()
    assert not re.search(r"(src|href)\s*=\s*['\"]?(https?:)?//", text)
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bstyle=|\bon\w+=", text), "nothing inline"
    named = set(re.findall(r'(?:src|href)="docs/([^"]+)"', text))
    assert named == {
        "swagger-ui.css", "docs.css", "swagger-ui-bundle.js", "docs.js", "openapi.json", "asyncapi.json",
    }  # fmt: skip
    for name in named:
        status, headers, _ = await client.send("GET", f"/docs/{name}")
        assert (status, headers["X-Content-Type-Options"]) == (200, "nosniff"), name
        tag = {"If-None-Match": headers["ETag"]}
        assert (await client.send("GET", f"/docs/{name}", headers=tag))[0] == 304
    for name in ("index.html", "VENDORED.md", "..%2Fauth.py"):
        status, _, problem = await client.send("GET", f"/docs/{name}")
        assert (status, problem["response_code"]) == (404, "not_found"), name


async def test_the_page_has_every_problem_and_the_same_documents(client: Client) -> None:
    _, _, page = await client.send("GET", "/docs")
    assert re.findall(r'<tr id="(\w+)">', page.decode()) == list(PROBLEMS)
    for name in ("openapi.json", "asyncapi.json"):
        assert (await client.send("GET", f"/docs/{name}"))[2] == (await client.send("GET", f"/{name}"))[
            2
        ]


def test_what_is_vendored_is_what_was_taken() -> None:
    listed = re.findall(r"`([^`]+)` \| `([0-9a-f]{64})`", VENDORED)
    assert {name for name, _ in listed} == {"swagger-ui-bundle.js", "swagger-ui.css"}
    for name, checksum in listed:
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == checksum
    licence = (FOLDER / "swagger-ui-license.txt").read_text()
    assert "Apache License" in licence
    assert "SmartBear" in licence


async def test_pages_of_the_documents_are_documents(client: Client) -> None:
    for name, version in (("openapi", "3.1.0"), ("asyncapi", "3.0.0")):
        status, headers, document = await client.send("GET", f"/{name}.json")
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert orjson.loads(orjson.dumps(document))[name] == version
