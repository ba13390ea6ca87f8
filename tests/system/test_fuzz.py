"""Whatever is sent to whichever endpoint: no 5xx, and a problem for every 4xx.

FUZZ_EXAMPLES=3000 in the environment looks longer.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatcher.core.errors import PROBLEMS
from dispatcher.web.endpoints import ENDPOINTS
from tests.harness.servers import Serve, Server, make_token

_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "500"))
_OFF = {f"DISPATCHER_LIMIT_{n}": "off" for n in
        ("TRIP_ACCEPT", "TRIP_CANCEL", "LOCATION_UPDATE", "GENERAL", "OPERATOR", "ANONYMOUS")}  # fmt: skip
_TOKENS = [make_token(f"{role}-1", role) for role in ("driver", "customer", "admin")]
_PATHS = [(e.method, e.path) for e in ENDPOINTS if e.name not in ("websocket", "readyz")]
#: What the fields of bodies are called, so that wrong values get as far as they can.
_NAMES = ["action", "trip_request_id", "version", "reason", "pickup", "dropoff", "lat", "lng", "zone",
          "vehicle_type", "recorded_at", "points", "availability_status", "is_online", "location", "x"]  # fmt: skip

texts = st.text(max_size=40) | st.sampled_from(
    ["accept", "decline", "arrive", "start", "complete", "cancel", "default", "default_t1", "default_x",
     "default_{x}", "car", "available", "unavailable", "2026-01-01T00:00:00Z", "\0", "a b"]
)  # fmt: skip
numbers = (
    st.integers()
    | st.integers(0, 3)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.floats(-90, 90)
)
places = st.fixed_dictionaries({"lat": st.floats(-90, 90), "lng": st.floats(-181, 181)})
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars | places,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
)
objects = st.dictionaries(st.sampled_from(_NAMES), values, max_size=8) | st.fixed_dictionaries(
    {"trip_request_id": st.sampled_from(["default_t1", "default_t2", "t3"])},
    optional={
        "action": st.sampled_from(["accept", "decline", "arrive", "start", "complete", "cancel"]),
        "version": st.integers(0, 5), "reason": st.text(max_size=10), "pickup": places,
        "is_online": st.booleans(), "lat": st.floats(-85, 85), "lng": st.floats(-180, 180),
    },
)  # fmt: skip
bodies = objects.map(lambda data: json.dumps(data).encode(errors="surrogatepass")) | st.binary(
    max_size=200
)
header_texts = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=300)
extra_headers = st.dictionaries(
    st.sampled_from(
        ["Idempotency-Key", "X-Request-Id", "X-Forwarded-For", "Content-Type", "Content-Encoding",
         "If-None-Match", "Accept", "Expect", "Authorization", "Transfer-Encoding"]
    ),
    header_texts | st.sampled_from(['"1"', "k1", "application/json", "*", "gzip", "chunked"]),
    max_size=3,
)  # fmt: skip


@pytest.fixture
async def server(serve: Serve) -> AsyncIterator[Server]:
    yield await serve(env=_OFF)


def _send(
    server: Server, method: str, path: str, headers: dict[str, str], body: bytes | None
) -> tuple[int, dict[str, str], bytes]:
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=20)
    try:
        # By hand, since http.client refuses what a fuzzer has to try.
        lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None and "Transfer-Encoding" not in headers:
            lines.append(f"Content-Length: {len(body)}")
        connection.connect()
        connection.sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b""))
        if "Transfer-Encoding" in headers:
            connection.sock.shutdown(1)  # no more is to come
        response = http.client.HTTPResponse(connection.sock, method=method)
        response.begin()
        return response.status, {n.lower(): v for n, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def _check(status: int, headers: dict[str, str], body: bytes) -> None:
    assert status < 500, (status, body)
    if status >= 400:
        assert headers["content-type"] == "application/problem+json"
        problem = json.loads(body)
        assert PROBLEMS[problem["response_code"]].status == status == problem["status"]
    elif body and headers["content-type"] == "application/json":
        json.loads(body)


@pytest.mark.timeout(300)
async def test_nothing_makes_it_fail(server: Server) -> None:
    """One server for all examples: what an earlier one did is part of a later one's world."""

    @settings(max_examples=_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.sampled_from(_PATHS), texts, st.sampled_from([*_TOKENS, *_TOKENS, "junk", None]),
        extra_headers, st.none() | bodies, texts,
    )  # fmt: skip
    def fuzz(
        endpoint: tuple[str, str],
        part: str,
        token: str | None,
        extra: dict[str, str],
        body: bytes | None,
        query: str,
    ) -> None:
        method, path = endpoint
        for name in ("{id}", "{zone}"):
            path = path.replace(name, quote(part, safe="") or "x")
        if query:
            path += (
                f"?zone={quote(query, errors='replace')}&limit={len(query)}&older_than_s={quote(query)}"
            )
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            answer = _send(server, method, path, {**headers, **extra}, body)
        except http.client.RemoteDisconnected:
            assert "Transfer-Encoding" in extra, "only half a request may go without an answer"
        else:
            _check(*answer)

    fuzz()
    assert [line for line in server.log_lines() if '"level":"error"' in line] == []


@pytest.mark.timeout(300)
async def test_every_change_with_every_kind_of_body(server: Server, database_url: str) -> None:
    """The right user, and bodies that are nearly right: this is where values reach the engines."""
    tokens = {e.path: make_token("u1", str(e.role)) for e in ENDPOINTS if e.body}

    @settings(max_examples=_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(tokens)), objects, st.none() | st.sampled_from(["k1", "k2", '"{}"']))
    def fuzz(path: str, data: dict[str, Any], key: str | None) -> None:
        headers = {"Authorization": f"Bearer {tokens[path]}"}
        if key:
            headers["Idempotency-Key"] = key
        _check(*_send(server, "POST", path, headers, json.dumps(data).encode()))

    fuzz()
    assert [line for line in server.log_lines() if '"level":"error"' in line] == []
    postgres = await asyncpg.connect(database_url)
    try:
        # What was accepted keeps the rules: a trip's versions and its events are the same number.
        wrong = await postgres.fetchval(
            """
            SELECT count(*) FROM trip_requests t
            WHERE t.version + 1 <> (SELECT count(*) FROM trip_events e WHERE e.trip_id = t.id)
            """
        )
        assert wrong == 0
    finally:
        await postgres.close()
