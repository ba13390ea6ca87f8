"""A real server and real sockets, over services that only take notes."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock

import aiohttp
import orjson
from aiohttp import web

from dispatcher.config import Settings
from dispatcher.core.actors import Actor
from dispatcher.core.callers import Caller
from dispatcher.core.errors import PROBLEMS, Refusal, StoreUnavailable
from dispatcher.core.limits import LimitState, Rate
from dispatcher.core.trips import Trip
from dispatcher.core.zones import Zones
from dispatcher.observe.metrics import Metrics
from dispatcher.service.answers import Answer, RateLimited, refusal_answer
from dispatcher.web.application import build_application
from dispatcher.web.auth import Authenticator
from dispatcher.web.boundary import Boundary
from dispatcher.web.client_ip import ClientIp
from dispatcher.web.door import Door
from dispatcher.web.endpoints import ENDPOINTS
from dispatcher.web.fastpath import make_runner
from dispatcher.web.frame_handlers import FrameHandlers
from dispatcher.web.handlers import Handlers
from dispatcher.web.refusal_codes import codes_of
from tests.harness.servers import JWT_SECRET, make_token

NOW_MS = 1_800_000_000_500
TRIP = "default_t1"
CREATE = "/api/customer/ride/create"
CANCEL = "/api/customer/ride/cancel"
ACTION = "/api/driver/ride/trip-action"
LOCATION = "/api/driver/ride/location"
AVAILABILITY = "/api/driver/availability"
OFFER = "/api/admin/ride/offer"
PLACE = {"lat": 40.75, "lng": -73.98}
DRIVER, CUSTOMER, ADMIN = (
    make_token(n, r) for n, r in (("d1", "driver"), ("c1", "customer"), ("a1", "admin"))
)
GOOD = {
    CREATE: (CUSTOMER, {"pickup": PLACE}),
    CANCEL: (CUSTOMER, {"trip_request_id": TRIP}),
    ACTION: (DRIVER, {"action": "accept", "trip_request_id": TRIP}),
    LOCATION: (DRIVER, PLACE),
    AVAILABILITY: (DRIVER, {"is_online": True}),
    "/api/admin/ride/cancel": (ADMIN, {"trip_request_id": TRIP}),
    "/api/customer/ride/end": (CUSTOMER, {"trip_request_id": TRIP}),
    "/api/admin/ride/end": (ADMIN, {"trip_request_id": TRIP}),
    "/api/admin/ride/assign": (ADMIN, {"trip_request_id": TRIP, "driver_id": "d1"}),
    OFFER: (ADMIN, {"trip_request_id": TRIP, "driver_id": "d1"}),
    "/api/admin/driver/offline": (ADMIN, {"driver_id": "d1"}),
}


def state(name: str = "trip_accept", remaining: int = 9, reset_ms: int = NOW_MS + 41_600) -> LimitState:
    return LimitState(name, Rate(10, 60), remaining, reset_ms, NOW_MS)


class Notes:
    """Stands for all services: notes every call, and answers or raises what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.answer: Answer | Exception = Answer(200, b'{"response_code":"done"}', state())
        self.counted: list[tuple[str, str | None, str | None]] = []
        self.limit: LimitState | Exception | None = state("general")
        self.found_trip: Trip | Exception = Trip(TRIP, "default", "c1", "car", 1.0, 2.0, 0, 0, version=3)
        self.is_ready = True

    def _say(self, name: str, details: Any) -> Any:
        self.calls.append((name, details))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    # --- the coordinator, whose commands are notes here

    async def execute(self, command: tuple[str, Any]) -> Any:
        return self._say(*command)

    # --- availability and positions

    async def change(self, caller: Caller, **details: Any) -> Any:
        return self._say("set_availability", {**details_of(caller), **details})

    async def force_offline(self, caller: Caller, driver_id: str) -> Any:
        return self._say("force_offline", {**details_of(caller), "driver_id": driver_id})

    async def offer(self, caller: Caller, trip_id: str, driver_id: str) -> Any:
        return self._say("offer", {**details_of(caller), "trip_id": trip_id, "driver_id": driver_id})

    async def report(self, caller: Caller, points: Any) -> Any:
        return self._say("positions", {"actor": caller.actor, "points": points, "ip": caller.ip})

    async def end(self, caller: Caller, trip_id: str, **details: Any) -> Any:
        return self._say("end", {**details_of(caller), "trip_id": trip_id, **details})

    # --- reads

    async def trip(self, actor: Actor, trip_id: str) -> Trip:
        self.calls.append(("read", trip_id))
        if isinstance(self.found_trip, Exception):
            raise self.found_trip
        return self.found_trip

    async def pending_near(self, actor: Actor, limit: int) -> list[dict[str, Any]]:
        self.calls.append(("pending_near", limit))
        return [{"id": TRIP, "distance_m": 12.5}]

    async def timeline(self, trip_id: str) -> list[dict[str, Any]]:
        self.calls.append(("timeline", trip_id))
        return [{"version": 0}]

    async def races(self, trip_id: str) -> list[dict[str, Any]]:
        return [{"version": 1, "driver_id": "d2", "tried_at": "2026-03-01T08:30:07.431Z"}]

    async def offers(self, trip_id: str) -> list[dict[str, Any]]:
        return [{"driver_id": "d1", "score": {"total_s": 12.5}}]

    async def abandoned(self, zone: str | None, older_than_s: int) -> list[dict[str, Any]]:
        self.calls.append(("abandoned", (zone, older_than_s)))
        return []

    async def zone_statistics(self, zone: str) -> dict[str, Any]:
        self.calls.append(("zone_statistics", zone))
        return {"zone": zone, "trips": {}}

    async def driver_state(self, actor: Actor) -> dict[str, Any]:
        self.calls.append(("driver_state", actor.user_id))
        return {"driver": None, "trip": None, "offers": [], "keeps_offers_away": ["offline"]}

    async def rides(self, actor: Actor, after: str | None, limit: int) -> dict[str, Any]:
        self.calls.append(("rides", (actor.user_id, after, limit)))
        return {"trips": [], "next": None}

    async def pending(self, zone: str, after: str | None, limit: int) -> dict[str, Any]:
        self.calls.append(("pending", (zone, after, limit)))
        return {"zone": zone, "trips": [], "next": None}

    async def dead_letters(self, zone: str, after: str | None, limit: int) -> dict[str, Any]:
        self.calls.append(("dead_letters", (zone, after, limit)))
        return {"zone": zone, "dead_letters": [], "next": None}

    async def why(self, trip_id: str, driver_id: str) -> dict[str, Any]:
        self.calls.append(("why", (trip_id, driver_id)))
        return {"verdict": {"codes": ["would_be_offered"]}}

    # --- what operators look up

    def zones(self) -> list[dict[str, Any]]:
        self.calls.append(("zones", None))
        return [{"name": "default", "accept_policy": "open", "outline": None}]

    async def trips(self, **asked: Any) -> dict[str, Any]:
        self.calls.append(("trips", asked))
        return {"trips": [], "next": None}

    async def trip_offers(self, trip_id: str, after: str | None, limit: int) -> dict[str, Any]:
        self.calls.append(("trip_offers", (trip_id, after, limit)))
        return {"trip_id": trip_id, "offers": [], "next": None}

    async def drivers(self, **asked: Any) -> dict[str, Any]:
        self.calls.append(("drivers", asked))
        return {"drivers": [], "next": None}

    async def driver(self, driver_id: str) -> dict[str, Any]:
        self.calls.append(("driver", driver_id))
        return {"driver": {"user_id": driver_id}}

    async def driver_offers(self, driver_id: str, after: str | None, limit: int) -> dict[str, Any]:
        self.calls.append(("driver_offers", (driver_id, after, limit)))
        return {"driver_id": driver_id, "offers": [], "next": None}

    # --- limits

    async def count(self, limit_class: str, actor: Actor | None, ip: str | None) -> LimitState | None:
        self.counted.append((limit_class, actor.user_id if actor else None, ip))
        if isinstance(self.limit, Exception):
            raise self.limit
        return self.limit

    async def refuse(self, refusal: Refusal, actor: Actor | None, ip: str | None) -> Answer:
        try:
            limit = await self.count("general" if actor else "anonymous", actor, ip)
        except RateLimited as limited:
            return refusal_answer(limited, limited.state)
        except StoreUnavailable:
            if actor is not None:
                raise
            limit = None
        return refusal_answer(refusal, limit)

    async def readiness(self) -> tuple[bool, dict[str, Any]]:
        return self.is_ready, {"status": "ready", "redis": "ok" if self.is_ready else "away"}


def frame_handlers_of(notes: Notes, **more: Any) -> FrameHandlers:
    service: Any = notes
    return FrameHandlers(
        zones=Zones(), coordinator=service, positions=service, availability=service, limits=service,
        vehicle_types=Settings().vehicle_types, **more,
    )  # fmt: skip


def details_of(caller: Caller) -> dict[str, Any]:
    return {"actor": caller.actor, "key": caller.key, "ip": caller.ip}


def _create_trip(_: Zones, caller: Caller, **details: Any) -> tuple[str, Any]:
    return "create", {**details_of(caller), **details}


def _assign_trip(_: Zones, caller: Caller, trip_id: str, driver_id: str, **more: Any) -> tuple[str, Any]:
    return "assign", {**details_of(caller), "trip_id": trip_id, "driver_id": driver_id, **more}


def _trip_action(_: Zones, caller: Caller, action: str, trip_id: str, **details: Any) -> tuple[str, Any]:
    return "act", {**details_of(caller), "action": action, "trip_id": trip_id, **details}


@contextlib.contextmanager
def commands_as_notes() -> Any:
    """Handlers make notes in the place of commands, for a coordinator that takes notes."""
    with (
        mock.patch("dispatcher.web.handlers.create_trip", _create_trip),
        mock.patch("dispatcher.web.handlers.trip_action", _trip_action),
        mock.patch("dispatcher.web.handlers.assign_trip", _assign_trip),
        mock.patch("dispatcher.web.frame_handlers.trip_action", _trip_action),
    ):
        yield


def boundary_of(settings: Settings, notes: Notes, seen: list[Any]) -> Boundary:
    limits: Any = notes
    return Boundary(
        authenticator=Authenticator.from_settings(settings),
        client_ip=ClientIp(settings.trusted_proxies),
        limits=limits,
        deadline_s=settings.request_deadline_s,
        idempotency_required=settings.idempotency_required,
        on_driver_call=lambda *call: seen.append(call),
    )


def handlers_of(notes: Notes, metrics: Metrics) -> Handlers:
    service: Any = notes
    return Handlers(
        zones=Zones(), coordinator=service, availability=service, positions=service, stranded_trips=service,
        reads=service, snapshots=service, explanation=service, operator_reads=service,
        heat=service, operator_offers=service,
        readiness=notes.readiness, metrics=metrics, vehicle_types=Settings().vehicle_types,
    )  # fmt: skip


class Client:
    """One client of one server, and what the services behind it noted."""

    def __init__(self, session: aiohttp.ClientSession, port: int, notes: Notes, seen: list[Any]) -> None:
        self.session, self.port, self.notes, self.seen = session, port, notes, seen
        self.url = f"http://127.0.0.1:{port}"

    async def send(
        self, method: str, path: str, token: str | None = None, body: Any = None, **more: Any
    ) -> tuple[int, Any, Any]:
        """(status, headers, body); the body of a request is JSON unless it is bytes."""
        headers = list(dict(more.pop("headers", {})).items()) + more.pop("more_headers", [])
        if token:
            headers.append(("Authorization", f"Bearer {token}"))
        data = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        async with self.session.request(
            method,
            self.url + path,
            data=data,
            headers=headers,
            skip_auto_headers=["Content-Type"],
            **more,
        ) as response:
            raw = await response.read()
            is_json = "json" in response.headers.get("Content-Type", "")
            answer = orjson.loads(raw) if raw and is_json else raw
            if response.status >= 400 and answer:
                check_described(method, response.url.raw_path, answer["response_code"])
            return response.status, response.headers, answer

    async def good(self, path: str, **more: Any) -> tuple[int, Any, Any]:
        token, body = GOOD[path]
        return await self.send("POST", path, token, body, **more)

    async def refused(self, code: str, path: str, token: str | None, body: Any, **more: Any) -> Any:
        """Sends it, expects exactly this refusal and that no service heard of it."""
        before = list(self.notes.calls)
        status, headers, problem = await self.send("POST", path, token, body, **more)
        check_problem(status, headers, problem)
        assert problem["response_code"] == code, problem
        assert self.notes.calls == before
        return problem

    async def raw(self, data: bytes) -> tuple[int, dict[str, str], Any]:
        """Sends bytes as they are."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        writer.close()
        return int(head[0].split()[1]), headers, orjson.loads(body) if body else None


def check_problem(status: int, headers: Any, problem: Any) -> None:
    lower = {name.lower(): value for name, value in headers.items()}
    assert lower["content-type"] == "application/problem+json"
    row = PROBLEMS[problem["response_code"]]
    assert status == problem["status"] == row.status
    assert problem["type"] == f"urn:dispatcher:problem:{row.code}"
    assert problem["title"] == row.title
    assert problem["detail"] == problem["message"]


def check_described(method: str, raw_path: str, code: str) -> None:
    """The description of the endpoint, if it is one, names this refusal."""
    for endpoint in ENDPOINTS:
        pattern = re.sub(r"{\w+}", "[^/]+", endpoint.path)
        if endpoint.method == method and re.fullmatch(pattern, raw_path):
            assert code in codes_of(endpoint), f"{endpoint.name} does not say that it answers {code}"
            return


async def open_client(door: Door | None = None, **settings: Any) -> AsyncIterator[Client]:
    notes, seen, metrics = Notes(), [], Metrics()
    known = Settings(jwt_secret=JWT_SECRET, **settings)

    async def websocket(_: web.Request) -> web.StreamResponse:
        raise Refusal("missing_token")

    async def fails(_: web.Request) -> web.StreamResponse:
        raise RuntimeError("secret detail")

    app = build_application(
        handlers_of(notes, metrics),
        boundary_of(known, notes, seen),
        websocket=websocket,
        extra_routes=[web.get("/fails", fails)],
    )
    runner = make_runner(app, door=door)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    with commands_as_notes():
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            yield Client(session, runner.addresses[0][1], notes, seen)
    await runner.cleanup()
