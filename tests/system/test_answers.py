"""Answers and frames are what their models say: a walk through all of them, over a server of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import BaseModel, ValidationError

from dispatcher.web.endpoints import ENDPOINTS
from dispatcher.web.protocol import SERVER_FRAMES, ServerFrameType
from dispatcher.web.response_headers import header_names
from tests.harness.description import Description
from tests.harness.servers import Serve, make_token

HERE = {"lat": 40.7559, "lng": -73.9864}
NEAR = {"lat": 40.7569, "lng": -73.9864}
PICKUP = {"pickup": HERE}
AIRPORT = {"lat": 40.65, "lng": -73.75}
ENDPOINT = {endpoint.name: endpoint for endpoint in ENDPOINTS}
#: Rounds of matching give offers their scores; whoever vanishes may be ended at once.
_ZONES = """
[zones.city]
area = "area.geojson#city"
dispatch = "matched"
match_every_s = 0.5
match_head_start_s = 0.2
waves = [{ size = 2, radius_m = 5000, deadline_s = 60 }]

[zones.city.queues.airport]
area = "area.geojson#airport"
"""
_AREA = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature", "properties": {"name": "city"},
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[-74.5, 40.5], [-73.5, 40.5], [-73.5, 41], [-74.5, 41], [-74.5, 40.5]]],
            },
        },
        {
            "type": "Feature", "properties": {"name": "airport"},
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[-73.8, 40.6], [-73.7, 40.6], [-73.7, 40.7], [-73.8, 40.7], [-73.8, 40.6]]],
            },
        },
    ],
}  # fmt: skip


class Walker:
    """Asks, and holds each answer against the model and the headers of its endpoint."""

    def __init__(self, session: aiohttp.ClientSession, url: str, description: Description) -> None:
        self.session, self.url, self.description = session, url, description
        self.asked: set[str] = set()
        self._keys = 0

    async def ask(self, name: str, user: str, body: Any = None, key: str = "", **parameters: Any) -> Any:
        endpoint = ENDPOINT[name]
        path = endpoint.path.format(**parameters)
        query = {k: v for k, v in parameters.items() if f"{{{k}}}" not in endpoint.path}
        headers = {"X-Request-Id": f"walk-{name}"}
        if endpoint.role is not None:
            headers["Authorization"] = f"Bearer {make_token(user, endpoint.role)}"
        if endpoint.body:
            self._keys += 1
            headers["Idempotency-Key"] = key or f"key-{self._keys}"
        for _ in range(50):
            async with self.session.request(
                endpoint.method, self.url + path, json=body, params=query, headers=headers
            ) as response:
                raw = await response.read()
            if b'"trip_busy"' not in raw:
                break
            await asyncio.sleep(0.1)  # a wave runs just now: as apps do, once more
        else:
            raise AssertionError((name, raw))
        assert response.status == endpoint.status, (name, raw)
        assert endpoint.answer is not None
        endpoint.answer.model_validate_json(raw)
        self.description.check(endpoint, response.status, response.headers, raw)
        names = set(header_names(endpoint, response.status)) - {"X-Idempotent-Replay"}
        assert [each for each in names if each not in response.headers] == [], name
        assert response.headers["X-Request-Id"] == f"walk-{name}"
        assert (response.headers.get("X-Idempotent-Replay") == "true") is bool(key)
        self.asked.add(name)
        return json.loads(raw)

    async def until(self, name: str, user: str, has_come: Any, **parameters: Any) -> Any:
        """Asks until the answer is as wanted: what a background job brings may take a moment."""
        async with asyncio.timeout(20):
            while not has_come(answer := await self.ask(name, user, **parameters)):
                await asyncio.sleep(0.1)
        return answer


class Socket:
    """A user's socket; each frame that comes is held against the models of its type."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._reading = asyncio.create_task(self._read())
        self._news = asyncio.Event()
        self.frames: list[dict[str, Any]] = []

    async def _read(self) -> None:
        try:
            async for message in self._socket:
                frame = json.loads(message.data)
                _fits_one(SERVER_FRAMES[ServerFrameType(frame["type"])], message.data)
                self.frames.append(frame)
                self._news.set()
        finally:
            self._news.set()

    async def send(self, **frame: Any) -> dict[str, Any]:
        """Sends a frame with an id; returns its answer."""
        id_ = len(self.frames)
        await self._socket.send_json({"id": id_, **frame})
        return await self.until(lambda each: each["type"] in ("ack", "error") and each["id"] == id_)

    async def until(self, is_wanted: Any) -> dict[str, Any]:
        """The first frame that is wanted."""
        async with asyncio.timeout(20):
            while not (found := [frame for frame in self.frames if is_wanted(frame)]):
                if self._reading.done():
                    await self._reading  # raises what was wrong with a frame
                    raise AssertionError("the socket was closed")
                self._news.clear()
                await self._news.wait()
        return found[0]

    async def close(self) -> None:
        await self._socket.close()
        await self._reading


def _fits_one(models: tuple[type[BaseModel], ...], text: str) -> None:
    errors = []
    for model in models:
        try:
            model.model_validate_json(text)
        except ValidationError as error:
            errors.append(error)
        else:
            return
    raise AssertionError(f"{text} is none of {[model.__name__ for model in models]}: {errors}")


async def test_every_endpoint_and_frame_is_what_its_model_says(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "area.geojson").write_text(json.dumps(_AREA))
    (tmp_path / "zones.toml").write_text(_ZONES)
    server = await serve(
        env={
            "DISPATCHER_ZONES_FILE": str(tmp_path / "zones.toml"),
            "DISPATCHER_CUSTOMER_MAY_END_AFTER_S": "0",
            "DISPATCHER_LIMIT_GENERAL": "10000/60",
            "DISPATCHER_POSITION_FLUSH_S": "0.2",
            "DISPATCHER_DRAIN_S": "0",
        }
    )
    async with aiohttp.ClientSession() as session:
        description = await (await session.get(f"{server.url}/openapi.json")).json()
        walker = Walker(session, server.url, Description(description))
        await _walk(walker)
        seen = await _walk_by_frames(walker)
        assert seen == set(ServerFrameType), "a frame of the walk is missing"
        unasked = {e.name for e in ENDPOINTS if e.answer is not None} - walker.asked
        assert unasked == set(), "a line of the walk is missing"
    assert await server.stop() == 0


async def _walk(walker: Walker) -> None:
    ask = walker.ask

    async def step(driver: str, action: str, trip: str) -> Any:
        return await ask("trip_action", driver, {"action": action, "trip_request_id": trip})

    async def create() -> str:
        return str((await ask("create", "c1", PICKUP))["trip"]["id"])

    async def under_way(driver: str) -> str:
        trip = await create()
        for action in ("accept", "arrive", "start"):
            await step(driver, action, trip)
        return trip

    await ask("healthz", "")
    await ask("readyz", "")
    online = {"is_online": True, "availability_status": "available", "zone": "city"}
    assert (await ask("availability", "d1", online))["keeps_offers_away"] == ["no_position"]
    await ask("availability", "d2", {**online, "location": NEAR})
    points = [{**HERE, "recorded_at": "2026-01-01T00:00:00Z"}, HERE]
    assert (await ask("location", "d1", {"points": points}))["taken"] == 2
    first = await create()
    assert (await ask("pending", "d1"))["trips"][0]["distance_m"] == 0
    asked = await walker.until("trip_offers", "a1", lambda page: page["offers"], id=first)
    assert asked["offers"][0]["score"]["next"] is not None
    driver = await ask("driver", "a1", driver_id="d1")
    assert driver["presence"]["connections"]
    assert driver["offers"]
    assert (await ask("why", "a1", trip=first, driver="d2"))["filters"]
    await step("d2", "decline", first)
    accepting = {"action": "accept", "trip_request_id": first}
    answer = await ask("trip_action", "d1", accepting)
    key = f"key-{walker._keys}"
    assert await ask("trip_action", "d1", accepting, key=key) == answer
    for name, user in (("customer_trip", "c1"), ("driver_trip", "d1"), ("admin_trip", "a1")):
        assert (await ask(name, user, id=first))["trip"] == answer["trip"]
    assert (await ask("abandoned", "a1", older_than_s=0))["trips"]
    statistics = await ask("statistics", "a1", zone="city")
    assert statistics["trips"] == {"accepted": 1}
    assert statistics["drivers"]["on_trip"] == 1
    assert (await ask("driver_state", "d1"))["trip"]["id"] == first
    assert (await ask("driver_state", "nobody"))["driver"] is None
    assert [trip["id"] for trip in (await ask("rides", "c1"))["trips"]] == [first]
    await step("d1", "cancel", first)
    await ask("assign", "a1", {"trip_request_id": first, "driver_id": "d2"})
    await ask("cancel", "c1", {"trip_request_id": first, "reason": "plans have changed"})
    second = await create()
    assert (await ask("zone_pending", "a1", zone="city"))["trips"][0]["id"] == second
    assert (await ask("offer", "a1", {"trip_request_id": second, "driver_id": "d1"}))["offer"]
    await ask("admin_cancel", "a1", {"trip_request_id": second})
    assert (await ask("dead_letters", "a1", zone="city"))["dead_letters"] == []
    third = await under_way("d1")
    await step("d1", "complete", third)
    fourth = await under_way("d1")
    await ask("admin_end", "a1", {"trip_request_id": fourth, "reason": "the driver is gone"})
    fifth = await create()
    await step("d1", "accept", fifth)
    assert (await ask("availability", "d1", {"is_online": False}))["released_trip"]["id"] == fifth
    await ask("admin_cancel", "a1", {"trip_request_id": fifth})
    sixth = await under_way("d2")
    assert (await ask("force_offline", "a1", {"driver_id": "d2"}))["released_trip"] is None
    await ask("end", "c1", {"trip_request_id": sixth})
    timeline = await ask("timeline", "a1", id=first)
    assert [event["version"] for event in timeline["events"]] == list(range(5))
    assert (await ask("trips", "a1", search="d1", limit=1))["next"] is not None
    assert (await ask("drivers", "a1", limit=1))["next"] == "d1"
    await walker.until("driver_offers", "a1", lambda page: page["offers"], driver_id="d2")
    assert (await ask("driver", "a1", driver_id="d2"))["obstacles"]
    assert (await ask("why", "a1", trip=first, driver="d2"))["history"]
    await _at_the_airport(walker)
    outlines = {zone["name"]: zone["outline"] for zone in (await ask("zones", "a1"))["zones"]}
    assert outlines["city"]["type"] == "Polygon"
    assert outlines["default"] is None


async def _at_the_airport(walker: Walker) -> None:
    ask = walker.ask
    await ask("availability", "q1", {"is_online": True, "zone": "city", "location": AIRPORT})
    assert (await ask("driver_state", "q1"))["queue"]["position"] == 1
    assert (await ask("driver", "a1", driver_id="q1"))["queue"]["queue"] == "airport"
    trip = (await ask("create", "c9", {"pickup": AIRPORT}))["trip"]["id"]
    asked = await walker.until("trip_offers", "a1", lambda page: page["offers"], id=trip)
    assert asked["offers"][0]["score"] == {"queue": "airport", "position": 1}
    await ask("cancel", "c9", {"trip_request_id": trip})
    assert (await ask("heat", "q1", zone="city"))["resolution"] == 7


async def _walk_by_frames(walker: Walker) -> set[str]:
    """What is asked by frames, and what is pushed; returns the types of frames that came."""
    async with contextlib.AsyncExitStack() as stack:

        async def connect(user: str, role: str) -> Socket:
            headers = {"Authorization": f"Bearer {make_token(user, role)}"}
            socket = Socket(await walker.session.ws_connect(f"{walker.url}/ws", headers=headers))
            stack.push_async_callback(socket.close)
            return socket

        online = {"is_online": True, "availability_status": "available", "zone": "city"}
        for driver in ("d3", "d4"):
            await walker.ask("availability", driver, {**online, "location": NEAR})
        d3, d4 = await connect("d3", "driver"), await connect("d4", "driver")
        q2 = await connect("q2", "driver")
        rider, admin = await connect("c3", "customer"), await connect("a1", "admin")
        sockets = (d3, d4, q2, rider, admin)
        for socket in sockets:
            await socket.until(lambda frame: frame["type"] == "welcome")
        await walker.ask("availability", "q2", {**online, "location": AIRPORT})
        number = await q2.until(lambda frame: frame["type"] == "queue")
        assert number["queue"] == "airport"
        assert (await admin.send(type="watch", zone="city"))["response_code"] == "watching"
        assert (await d3.send(type="heartbeat"))["response_code"] == "heartbeat"
        renewed = await d3.send(type="auth", token=make_token("d3", "driver"))
        assert renewed["response_code"] == "token_renewed"
        assert (await d3.send(type="location", **HERE))["taken"] == 1
        trip = (await walker.ask("create", "c3", PICKUP))["trip"]["id"]
        for socket in (d3, d4):
            await socket.until(lambda frame: frame["type"] == "offer" and frame["trip"]["id"] == trip)
        accepted = await d3.send(type="trip_action", action="accept", trip_request_id=trip)
        assert accepted["response_code"] == "trip_accepted"
        lost = await d4.send(type="trip_action", action="accept", trip_request_id=trip)
        assert lost["response_code"] == "trip_already_assigned"
        await d4.until(lambda frame: frame["type"] == "offer_withdrawn")
        await rider.until(lambda frame: frame["type"] == "trip" and frame["event"] == "accepted")
        await d3.send(type="location", **NEAR)
        await rider.until(lambda frame: frame["type"] == "driver_location")
        rider_again = await connect("c3", "customer")
        welcome = await rider_again.until(lambda frame: frame["type"] == "welcome")
        assert [each["id"] for each in welcome["snapshot"]["trips"]] == [trip]
        await rider.send(type="trip_action", action="cancel", trip_request_id=trip)
        await walker.ask("force_offline", "a1", {"driver_id": "d4"})
        await d4.until(lambda frame: frame["type"] == "driver")
        await admin.until(lambda frame: frame["type"] == "zone_view" and frame["events"])
        assert (await admin.send(type="unwatch"))["response_code"] == "not_watching"
        return {frame["type"] for socket in sockets for frame in socket.frames}
