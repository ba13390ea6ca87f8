"""The live side over real sockets: snapshots, offers, presence, two servers, and a server that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import asyncpg
import orjson
import pytest
import redis.asyncio

from tests.harness.servers import Serve, Server, make_token

PLACE = {"lat": 40.7559, "lng": -73.9864}
FAST = {
    "DISPATCHER_PRESENCE_TTL_S": "2",
    "DISPATCHER_PRESENCE_GRACE_S": "0.5",
    "DISPATCHER_SWEEP_INTERVAL_S": "0.1",
    "DISPATCHER_POSITION_FLUSH_S": "0.1",
    "DISPATCHER_DRAIN_S": "0.2",
    "DISPATCHER_LIMIT_GENERAL": "10000/60",
}


class App:
    """A user's app: a token, calls over HTTP, and a socket whose frames are kept."""

    def __init__(self, session: aiohttp.ClientSession, server: Server, role: str, sub: str) -> None:
        self.session = session
        self.server = server
        self.sub = sub
        self.headers = {"Authorization": f"Bearer {make_token(sub, role)}"}
        self.frames: list[dict[str, Any]] = []
        self.socket: aiohttp.ClientWebSocketResponse | None = None
        self._news = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        async with self.session.post(
            self.server.url + path, json=body, headers={**self.headers, **headers}
        ) as answer:
            return answer.status, await answer.json(content_type=None)

    async def open(self, *, beats: bool = True) -> App:
        self.socket = await self.session.ws_connect(self.server.url + "/ws", headers=self.headers)
        self._reader = asyncio.create_task(self._read())
        if beats:
            self._beats = asyncio.create_task(self._beat())
        return self

    async def _beat(self) -> None:
        assert self.socket is not None
        with contextlib.suppress(ConnectionError):
            while not self.socket.closed:
                await asyncio.sleep(0.5)
                await self.send({"type": "heartbeat"})

    async def _read(self) -> None:
        assert self.socket is not None
        async for message in self.socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise AssertionError(message)
            self.frames.append(orjson.loads(message.data))
            self._news.set()
        self._news.set()

    async def send(self, frame: dict[str, Any]) -> None:
        assert self.socket is not None
        await self.socket.send_str(orjson.dumps(frame).decode())

    async def frame(self, wanted: str, when: Callable[[Any], bool] = lambda _: True) -> dict[str, Any]:
        async with asyncio.timeout(15):
            while True:
                for frame in self.frames:
                    if frame["type"] == wanted and when(frame):
                        return frame
                self._news.clear()
                await self._news.wait()

    async def closed(self) -> int | None:
        assert self._reader is not None
        assert self.socket is not None
        async with asyncio.timeout(15):
            await self._reader
        return self.socket.close_code

    async def online(self) -> None:
        status, body = await self.post(
            "/api/driver/availability",
            {"is_online": True, "availability_status": "available", "location": PLACE},
        )
        assert status == 200, body

    async def trip(self) -> str:
        status, body = await self.post("/api/customer/ride/create", {"pickup": PLACE})
        assert status == 201, body
        return str(body["trip"]["id"])

    async def accept(self, trip: str, number: int = 1) -> dict[str, Any]:
        await self.send(
            {"type": "trip_action", "id": number, "action": "accept", "trip_request_id": trip}
        )
        return await self.frame("ack", lambda f: f["id"] == number)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as opened:
        yield opened


async def eventually(condition: Callable[[], Any], within_s: float = 15.0) -> Any:
    deadline = time.monotonic() + within_s
    while True:
        value = await condition()
        if value:
            return value
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


async def test_offer_accept_and_the_customer_sees_it(
    serve: Serve, session: aiohttp.ClientSession
) -> None:
    server = await serve(env=FAST)
    driver = await App(session, server, "driver", "d1").open()
    other = await App(session, server, "driver", "d2").open()
    rider = await App(session, server, "customer", "r1").open()
    welcome = await driver.frame("welcome")
    assert welcome["snapshot"] == {"driver": None, "trip": None, "offers": [], "queue": None}
    await driver.online()
    await other.online()
    trip = await rider.trip()
    offer = await driver.frame("offer")
    assert offer["trip"]["id"] == trip
    assert offer["distance_m"] < 1
    await other.frame("offer")
    ack = await driver.accept(trip)
    assert (ack["response_code"], ack["trip"]["version"]) == ("trip_accepted", 1)
    seen = await rider.frame("trip", lambda f: f["event"] == "accepted")
    assert seen["trip"]["driver_id"] == "d1"
    assert (await other.frame("offer_withdrawn"))["trip_request_id"] == trip
    await driver.send({"type": "location", "id": 2, "lat": 40.756, "lng": -73.987})
    moved = await rider.frame("driver_location")
    assert (moved["trip_request_id"], moved["lat"]) == (trip, 40.756)
    # A retry over the other channel, with the key of the first, is a replay.
    late = await App(session, server, "customer", "r1").open()
    assert (await late.frame("welcome"))["snapshot"]["trips"][0]["id"] == trip

    postgres = await asyncpg.connect(server.database_url)
    try:

        async def outcomes() -> dict[str, str] | None:
            rows = await postgres.fetch("SELECT driver_id, outcome FROM trip_offers")
            found = {row["driver_id"]: row["outcome"] for row in rows}
            return found if found == {"d1": "accepted", "d2": "withdrawn"} else None

        await eventually(outcomes)
    finally:
        await postgres.close()


async def test_a_decline_makes_room_and_the_other_channel_replays(
    serve: Serve, session: aiohttp.ClientSession
) -> None:
    server = await serve(env=FAST)
    driver = await App(session, server, "driver", "d1").open()
    await driver.online()
    rider = App(session, server, "customer", "r1")
    trip = await rider.trip()
    await driver.frame("offer")
    frame = {"type": "trip_action", "action": "decline", "trip_request_id": trip}
    await driver.send({**frame, "id": 1, "idempotency_key": "k1"})
    assert (await driver.frame("ack"))["response_code"] == "trip_declined"
    status, body = await driver.post(
        "/api/driver/ride/trip-action",
        {"action": "decline", "trip_request_id": trip},
        **{"Idempotency-Key": "k1"},
    )
    assert (status, body["response_code"]) == (200, "trip_declined")
    second = await App(session, server, "driver", "d2").open()
    await second.online()
    assert (await second.frame("offer"))["trip"]["id"] == trip
    assert sum(f["type"] == "offer" for f in driver.frames) == 1


async def test_two_servers_and_a_kill(serve: Serve, session: aiohttp.ClientSession) -> None:
    one, two = await serve(env=FAST), await serve(env=FAST)
    comes_back = await App(session, two, "driver", "d1").open()
    stays_away = await App(session, two, "driver", "d2").open()
    await comes_back.online()
    rider = await App(session, one, "customer", "r1").open()
    taken = await rider.trip()
    await comes_back.frame("offer")
    await stays_away.online()
    held = await App(session, one, "customer", "r2").trip()
    await stays_away.frame("offer", lambda f: f["trip"]["id"] == held)
    assert (await stays_away.accept(held))["status"] == 200
    two.kill9()
    again = await App(session, one, "driver", "d1").open()
    snapshot = (await again.frame("welcome"))["snapshot"]
    assert taken in [offer["trip"]["id"] for offer in snapshot["offers"]]
    # Whoever does not come back is offline after TTL and grace; the trip goes to another driver.
    offer = await again.frame("offer", lambda f: f["trip"]["id"] == held)
    assert offer["trip"]["version"] == 2
    assert (await again.accept(taken))["status"] == 200
    await rider.frame("trip", lambda f: f["event"] == "accepted")
    postgres = await asyncpg.connect(one.database_url)
    row = await postgres.fetchrow("SELECT is_online FROM driver_details WHERE user_id = 'd2'")
    await postgres.close()
    assert row is not None
    assert row["is_online"] is False


async def test_two_sockets_one_closes(serve: Serve, session: aiohttp.ClientSession) -> None:
    server = await serve(env={**FAST, "DISPATCHER_PRESENCE_GRACE_S": "0"})
    first = await App(session, server, "driver", "d1").open(beats=False)
    second = await App(session, server, "driver", "d1").open(beats=False)
    await first.online()
    client = redis.asyncio.Redis.from_url(server.redis_url, decode_responses=True)
    try:
        welcome = await second.frame("welcome")
        assert first.socket is not None
        await first.socket.close()
        listed = "dsp:{default}:connections:driver:d1"

        async def one_left() -> bool:
            left = set(await client.zrange(listed, 0, -1))
            return left - {"http"} == {welcome["connection_id"]}

        await eventually(one_left)
        about = await client.get(f"dsp:{{default}}:presence:driver:d1:{welcome['connection_id']}")
        assert set(orjson.loads(about)) == {"node", "ip", "user_agent", "since"}
        for _ in range(30):  # longer than the TTL: heartbeats keep the driver there
            await second.send({"type": "heartbeat"})
            await asyncio.sleep(0.1)
        assert await client.hget("dsp:{default}:driver:d1", "is_online") == "1"
        # And without a sign of life, the server closes the socket and takes the driver offline.
        assert await second.closed() == 4408

        async def offline() -> bool:
            return await client.hget("dsp:{default}:driver:d1", "is_online") == "0"

        await eventually(offline)
    finally:
        await client.aclose()


async def test_late_points_do_not_move_a_driver_back(
    serve: Serve, session: aiohttp.ClientSession
) -> None:
    server = await serve(env=FAST)
    driver = await App(session, server, "driver", "d1").open()
    await driver.online()
    now = int(time.time() * 1000)
    path = "/api/driver/ride/location"
    assert (await driver.post(path, {"lat": 41, "lng": -74, "recorded_at": now + 600_000}))[0] == 202
    _, body = await driver.post(path, {"lat": 42, "lng": -75, "recorded_at": now - 600_000})
    assert body["taken"] == 0
    client = redis.asyncio.Redis.from_url(server.redis_url, decode_responses=True)
    assert await client.hget("dsp:{default}:driver:d1", "lat") == "41.0"
    fix = int(await client.hget("dsp:{default}:driver:d1", "fix_ms") or 0)
    await client.aclose()
    assert fix <= int(time.time() * 1000), "a point from the future is clamped to now"
    postgres = await asyncpg.connect(server.database_url)

    async def saved() -> bool:
        row = await postgres.fetchrow("SELECT current_location FROM driver_details")
        return row is not None and row["current_location"] == asyncpg.Point(-74, 41)

    await eventually(saved)
    await postgres.close()


async def test_no_driver_the_trip_expires(
    serve: Serve, session: aiohttp.ClientSession, tmp_path: Any
) -> None:
    zones = tmp_path / "zones.toml"
    zones.write_text(
        "[zones.default]\ndispatch = 'nearest'\n"
        "waves = [{ size = 1, radius_m = 500, deadline_s = 0.3 }]\n"
    )
    server = await serve(env={**FAST, "DISPATCHER_ZONES_FILE": str(zones)})
    rider = await App(session, server, "customer", "r1").open()
    await rider.trip()
    told = await rider.frame("trip", lambda f: f["event"] == "expired")
    assert told["trip"]["current_status"] == "expired"


async def test_offered_policy(serve: Serve, session: aiohttp.ClientSession, tmp_path: Any) -> None:
    zones = tmp_path / "zones.toml"
    zones.write_text('[zones.default]\naccept_policy = "offered"\n')
    server = await serve(env={**FAST, "DISPATCHER_ZONES_FILE": str(zones)})
    near = await App(session, server, "driver", "near").open()
    await near.online()
    uninvited = App(session, server, "driver", "uninvited")
    status, _ = await uninvited.post(
        "/api/driver/availability", {"is_online": True, "location": {"lat": 51.5, "lng": 0}}
    )
    assert status == 200
    trip = await App(session, server, "customer", "r1").trip()
    await near.frame("offer")
    action = {"action": "accept", "trip_request_id": trip}
    status, body = await uninvited.post("/api/driver/ride/trip-action", action)
    assert (status, body["response_code"]) == (403, "not_offered")
    assert (await near.accept(trip))["status"] == 200


BAD_FRAMES = [
    ("{", "malformed_json"),
    ("[]", "malformed_json"),
    ('{"type":"what"}', "unknown_frame_type"),
    ('{"type":"location","lat":91,"lng":0}', "invalid_location"),
    ('{"type":"trip_action","action":"fly","trip_request_id":"default_x"}', "unknown_action"),
    ('{"type":"trip_action","action":"accept","trip_request_id":"no such"}', "invalid_trip_id"),
    ('{"type":"trip_action","action":"arrive","trip_request_id":"default_x"}', "trip_not_found"),
    ('{"type":"heartbeat","id":[]}', "invalid_frame"),
]


async def test_bad_frames(serve: Serve, session: aiohttp.ClientSession) -> None:
    server = await serve(env=FAST)
    app = await App(session, server, "driver", "d1").open(beats=False)
    assert app.socket is not None
    await app.frame("welcome")
    for number, (text, code) in enumerate(BAD_FRAMES):
        await app.socket.send_str(text)
        await app.frame("error", lambda f, code=code: f["response_code"] == code)
        await app.send({"type": "heartbeat", "id": number})
        await app.frame("ack", lambda f, number=number: f["id"] == number)
    errors = [f["response_code"] for f in app.frames if f["type"] == "error"]
    assert errors == [code for _, code in BAD_FRAMES]


async def test_sockets_that_are_closed(serve: Serve, session: aiohttp.ClientSession) -> None:
    server = await serve(env={**FAST, "DISPATCHER_PRESENCE_TTL_S": "60"})
    bystander = await App(session, server, "driver", "d0").open()
    binary = await App(session, server, "driver", "d1").open()
    assert binary.socket is not None
    await binary.socket.send_bytes(b"{}")
    assert await binary.closed() == 1003
    big = await App(session, server, "driver", "d2").open()
    assert big.socket is not None
    await big.socket.send_str("x" * (1 << 20))
    assert await big.closed() == 1009
    flood = await App(session, server, "driver", "d3").open()
    assert flood.socket is not None
    with contextlib.suppress(ConnectionError):
        for _ in range(1000):
            await flood.socket.send_str('{"type":"heartbeat"}')
    assert await flood.closed() == 4429
    assert any(f.get("response_code") == "too_many_frames" for f in flood.frames)
    stranger = App(session, server, "driver", "d4")
    stranger.headers = {}
    await stranger.open(beats=False)
    await stranger.send({"type": "heartbeat"})
    assert await stranger.closed() == 4400
    expires = App(session, server, "driver", "d5")
    soon = make_token("d5", "driver", exp=int(time.time()) - 3)  # within the leeway of 5 s
    expires.headers = {"Authorization": f"Bearer {soon}"}
    await expires.open(beats=False)
    assert await expires.closed() == 4401
    async with session.get(
        server.url + "/ws", headers={**bystander.headers, "Origin": "https://elsewhere.example"}
    ) as answer:
        assert answer.status == 403
    await bystander.send({"type": "heartbeat", "id": 1})
    await bystander.frame("ack")
    await server.stop()
    assert await bystander.closed() == 1012


async def test_first_frame_authentication(serve: Serve, session: aiohttp.ClientSession) -> None:
    server = await serve(env=FAST)
    app = App(session, server, "driver", "d1")
    token = app.headers.pop("Authorization").removeprefix("Bearer ")
    await app.open(beats=False)
    await app.send({"type": "auth", "token": token})
    assert (await app.frame("welcome"))["timeout_s"] == 2


async def test_a_socket_that_never_reads_is_closed(serve: Serve, session: aiohttp.ClientSession) -> None:
    server = await serve(env={**FAST, "DISPATCHER_PRESENCE_TTL_S": "60"})
    driver = await App(session, server, "driver", "d1").open()
    await driver.online()
    host, port = server.url.removeprefix("http://").split(":")
    # As little room as the kernel gives, so that the noise that nobody reads has to be waited for soon.
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    line.connect((host, int(port)))
    _, deaf = await asyncio.open_connection(sock=line, limit=1024)
    deaf.write(
        (
            f"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"Authorization: Bearer {make_token('r1', 'customer')}\r\n\r\n"
        ).encode()
    )
    await deaf.drain()
    rider = App(session, server, "customer", "r1")

    async def noise() -> bool:
        await asyncio.gather(*(rider.trip() for _ in range(100)))
        return any("client does not read" in line for line in server.log_lines())

    await eventually(noise, within_s=60)
    deaf.transport.abort()
    await driver.send({"type": "heartbeat", "id": 1})
    await driver.frame("ack")


async def test_fifteen_accepts_in_a_minute(serve: Serve, session: aiohttp.ClientSession) -> None:
    server = await serve(env={**FAST, "DISPATCHER_LIMIT_TRIP_ACCEPT": "10/2"})
    app = App(session, server, "driver", "d1")
    await app.online()
    rider = App(session, server, "customer", "r1")
    trips = [await rider.trip() for _ in range(15)]
    path = f"{server.url}/api/driver/ride/trip-action"
    statuses, headers = [], {}
    for trip in trips:
        body = {"action": "accept", "trip_request_id": trip}
        async with session.post(path, json=body, headers=app.headers) as answer:
            statuses.append(answer.status)
            headers = dict(answer.headers)
            problem = await answer.json(content_type=None)
    assert statuses[:10] == [200] + [409] * 9
    assert statuses[10:] == [429] * 5
    assert problem["response_code"] == "rate_limit_exceeded"
    assert problem["retry_after"] == int(headers["Retry-After"])
    assert problem["message"].endswith(f"Please try again in {headers['Retry-After']} seconds.")
    assert (headers["X-RateLimit-Limit"], headers["X-RateLimit-Remaining"]) == ("10", "0")
    await asyncio.sleep(int(headers["Retry-After"]))  # what is tested is that this is enough
    body = {"action": "accept", "trip_request_id": trips[0]}
    async with session.post(path, json=body, headers=app.headers) as answer:
        assert answer.status == 409

    async def is_logged() -> bool:
        return any("Rate limit exceeded" in line for line in server.log_lines())

    await eventually(is_logged)


async def test_availability_by_frame_is_that_by_http(
    serve: Serve, session: aiohttp.ClientSession
) -> None:
    """One command, one key, one answer, whichever way it comes and however often."""
    server = await serve(env=FAST)
    app = await App(session, server, "driver", "d1").open()
    await app.frame("welcome")
    change = {"is_online": True, "vehicle_type": "van", "location": PLACE}
    frames = [{"type": "availability", "id": i, "idempotency_key": "k1", **change} for i in (1, 2)]
    for frame in frames:
        await app.send(frame)
    acks = [await app.frame("ack", lambda f, i=i: f["id"] == i) for i in (1, 2)]
    assert [ack["replayed"] for ack in acks] == [False, True]
    path = "/api/driver/availability"
    status, body = await app.post(path, change, **{"Idempotency-Key": "k1"})
    assert status == 200
    assert {**body, "type": "ack", "id": 1, "status": 200, "replayed": False} == acks[0]
    assert body["response_code"] == "availability_updated"
    assert body["keeps_offers_away"] == []
    await app.send({"type": "availability", "id": 3, "idempotency_key": "k1", "is_online": False})
    assert (await app.frame("error", lambda f: f["id"] == 3))["response_code"] == (
        "idempotency_key_reused"
    )
    async with session.get(server.url + "/api/driver/state", headers=app.headers) as answer:
        state = await answer.json()
    assert (state["driver"]["vehicle_type"], state["keeps_offers_away"]) == ("van", [])
    await app.send({"type": "availability", "id": 4, "is_online": False})
    ack = await app.frame("ack", lambda f: f["id"] == 4)
    assert ack["keeps_offers_away"] == ["offline"]
    await app.send({"type": "availability", "id": 5, "zone": "nowhere"})
    assert (await app.frame("error", lambda f: f["id"] == 5))["response_code"] == "invalid_zone"
