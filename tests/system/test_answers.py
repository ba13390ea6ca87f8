"""Every endpoint answers what the description says: a walk through all of them, over a server of its own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp

from dispatcher.web.endpoints import ENDPOINTS
from dispatcher.web.response_headers import header_names
from tests.harness.servers import Serve, make_token

HERE = {"lat": 40.7559, "lng": -73.9864}
NEAR = {"lat": 40.7569, "lng": -73.9864}
PICKUP = {"pickup": HERE}
ENDPOINT = {endpoint.name: endpoint for endpoint in ENDPOINTS}
#: Rounds of matching give offers their scores; whoever vanishes may be ended at once.
_ZONES = """
[zones.city]
area = "area.geojson#city"
dispatch = "matched"
match_every_s = 0.5
match_head_start_s = 0.2
waves = [{ size = 2, radius_m = 5000, deadline_s = 60 }]
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
        }
    ],
}  # fmt: skip


class Walker:
    """Asks, and holds each answer against the model and the headers of its endpoint."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url
        self.asked: set[str] = set()
        self._keys = 0

    async def ask(self, name: str, user: str, body: Any = None, key: str = "", **parameters: Any) -> Any:
        endpoint = ENDPOINT[name]
        path = endpoint.path.format(**parameters)
        query = {k: v for k, v in parameters.items() if f"{{{k}}}" not in endpoint.path}
        headers = {"X-Request-Id": f"walk-{name}"}
        if endpoint.role is not None:
            headers["Authorization"] = f"Bearer {make_token(user, endpoint.role)}"
        if endpoint.is_change:
            self._keys += 1
            headers["Idempotency-Key"] = key or f"key-{self._keys}"
        async with self.session.request(
            endpoint.method, self.url + path, json=body, params=query, headers=headers
        ) as response:
            raw = await response.read()
            assert response.status == endpoint.status, (name, raw)
            assert endpoint.answer is not None
            endpoint.answer.model_validate_json(raw)
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


async def test_every_endpoint_answers_what_its_model_says(serve: Serve, tmp_path: Path) -> None:
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
        walker = Walker(session, server.url)
        await _walk(walker)
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
    assert (await ask("statistics", "a1", zone="city"))["trips"] == {"accepted": 1}
    await step("d1", "cancel", first)
    await ask("assign", "a1", {"trip_request_id": first, "driver_id": "d2"})
    await ask("cancel", "c1", {"trip_request_id": first, "reason": "plans have changed"})
    second = await create()
    await ask("admin_cancel", "a1", {"trip_request_id": second})
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
    outlines = {zone["name"]: zone["outline"] for zone in (await ask("zones", "a1"))["zones"]}
    assert outlines["city"]["type"] == "Polygon"
    assert outlines["default"] is None
