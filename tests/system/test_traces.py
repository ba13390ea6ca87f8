"""Traces: what a collector is told, what one that is away costs, and that nothing is loaded without one."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from dispatcher.config import Settings, SettingsError
from dispatcher.observe import tracing
from dispatcher.server.preflight import check_files
from tests.harness.servers import JWT_SECRET, Serve, make_token

TRACE = "0af7651916cd43dd8448eb211c80319c"
PLACE = {"lat": 40.7559, "lng": -73.9864}


class Collector:
    """Takes spans by OTLP over HTTP, and keeps them by name."""

    def __init__(self) -> None:
        self.spans: dict[str, list[Any]] = {}
        self.resources: list[dict[str, str]] = []
        self.news = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        told = ExportTraceServiceRequest.FromString(body)
        for of_resource in told.resource_spans:
            self.resources.append(attributes_of(of_resource.resource))
            for scope in of_resource.scope_spans:
                for span in scope.spans:
                    self.spans.setdefault(span.name, []).append(span)
        self.news.set()
        return web.Response(content_type="application/x-protobuf")

    async def heard(self, name: str, number: int = 1) -> list[Any]:
        async with asyncio.timeout(30):
            while len(self.spans.get(name, ())) < number:
                self.news.clear()
                await self.news.wait()
        return self.spans[name]


def attributes_of(told: Any) -> dict[str, Any]:
    return {a.key: a.value.string_value or a.value.int_value for a in told.attributes}


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    taken = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", taken.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield taken, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def _accept(url: str, **headers: str) -> tuple[str, str]:
    """A driver accepts a trip; its id, and that of the request."""

    async def post(path: str, role: str, body: Any, **more: str) -> tuple[dict[str, Any], str]:
        bearer = {"Authorization": f"Bearer {make_token(role, role)}", **more}
        async with session.post(url + path, json=body, headers=bearer) as answer:
            told = await answer.json(content_type=None)
            assert answer.status < 300, told
            return told, answer.headers["X-Request-Id"]

    async with aiohttp.ClientSession() as session:
        await post(
            "/api/driver/availability", "driver",
            {"is_online": True, "availability_status": "available", "location": PLACE},
        )  # fmt: skip
        created, _ = await post("/api/customer/ride/create", "customer", {"pickup": PLACE})
        trip = created["trip"]["id"]
        accept = {"action": "accept", "trip_request_id": trip}
        _, request_id = await post("/api/driver/ride/trip-action", "driver", accept, **headers)
        return trip, request_id


async def test_an_accept_is_one_trace(serve: Serve, collector: tuple[Collector, str]) -> None:
    taken, endpoint = collector
    server = await serve(env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"})
    parent = "b7ad6b7169203331"
    trip, request_id = await _accept(server.url, traceparent=f"00-{TRACE}-{parent}-01")
    (call,) = await taken.heard("POST /api/driver/ride/trip-action")
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, parent)
    told = attributes_of(call)
    assert told["http.route"] == "/api/driver/ride/trip-action"
    assert told["http.response.status_code"] == 200
    assert told["dispatcher.request_id"] == request_id
    (change,) = (span for span in await taken.heard("change", 3) if span.trace_id.hex() == TRACE)
    assert change.parent_span_id == call.span_id
    told = attributes_of(change)
    assert (told["dispatcher.command"], told["dispatcher.code"]) == ("AcceptTrip", "trip_accepted")
    assert (told["dispatcher.trip_id"], told["dispatcher.zone"]) == (trip, "default")
    for step in ("claim", "commit", "settle"):
        (span,) = (span for span in await taken.heard(step, 3) if span.trace_id.hex() == TRACE)
        assert span.parent_span_id == change.span_id
        assert attributes_of(span)["dispatcher.trip_id"] == trip
        assert change.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= change.end_time_unix_nano
    assert taken.resources[0]["service.name"] == "dispatcher"
    assert await server.stop() == 0
    lines = [json.loads(line) for line in server.log_lines()]
    (assigned,) = (line for line in lines if line["event"] == "Trip assigned")
    assert (assigned["trace_id"], assigned["span_id"]) == (TRACE, change.span_id.hex())


async def test_a_collector_that_is_away_holds_up_nobody(serve: Serve) -> None:
    server = await serve(
        env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "DISPATCHER_DRAIN_S": "0.1"}
    )
    await _accept(server.url)
    assert await server.stop(timeout_s=10) == 0


def test_an_exporter_that_there_is_not_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console, zipkin_of_old")
    settings = Settings(jwt_secret=JWT_SECRET)
    with pytest.raises(
        SettingsError, match=r"^OTEL_TRACES_EXPORTER: zipkin_of_old is not installed; there"
    ):
        check_files(settings)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    check_files(settings)


def test_nothing_is_loaded_where_nothing_is_asked_for() -> None:
    look = (
        "import sys; from dispatcher.observe import tracing; assert tracing.start() is None; "
        "tracing.check(); assert 'opentelemetry' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", look], env={"PATH": "/usr/bin:/bin"}, check=True, timeout=60)


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, []),
        ({"OTEL_SERVICE_NAME": "x"}, []),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, []),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": " otlp , console"}, ["otlp_proto_http", "console"]),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "TRUE"}, []),
    ],
)
def test_which_exporters_are_asked_for(environment: dict[str, str], names: list[str]) -> None:
    assert tracing._exporter_names(environment) == names
