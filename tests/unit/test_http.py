"""The HTTP side alone: a real server and real sockets, over services that only take notes."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import re
import time
from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import aiohttp
import orjson
import pytest
import structlog
from aiohttp import web

from dispatcher.config import Settings
from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import PROBLEMS, OutcomeUnknown, Refusal, StoreUnavailable
from dispatcher.core.limits import LimitState, Rate
from dispatcher.core.trips import Trip
from dispatcher.observe import logs, refusal_log
from dispatcher.service.answers import Answer, RateLimited, refusal_answer
from dispatcher.web import openapi, requests
from dispatcher.web.auth import Verifier
from dispatcher.web.client_ip import ClientIp
from dispatcher.web.endpoints import ENDPOINTS
from dispatcher.web.fastpath import make_runner
from dispatcher.web.handlers import Deps, build
from dispatcher.web.idempotency_key import key_of, unquote
from dispatcher.web.protocol import Frames
from dispatcher.web.reply import Reply
from tests.harness.servers import JWT_SECRET, make_token

NOW_MS = 1_800_000_000_500
TRIP = "default_t1"
CREATE = "/api/customer/ride/create"
CANCEL = "/api/customer/ride/cancel"
ACTION = "/api/driver/ride/trip-action"
LOCATION = "/api/driver/ride/location"
AVAILABILITY = "/api/driver/availability"
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
        self.trip: Trip | Exception = Trip(TRIP, "default", "c1", "car", 1.0, 2.0, 0, 0, version=3)
        self.is_ready = True

    def _say(self, name: str, details: Any) -> Any:
        self.calls.append((name, details))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def create(self, actor: Actor, **details: Any) -> Any:
        return self._say("create", {"actor": actor, **details})

    async def act(self, actor: Actor, action: str, trip_id: str, **details: Any) -> Any:
        return self._say("act", {"actor": actor, "action": action, "trip_id": trip_id, **details})

    async def set_availability(self, actor: Actor, **details: Any) -> Any:
        return self._say("set_availability", {"actor": actor, **details})

    async def positions(self, actor: Actor, points: Any, *, ip: str | None) -> Any:
        return self._say("positions", {"actor": actor, "points": points, "ip": ip})

    async def read(self, actor: Actor, trip_id: str) -> Trip:
        self.calls.append(("read", trip_id))
        if isinstance(self.trip, Exception):
            raise self.trip
        return self.trip

    async def pending_near(self, actor: Actor, limit: int) -> list[dict[str, Any]]:
        self.calls.append(("pending_near", limit))
        return [{"id": TRIP, "distance_m": 12.5}]

    async def timeline(self, trip_id: str) -> list[dict[str, Any]]:
        self.calls.append(("timeline", trip_id))
        return [{"version": 0}]

    async def abandoned(self, zone: str | None, older_than_s: int) -> list[dict[str, Any]]:
        self.calls.append(("abandoned", (zone, older_than_s)))
        return []

    async def zone_statistics(self, zone: str) -> dict[str, Any]:
        self.calls.append(("zone_statistics", zone))
        return {"zone": zone, "trips": {}}

    async def check(self, limit_class: str, actor: Actor | None, ip: str | None) -> LimitState | None:
        self.counted.append((limit_class, actor.user_id if actor else None, ip))
        if isinstance(self.limit, Exception):
            raise self.limit
        return self.limit

    async def ready(self) -> tuple[bool, dict[str, Any]]:
        return self.is_ready, {"redis": "ok" if self.is_ready else "away"}


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
            return response.status, response.headers, orjson.loads(raw) if raw and is_json else raw

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
        return int(head[0].split()[1]), headers, orjson.loads(body)


def check_problem(status: int, headers: Any, problem: Any) -> None:
    lower = {name.lower(): value for name, value in headers.items()}
    assert lower["content-type"] == "application/problem+json"
    row = PROBLEMS[problem["response_code"]]
    assert status == problem["status"] == row.status
    assert problem["type"] == f"urn:dispatcher:problem:{row.code}"
    assert problem["title"] == row.title
    assert problem["detail"] == problem["message"]


async def open_client(**settings: Any) -> AsyncIterator[Client]:
    notes, seen = Notes(), []
    known = Settings(jwt_secret=JWT_SECRET, **settings)

    async def websocket(_: web.Request) -> web.StreamResponse:
        raise Refusal("missing_token")

    async def fails(_: web.Request) -> web.StreamResponse:
        raise RuntimeError("secret detail")

    service: Any = notes
    app = build(
        Deps(
            settings=known, verifier=Verifier.from_settings(known), trips=service, drivers=service,
            limits=service, ready=notes.ready, seen=lambda *call: seen.append(call),
            websocket=websocket, more=[web.get("/fails", fails)],
        )
    )  # fmt: skip
    runner = make_runner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield Client(session, runner.addresses[0][1], notes, seen)
    await runner.cleanup()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async for opened in open_client():
        yield opened


# --- identity


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.role], ids=lambda e: e.name)
async def test_every_endpoint_wants_its_role(client: Client, endpoint: Any) -> None:
    path = endpoint.path.replace("{id}", TRIP).replace("{zone}", "default")
    for token, code in (
        (None, "missing_token"),
        ("nonsense", "invalid_token"),
        (make_token("d1", endpoint.role, exp=int(time.time()) - 60), "token_expired"),
        (make_token("x", "customer" if endpoint.role == "admin" else "admin"), "wrong_role"),
    ):
        status, headers, problem = await client.send(endpoint.method, path, token, b"{}")
        check_problem(status, headers, problem)
        assert problem["response_code"] == code
        assert ("WWW-Authenticate" in headers) == (status == 401)
        assert headers["X-RateLimit-Limit"] == "10"
    assert [c[0] for c in client.notes.counted] == ["anonymous"] * 3 + ["general"]
    assert client.notes.counted[0][2] == "127.0.0.1"
    assert client.notes.calls == []


async def test_a_flood_of_strangers_is_limited(client: Client) -> None:
    client.notes.limit = RateLimited(state("anonymous", 0))
    for method, path in (("GET", "/nope"), ("POST", CREATE), ("PUT", CREATE)):
        status, headers, _ = await client.send(method, path)
        assert (status, headers["Retry-After"]) == (429, "42")


async def test_known_users_are_counted_as_themselves(client: Client) -> None:
    await client.send("GET", "/nope", DRIVER)
    await client.send("POST", ACTION, DRIVER, b"{")
    assert [c[:2] for c in client.notes.counted] == [("general", "d1")] * 2


async def test_what_the_services_count_is_not_counted_twice(client: Client) -> None:
    for path in GOOD:
        assert (await client.good(path))[0] == 200
    assert client.notes.counted == []


async def test_refusals_that_need_no_store(client: Client) -> None:
    client.notes.limit = StoreUnavailable()
    assert (await client.send("GET", "/nope"))[0] == 404
    assert (await client.send("POST", CREATE))[0] == 401


async def test_drivers_are_seen(client: Client) -> None:
    await client.good(LOCATION, headers={"User-Agent": "app/1"})
    await client.good(CREATE)
    assert client.seen == [(Actor("d1", Role.DRIVER), "127.0.0.1", "app/1")]


# --- what arrives at the services


async def test_everything_is_passed_on(client: Client) -> None:
    await client.send(
        "POST", CREATE, CUSTOMER,
        {"pickup": PLACE, "dropoff": {"lat": 1, "lng": 2}, "vehicle_type": "van", "zone": "nyc",
         "trip_request_id": "own-1", "unknown": {"x": 1}},
        headers={"Idempotency-Key": "k1"},
    )  # fmt: skip
    name, got = client.notes.calls[0]
    key = got.pop("key")
    assert (name, got) == (
        "create",
        {
            "actor": Actor("c1", Role.CUSTOMER), "pickup": (40.75, -73.98), "dropoff": (1, 2),
            "vehicle_type": "van", "zone": "nyc", "trip_request_id": "own-1", "ip": "127.0.0.1",
        },
    )  # fmt: skip
    assert (key.user_id, key.endpoint, key.key) == ("c1", CREATE, "k1")
    assert re.fullmatch("[0-9a-f]{64}", key.fingerprint)
    assert orjson.loads(key.request_payload)["unknown"] == {"x": 1}

    await client.send("POST", ACTION, DRIVER, {"action": "start", "trip_request_id": TRIP, "version": 2})
    assert client.notes.calls[1][1] == {
        "actor": Actor("d1", Role.DRIVER), "action": "start", "trip_id": TRIP, "version": 2,
        "key": None, "ip": "127.0.0.1", "reason": None,
    }  # fmt: skip
    for path, actor in ((CANCEL, "c1"), ("/api/admin/ride/cancel", "a1")):
        await client.send("POST", path, GOOD[path][0], {"trip_request_id": TRIP, "reason": "late"})
        got = client.notes.calls[-1][1]
        assert (got["actor"].user_id, got["action"], got["reason"]) == (actor, "cancel", "late")
    await client.send(
        "POST", AVAILABILITY, DRIVER, {"is_online": False, "location": PLACE, "zone": None}
    )
    got = client.notes.calls[-1][1]
    assert (got["is_online"], got["availability_status"], got["location"]) == (
        False,
        None,
        (40.75, -73.98),
    )


async def test_positions(client: Client) -> None:
    for body, points in (
        ({"lat": 1, "lng": 2}, [(1.0, 2.0, None)]),
        ({"lat": 1.5, "lng": 2, "recorded_at": 1_700_000_000_123}, [(1.5, 2.0, 1_700_000_000_123)]),
        ({"lat": 1, "lng": 2, "recorded_at": "2023-11-14T22:13:20.123Z"}, [(1, 2, 1_700_000_000_123)]),
        ({"lat": 1, "lng": 2, "recorded_at": "2023-11-15t00:13:20+02:00"}, [(1, 2, 1_700_000_000_000)]),
        ({"points": [{"lat": 1, "lng": 2}, {"lat": 85.05112878, "lng": -180}]},
         [(1, 2, None), (85.05112878, -180, None)]),
    ):  # fmt: skip
        assert (await client.send("POST", LOCATION, DRIVER, body))[0] == 200, body
        assert client.notes.calls[-1][1]["points"] == points


async def test_questions(client: Client) -> None:
    assert (await client.send("GET", "/api/driver/ride/pending?limit=7", DRIVER))[2] == {
        "trips": [{"id": TRIP, "distance_m": 12.5}]
    }
    await client.send("GET", "/api/driver/ride/pending", DRIVER)
    await client.send("GET", f"/api/admin/ride/{TRIP}/timeline", ADMIN)
    await client.send("GET", "/api/admin/rides/abandoned?zone=&older_than_s=60", ADMIN)
    await client.send("GET", "/api/admin/rides/abandoned?zone=nyc", ADMIN)
    await client.send("GET", "/api/admin/zones/nyc/statistics", ADMIN)
    assert client.notes.calls == [
        ("pending_near", 7), ("pending_near", 20), ("timeline", TRIP), ("abandoned", (None, 60)),
        ("abandoned", ("nyc", 3600)), ("zone_statistics", "nyc"),
    ]  # fmt: skip
    assert {c[0] for c in client.notes.counted} == {"general"}
    for path, code in (
        ("/api/driver/ride/a%20b", "invalid_trip_id"),
        ("/api/driver/ride/%7Bx%7D", "invalid_trip_id"),
        ("/api/driver/ride/" + "x" * 5_000, "invalid_trip_id"),
        ("/api/driver/ride/pending?limit=0", "invalid_body"),
        ("/api/driver/ride/pending?limit=x", "invalid_body"),
    ):
        status, headers, problem = await client.send("GET", path, DRIVER)
        check_problem(status, headers, problem)
        assert problem["response_code"] == code, path
    for query, code in (("older_than_s=-1", "invalid_body"), ("zone=A", "invalid_zone")):
        _, _, problem = await client.send("GET", f"/api/admin/rides/abandoned?{query}", ADMIN)
        assert problem["response_code"] == code


async def test_etags(client: Client) -> None:
    path = f"/api/customer/ride/{TRIP}"
    status, headers, body = await client.send("GET", path, CUSTOMER)
    assert (status, headers["ETag"], body["trip"]["version"]) == (200, '"3"', 3)
    for tag in ('"3"', 'W/"3"', '"1", "3"', "*"):
        status, headers, body = await client.send("GET", path, CUSTOMER, headers={"If-None-Match": tag})
        assert (status, headers["ETag"], body) == (304, '"3"', b""), tag
    assert (await client.send("GET", path, CUSTOMER, headers={"If-None-Match": '"2"'}))[0] == 200
    client.notes.trip = Refusal("trip_not_found")
    status, headers, problem = await client.send("GET", path, CUSTOMER)
    check_problem(status, headers, problem)
    assert headers["RateLimit"].startswith('"general"')


# --- bad input

LONG = "default_" + "x" * 10_000


@pytest.mark.parametrize(
    ("code", "path", "body"),
    [
        *[
            ("malformed_json", path, raw)
            for path in (CREATE, ACTION, LOCATION)
            for raw in (
                b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b'{"a":"\xff"}', b"{} {}",
                b'{"action":"\\ud800"}', b'{"lat":NaN,"lng":1}', b'{"lat":Infinity,"lng":1}',
                b'{"lat":1e999,"lng":1}', b'{"a":' * 5_000 + b"1" + b"}" * 5_000, b"\xef\xbb\xbf{}",
                b'{"reason":"a\\u0000b"}', b'{"a":' + b"9" * 1_000 + b"}",
            )
        ],
        ("unknown_action", ACTION, {"action": "fly", "trip_request_id": TRIP}),
        ("unknown_action", ACTION, {"action": None, "trip_request_id": TRIP}),
        ("unknown_action", ACTION, {"trip_request_id": TRIP}),
        *[
            ("invalid_trip_id", ACTION, {"action": "accept", "trip_request_id": bad})
            for bad in ("{default}_x", "default_a b", LONG, "x", "", None, 5, "default_", "default_x\n")
        ],
        ("invalid_trip_id", ACTION, {"action": "accept"}),
        ("invalid_trip_id", CANCEL, {"trip_request_id": "a b"}),
        ("invalid_trip_id", CREATE, {"pickup": PLACE, "trip_request_id": "a{b}"}),
        *[
            ("invalid_version", ACTION, {"action": "accept", "trip_request_id": TRIP, "version": bad})
            for bad in (-1, True, "1", 1.0, 2**31, 10**19, [])
        ],
        *[
            ("invalid_location", CREATE, {"pickup": bad})
            for bad in (
                {"lat": 91, "lng": 0}, {"lat": -85.06, "lng": 0}, {"lat": 0, "lng": 180.5}, {"lat": 1},
                {"lat": "1", "lng": 1}, {"lat": True, "lng": 1}, [1, 2], None, {}, {"lat": 10**18, "lng": 1},
            )
        ],
        ("invalid_location", CREATE, {}),
        ("invalid_location", CREATE, {"pickup": PLACE, "dropoff": {"lat": 91, "lng": 0}}),
        ("invalid_location", LOCATION, {"lat": 91, "lng": 0}),
        ("invalid_location", LOCATION, {"points": [PLACE, {"lat": 0, "lng": 181}]}),
        ("invalid_location", AVAILABILITY, {"location": {"lat": 91, "lng": 0}}),
        ("invalid_body", LOCATION, {"points": []}),
        ("invalid_body", LOCATION, {"points": [PLACE] * 101}),
        ("invalid_body", LOCATION, {"points": {}}),
        *[
            ("invalid_body", LOCATION, {**PLACE, "recorded_at": bad})
            for bad in ("yesterday", "2023-11-14", "2023-11-14T22:13:20", "2023-13-14T22:13:20Z", -1, 1.5,
                        True, 10**17, "20231114T221320Z", "0001-01-01T00:00:00+14:00")
        ],
        ("invalid_zone", CREATE, {"pickup": PLACE, "zone": "New York"}),
        ("invalid_zone", AVAILABILITY, {"zone": "{a}"}),
        ("invalid_vehicle_type", CREATE, {"pickup": PLACE, "vehicle_type": "Car:1"}),
        ("invalid_vehicle_type", AVAILABILITY, {"vehicle_type": "x" * 33}),
        ("invalid_body", CANCEL, {"trip_request_id": TRIP, "reason": "x" * 501}),
        ("invalid_body", AVAILABILITY, {"availability_status": "busy"}),
        ("invalid_body", AVAILABILITY, {"is_online": "yes"}),
        ("invalid_body", AVAILABILITY, {"is_online": 1}),
        ("invalid_body", AVAILABILITY, {}),
        ("invalid_body", AVAILABILITY, {"is_online": None}),
        ("body_too_large", CREATE, b" " * 65_537),
        ("body_too_large", CREATE, b"x" * 1_000_000),
    ],
)  # fmt: skip
async def test_bad_bodies(client: Client, code: str, path: str, body: Any) -> None:
    problem = await client.refused(code, path, GOOD[path][0], body)
    assert len(problem["message"]) < 200
    assert client.notes.counted == [("general", client.notes.counted[0][1], "127.0.0.1")]


async def test_messages_name_the_field(client: Client) -> None:
    problem = await client.refused(
        "invalid_location", LOCATION, DRIVER, {"points": [{"lat": 91, "lng": 0}]}
    )
    assert problem["field"] == "points.0.lat"
    assert problem["message"].startswith("points.0.lat: ")
    problem = await client.refused(
        "invalid_body", CANCEL, CUSTOMER, {"trip_request_id": TRIP, "reason": 1}
    )
    assert problem["message"] == "reason: input should be a valid string."


async def test_a_body_of_exactly_64_kib_and_its_neighbours(client: Client) -> None:
    token, body = GOOD[ACTION]
    raw = orjson.dumps(body)
    assert (await client.send("POST", ACTION, token, raw + b" " * (65_536 - len(raw))))[0] == 200

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b" " * 1024

    async with client.session.post(
        client.url + ACTION,
        data=chunks(),
        headers={"Authorization": f"Bearer {token}"},
        skip_auto_headers=["Content-Type"],
    ) as response:
        assert response.status == 413
        assert (await response.json(content_type=None))["response_code"] == "body_too_large"


async def test_media_types(client: Client) -> None:
    for kind in ("application/json", "application/json; charset=utf-8", "APPLICATION/JSON;charset=UTF-8",
                 "application/x-www-form-urlencoded"):  # fmt: skip
        assert (await client.good(ACTION, headers={"Content-Type": kind}))[0] == 200, kind
    for headers in (
        {"Content-Type": "text/plain"}, {"Content-Type": "application/xml"}, {"Content-Type": ""},
        {"Content-Type": "application/json; charset=latin-1"}, {"Content-Encoding": "br"},
        {"Content-Encoding": "gzip, gzip"}, {"Content-Type": "multipart/form-data; boundary=x"},
    ):  # fmt: skip
        await client.refused("unsupported_media_type", ACTION, *GOOD[ACTION], headers=headers)
    bomb = gzip.compress(b" " * 50_000_000)
    await client.refused(
        "unsupported_media_type", ACTION, DRIVER, bomb, headers={"Content-Encoding": "gzip"}
    )


# --- keys


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("k1", "k1"), ('"k1"', "k1"), (r'"a\"b\\c"', r'a"b\c'), ('a"b', 'a"b'), ("a b", "a b"),
        ("x" * 255, "x" * 255), ('"' + "x" * 255 + '"', "x" * 255), ("{}:/", "{}:/"),
        ('"', None), ('""', None), ('"a', None), ('"a"b', None), ('"a\\n"', None), ("x" * 256, None),
        ('"' + "x" * 256 + '"', None), ("é", None), ("", None), ("a\x01", None), ("a\n", None),
        ("a\x7f", None), ('"a", "b"', None),
    ],
)  # fmt: skip
def test_how_keys_are_read(sent: str, meant: str | None) -> None:
    assert unquote(sent) == meant


async def test_keys(client: Client) -> None:
    _, headers, _ = await client.good(ACTION, headers={"Idempotency-Key": '"k 1"'})
    assert headers["Idempotency-Key"] == '"k 1"'
    assert client.notes.calls[-1][1]["key"].key == "k 1"
    for bad in ("x" * 256, "é", '"open', ""):
        await client.refused(
            "invalid_idempotency_key", ACTION, *GOOD[ACTION], headers={"Idempotency-Key": bad}
        )
    twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    await client.refused("duplicate_idempotency_key", ACTION, *GOOD[ACTION], more_headers=twice)
    deep = b'{"action":"accept","trip_request_id":"default_x","z":' + b"[" * 600 + b"]" * 600 + b"}"
    await client.refused("malformed_json", ACTION, DRIVER, deep, headers={"Idempotency-Key": "k"})


async def test_fingerprints(client: Client) -> None:
    async def fingerprint(path: str, token: str, body: bytes) -> str:
        await client.send("POST", path, token, body, headers={"Idempotency-Key": "k"})
        return str(client.notes.calls[-1][1]["key"].fingerprint)

    body = b'{"action":"accept","trip_request_id":"default_x"}'
    first = await fingerprint(ACTION, DRIVER, body)
    assert first == await fingerprint(
        ACTION, DRIVER, b' { "trip_request_id":"default_x", "action": "accept"}'
    )
    assert first == await fingerprint(
        ACTION, DRIVER, b'{"action":"start","action":"accept","trip_request_id":"default_x"}'
    )
    assert first != await fingerprint(ACTION, DRIVER, body[:-1] + b',"note":1}')
    cancel = b'{"trip_request_id":"default_x"}'
    mine, admins = (
        await fingerprint(CANCEL, CUSTOMER, cancel),
        await fingerprint("/api/admin/ride/cancel", ADMIN, cancel),
    )
    assert mine != admins


async def test_keys_may_be_required() -> None:
    async for client in open_client(idempotency_required=True):
        for path, sent in GOOD.items():
            if path == LOCATION:
                assert (await client.good(path))[0] == 200
            else:
                await client.refused("missing_idempotency_key", path, *sent)


# --- answers


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


async def test_the_429(client: Client) -> None:
    client.notes.answer = refusal_answer(RateLimited(state(remaining=0, reset_ms=NOW_MS + 44_001)))
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


async def test_unknown_addresses_and_methods(client: Client) -> None:
    for path in ("/", "/nope", "/api", CREATE + "/", "/%ff", "/api/driver/ride/a/b"):
        status, headers, problem = await client.send("GET", path)
        check_problem(status, headers, problem)
        assert problem["response_code"] == "not_found", path
    status, headers, problem = await client.send("DELETE", ACTION, DRIVER)
    check_problem(status, headers, problem)
    assert (status, "POST" in headers["Allow"]) == (405, True)
    status, headers, _ = await client.send("HEAD", "/healthz")
    assert status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"POST /api/driver/ride/trip-action HTTP/1.1\r\nHost: x\r\nIdempotency-Key: a\x01b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 10_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: something\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: \xe6\xff\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_no_http(client: Client, data: bytes) -> None:
    status, headers, problem = await client.raw(data)
    check_problem(status, headers, problem)
    assert problem["response_code"] == "malformed_request"
    assert headers["server"] == "dispatcher"


async def test_a_broken_chunk(client: Client) -> None:
    head = (
        f"POST {ACTION} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {DRIVER}\r\n"
        "Transfer-Encoding: chunked\r\n\r\nZZ\r\n"
    )
    status, headers, problem = await client.raw(head.encode())
    check_problem(status, headers, problem)
    assert problem["response_code"] == "malformed_request"


async def test_odd_targets_are_no_errors_of_ours(client: Client) -> None:
    for target in (
        b"OPTIONS *",
        b"CONNECT a:1",
        b"GET http://other/healthz",
        b"GET //",
        b"GET /?%",
        b"GET /#x",
    ):
        status, _, _ = await client.raw(target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert status < 500, target


async def test_a_client_that_goes_away(client: Client) -> None:
    with structlog.testing.capture_logs() as lines:
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        head = f"POST {ACTION} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {DRIVER}\r\nContent-Length: 50\r\n\r\n{{"
        writer.write(head.encode())
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.sleep(0.05)
    assert [line for line in lines if line["log_level"] in ("error", "warning")] == []
    assert client.notes.calls == []


async def test_health_metrics_and_pages(client: Client) -> None:
    assert (await client.send("GET", "/healthz"))[::2] == (200, {"status": "ok"})
    assert (await client.send("GET", "/readyz"))[::2] == (200, {"status": "ready", "redis": "ok"})
    client.notes.is_ready = False
    status, headers, problem = await client.send("GET", "/readyz")
    check_problem(status, headers, problem)
    assert (status, problem["redis"]) == (503, "away")
    await client.good(ACTION)
    await client.send("GET", "/nope")
    status, _, text = await client.send("GET", "/metrics")
    assert status == 200
    for line in (
        f'dispatcher_http_request_seconds_count{{method="POST",route="{ACTION}",status="200"}} 1.0',
        'dispatcher_http_request_seconds_count{method="",route="",status="404"} 1.0',
    ):
        assert line in text.decode()
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
        assert set(openapi.codes_of(endpoint)) <= set(PROBLEMS)
        assert [p["name"] for p in operation["parameters"] if p["in"] == "path"] == re.findall(
            r"{(\w+)}", endpoint.path
        )
    names = set(re.findall(r'"#/components/schemas/(\w+)"', orjson.dumps(described).decode()))
    assert names <= set(described["components"]["schemas"])


def test_every_route_is_in_the_table() -> None:
    settings = Settings(jwt_secret=JWT_SECRET)
    nobody: Any = None
    app = build(
        Deps(
            settings, Verifier.from_settings(settings), nobody, nobody, nobody, nobody, websocket=nobody
        )
    )
    routed = {
        (r.method, r.resource.canonical)
        for r in app.router.routes()
        if r.resource and r.method != "HEAD"
    }
    described = {(e.method, e.path) for e in ENDPOINTS if e.name != "websocket"}
    assert routed == described | {("*", "/{rest}")}


# --- client addresses


@pytest.mark.parametrize(
    ("peer", "forwarded", "client_ip"),
    [
        ("1.2.3.4", "", "1.2.3.4"),
        ("1.2.3.4", "9.9.9.9", "1.2.3.4"),
        ("10.0.0.1", "9.9.9.9", "9.9.9.9"),
        ("10.0.0.1", "6.6.6.6, 9.9.9.9, 10.0.0.2", "9.9.9.9"),
        ("10.0.0.1", "10.0.0.3,10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "9.9.9.9, garbage", "10.0.0.1"),
        ("10.0.0.1", "garbage, 9.9.9.9", "9.9.9.9"),
        ("10.0.0.1", " ,, ", "10.0.0.1"),
        ("10.0.0.1", "9.9.9.9:1234", "9.9.9.9"),
        ("10.0.0.1", "[2001:db8:1:2:3::4]:80", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:aaaa::1", "", "2001:db8:1:2::/64"),
        ("::ffff:1.2.3.4", "", "1.2.3.4"),
        ("::ffff:10.0.0.1", "9.9.9.9", "9.9.9.9"),
        ("fe80::1%eth0", "", "fe80::/64"),
    ],
)
def test_whose_address(peer: str, forwarded: str, client_ip: str) -> None:
    assert ClientIp([ip_network("10.0.0.0/8")]).of(peer, forwarded) == client_ip


async def test_forwarded_headers(client: Client) -> None:
    await client.send("GET", "/nope", headers={"X-Forwarded-For": "9.9.9.9"})
    assert client.notes.counted[-1][2] == "127.0.0.1"
    async for behind in open_client(trusted_proxies="127.0.0.0/8"):
        several = [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "9.9.9.9")]
        await behind.send("GET", "/nope", more_headers=several)
        assert behind.notes.counted[-1][2] == "9.9.9.9"


# --- frames


async def test_frames_have_the_rules_of_http() -> None:
    notes = Notes()
    service: Any = notes
    frames = Frames(trips=service, drivers=service, limits=service)
    driver, rider = Actor("d1", Role.DRIVER), Actor("c1", Role.CUSTOMER)
    body = {"action": "accept", "trip_request_id": TRIP, "version": 1}
    frame = {"type": "trip_action", "id": 7, "idempotency_key": "k", **body}
    await frames.act(driver, frame, "ip")
    assert notes.calls[-1][1]["key"] == key_of("k", driver, ACTION, body, required=False)
    await frames.act(
        rider,
        {"type": "trip_action", "action": "cancel", "trip_request_id": TRIP, "idempotency_key": "k"},
        None,
    )
    assert notes.calls[-1][1]["key"] == key_of(
        "k", rider, CANCEL, {"trip_request_id": TRIP}, required=False
    )
    await frames.locate(driver, {"type": "location", "id": 1, **PLACE}, None)
    assert notes.calls[-1][1]["points"] == [(40.75, -73.98, None)]
    heard = len(notes.calls)
    for actor, call, bad, code in (
        (driver, frames.act, {**frame, "version": -1}, "invalid_version"),
        (driver, frames.act, {**frame, "idempotency_key": 5}, "invalid_idempotency_key"),
        (rider, frames.act, frame, "unknown_action"),
        (rider, frames.locate, PLACE, "wrong_role"),
        (driver, frames.locate, {"lat": 91, "lng": 0}, "invalid_location"),
    ):
        answer = await call(actor, bad, None)
        assert json.loads(answer.body)["response_code"] == code
        assert answer.limit is not None
    assert len(notes.calls) == heard
    required = Frames(trips=service, drivers=service, limits=service, key_required=True)
    answer = await required.act(driver, body, None)
    assert json.loads(answer.body)["response_code"] == "missing_idempotency_key"


def test_queries_and_bodies_share_their_codes() -> None:
    assert set(requests.CODES.values()) <= set(PROBLEMS)


# --- log lines


def test_the_three_lines() -> None:
    before = structlog.get_config()
    out = io.BytesIO()
    try:
        logs.configure(Settings(), out)
        for code in (
            "rate_limit_exceeded",
            "version_conflict",
            "trip_already_assigned",
            "trip_not_found",
        ):
            refusal_log.log_refusal(code, user="d1", trip_id=None)
    finally:
        structlog.configure(**before)
        refusal_log.REFUSAL_LOG.write_through_structlog()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [
        ("Rate limit exceeded", "warning"),
        ("Optimistic lock conflict", "info"),
        ("Trip already assigned", "info"),
    ]
    assert lines[0]["user"] == "d1"
    assert lines[0]["logger"] == "dispatcher.refusals"
    assert lines[0]["timestamp"].endswith("Z")


# --- replies


def test_a_header_with_a_line_break_is_not_sent() -> None:
    for value in ("a\r\nSet-Cookie: b", "a\nb", "a\rb"):
        with pytest.raises(ValueError, match="line break"):
            Reply(200, b"{}", {"X-Request-Id": value}).encode()


async def _exchange(port: int, request: bytes) -> tuple[bytes, bytes, bool]:
    """Status line and headers, body, and whether the server kept the connection open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    body = b""
    if not request.startswith(b"HEAD") and length is not None:
        body = await reader.readexactly(int(length[1]))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    try:
        kept = bool(await reader.read(1))
    except ConnectionError:
        kept = False
    writer.close()
    return head, body, kept


async def test_http_versions_and_methods(client: Client) -> None:
    """Replies in one write and those of aiohttp's own tell the same."""
    whole, body, kept = await _exchange(client.port, b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (whole[:15], body, kept) == (b"HTTP/1.1 200 OK", b'{"status":"ok"}', True)
    assert b"\r\nContent-Type: application/json\r\n" in whole
    assert b"\r\nServer: dispatcher\r\n" in whole
    assert b"\r\nDate: " in whole
    head, body, kept = await _exchange(client.port, b"HEAD /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (body, kept) == (b"", True)
    assert b"\r\nContent-Length: 15\r\n" in head
    closing = b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    head, body, kept = await _exchange(client.port, closing)
    assert (body, kept) == (b'{"status":"ok"}', False)
    assert b"\r\nConnection: close\r\n" in head
    head, body, kept = await _exchange(client.port, b"GET /healthz HTTP/1.0\r\nHost: h\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK")
    assert (body, kept) == (b'{"status":"ok"}', False)


async def test_two_requests_in_one_packet(client: Client) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n" * 3)
    for _ in range(3):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert await reader.readexactly(15) == b'{"status":"ok"}'
    writer.close()
