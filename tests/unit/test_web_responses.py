"""Over HTTP: limits, replays, outages and problems, as clients see them."""

from __future__ import annotations

import re

import orjson
import structlog

from dispatcher.config import Settings
from dispatcher.core.errors import PROBLEMS, OutcomeUnknown, Refusal, StoreUnavailable
from dispatcher.core.limits import LimitState
from dispatcher.observe.metrics import Metrics
from dispatcher.service.answers import Answer, RateLimited, refusal_answer
from dispatcher.web.application import build_application
from dispatcher.web.endpoints import ENDPOINTS
from dispatcher.web.refusal_codes import codes_of
from tests.harness.servers import JWT_SECRET
from tests.unit.http_harness import (
    ACTION,
    CREATE,
    NOW_MS,
    Client,
    Notes,
    boundary_of,
    check_problem,
    handlers_of,
    state,
)


async def test_limit_headers(client: Client) -> None:
    _, headers, _ = await client.good(ACTION)
    assert headers["X-RateLimit-Limit"] == "10"
    assert headers["X-RateLimit-Remaining"] == "9"
    assert headers["X-RateLimit-Reset"] == str(-(-(NOW_MS + 41_600) // 1000))
    assert headers["RateLimit-Policy"] == '"trip_accept";q=10;w=60'
    assert headers["RateLimit"] == '"trip_accept";r=9;t=42'
    assert headers["Server"] == "dispatcher"
    assert "Retry-After" not in headers
    client.notes.answer = Answer(200, b"{}")
    assert "RateLimit" not in (await client.good(ACTION))[1]


def _limited_answer(limit: LimitState) -> Answer:
    limited = RateLimited(limit)
    return refusal_answer(limited, limited.state)


async def test_the_429(client: Client) -> None:
    client.notes.answer = _limited_answer(state(remaining=0, reset_ms=NOW_MS + 44_001))
    status, headers, problem = await client.good(ACTION)
    check_problem(status, headers, problem)
    assert (status, headers["Retry-After"], headers["X-RateLimit-Remaining"]) == (429, "45", "0")
    assert problem["message"] == "Too many requests. Please try again in 45 seconds."
    assert (problem["response_code"], problem["retry_after"]) == ("rate_limit_exceeded", 45)
    client.notes.answer = RateLimited(state(remaining=0, reset_ms=NOW_MS))
    status, headers, _ = await client.good(ACTION)
    assert (status, headers["Retry-After"], headers["RateLimit"]) == (429, "1", '"trip_accept";r=0;t=0')


async def test_replays(client: Client) -> None:
    client.notes.answer = Answer(409, refusal_answer(Refusal("trip_exists")).body, None, replayed=True)
    status, headers, problem = await client.good(CREATE, headers={"Idempotency-Key": "k1"})
    check_problem(status, headers, problem)
    assert (headers["X-Idempotent-Replay"], headers["Idempotency-Key"]) == ("true", "k1")


async def test_outages(client: Client) -> None:
    for error, code in (
        (StoreUnavailable(), "service_unavailable"),
        (OutcomeUnknown(), "outcome_unknown"),
        (Refusal("service_unavailable", retry_after=1), "service_unavailable"),
    ):
        client.notes.answer = error
        status, headers, problem = await client.good(ACTION, headers={"Idempotency-Key": "k"})
        check_problem(status, headers, problem)
        assert (status, problem["response_code"], headers["Retry-After"]) == (503, code, "1")
        assert headers["Idempotency-Key"] == "k"
    client.notes.answer = RuntimeError("secret detail")
    with structlog.testing.capture_logs() as lines:
        status, headers, problem = await client.good(ACTION, headers={"X-Request-Id": "r-77"})
    check_problem(status, headers, problem)
    assert problem["response_code"] == "internal_error"
    assert "secret" not in orjson.dumps(problem).decode()
    assert {line["request_id"] for line in lines} == {"r-77"}
    assert (await client.send("GET", "/fails"))[0] == 500


async def test_request_ids(client: Client) -> None:
    assert (await client.send("GET", "/healthz", headers={"X-Request-Id": "abc-1"}))[1][
        "X-Request-Id"
    ] == "abc-1"
    made = [(await client.send("GET", "/healthz"))[1]["X-Request-Id"] for _ in range(2)]
    for bad in ("a b", "x" * 129, "<script>", ""):
        made.append(
            (await client.send("GET", "/nope", headers={"X-Request-Id": bad}))[1]["X-Request-Id"]
        )
    assert len(set(made)) == 6
    assert all(re.fullmatch("[0-9a-f]+-[0-9a-f]+", one) for one in made)


async def test_health_metrics_and_pages(client: Client) -> None:
    assert (await client.send("GET", "/healthz"))[::2] == (200, {"status": "ok"})
    assert (await client.send("GET", "/readyz"))[::2] == (200, {"status": "ready", "redis": "ok"})
    client.notes.is_ready = False
    status, headers, problem = await client.send("GET", "/readyz")
    check_problem(status, headers, problem)
    assert (status, problem["redis"]) == (503, "away")
    await client.send("GET", "/nope")
    assert (await client.send("GET", "/metrics"))[0] == 200
    status, headers, page = await client.send("GET", "/docs")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert not re.search(rb"(src|href)\s*=\s*['\"]?https?:", page)
    assert client.notes.counted == [("anonymous", None, "127.0.0.1")]


async def test_every_route_is_described(client: Client) -> None:
    _, _, described = await client.send("GET", "/openapi.json")
    assert set(described["paths"]) == {e.path for e in ENDPOINTS}
    for endpoint in ENDPOINTS:
        operation = described["paths"][endpoint.path][endpoint.method.lower()]
        assert str(endpoint.status) in operation["responses"]
        assert set(codes_of(endpoint)) <= set(PROBLEMS)
        assert [p["name"] for p in operation["parameters"] if p["in"] == "path"] == re.findall(
            r"{(\w+)}", endpoint.path
        )
    names = set(re.findall(r'"#/components/schemas/(\w+)"', orjson.dumps(described).decode()))
    assert names <= set(described["components"]["schemas"])


def test_every_route_is_in_the_table() -> None:
    settings = Settings(jwt_secret=JWT_SECRET)
    notes, metrics = Notes(), Metrics()
    app = build_application(handlers_of(notes, metrics), boundary_of(settings, notes, []))
    routed = {
        (r.method, r.resource.canonical)
        for r in app.router.routes()
        if r.resource and r.method != "HEAD"
    }
    described = {(e.method, e.path) for e in ENDPOINTS if e.name != "websocket"}
    # Other methods of an address that stands for itself are refused, and not taken for a trip's id.
    refused = {("*", path) for _, path in described if "{" not in path}
    assert routed == described | refused | {("*", "/{rest}")}
