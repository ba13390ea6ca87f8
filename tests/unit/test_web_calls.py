"""Over HTTP: what was asked is what the services hear."""

from __future__ import annotations

import asyncio
import re

import orjson

from dispatcher.core.actors import Actor, Role
from dispatcher.core.errors import Refusal
from tests.unit.http_harness import (
    ACTION,
    ADMIN,
    AVAILABILITY,
    CANCEL,
    CREATE,
    CUSTOMER,
    DRIVER,
    GOOD,
    LOCATION,
    PLACE,
    TRIP,
    Client,
    check_problem,
    open_client,
)


async def test_everything_is_passed_on(client: Client) -> None:
    await client.send(
        "POST", CREATE, CUSTOMER,
        {"pickup": PLACE, "dropoff": {"lat": 1, "lng": 2}, "vehicle_type": "van", "zone": "nyc",
         "trip_request_id": "own-1"},
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
    assert orjson.loads(key.request_payload)["dropoff"] == {"lat": 1, "lng": 2}

    await client.send("POST", ACTION, DRIVER, {"action": "start", "trip_request_id": TRIP, "version": 2})
    assert client.notes.calls[1][1] == {
        "actor": Actor("d1", Role.DRIVER), "action": "start", "trip_id": TRIP, "version": 2,
        "key": None, "ip": "127.0.0.1", "reason": None,
    }  # fmt: skip
    for path, actor in ((CANCEL, "c1"), ("/api/admin/ride/cancel", "a1")):
        await client.send("POST", path, GOOD[path][0], {"trip_request_id": TRIP, "reason": "late"})
        got = client.notes.calls[-1][1]
        assert (got["actor"].user_id, got["action"], got["reason"]) == (actor, "cancel", "late")
    for path, actor in (("/api/customer/ride/end", "c1"), ("/api/admin/ride/end", "a1")):
        body = {"trip_request_id": TRIP, "reason": "gone", "version": 3}
        await client.send("POST", path, GOOD[path][0], body)
        name, got = client.notes.calls[-1]
        assert (name, got["actor"].user_id, got["trip_id"]) == ("end", actor, TRIP)
        assert (got["reason"], got["version"]) == ("gone", 3)
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
    timeline = (await client.send("GET", f"/api/admin/ride/{TRIP}/timeline", ADMIN))[2]
    assert set(timeline) == {"trip_id", "trip", "events", "offers", "races"}
    await client.send("GET", "/api/admin/rides/abandoned?older_than_s=60", ADMIN)
    await client.send("GET", "/api/admin/rides/abandoned?zone=nyc", ADMIN)
    await client.send("GET", "/api/admin/zones/nyc/statistics", ADMIN)
    await client.send("GET", "/api/admin/zones/nyc/pending?after=5~t&limit=2", ADMIN)
    await client.send("GET", "/api/admin/zones/nyc/dead-letters?after=5-1", ADMIN)
    await client.send("GET", "/api/driver/state", DRIVER)
    await client.send("GET", "/api/customer/rides?limit=3", CUSTOMER)
    assert client.notes.calls == [
        ("pending_near", 7), ("pending_near", 20), ("read", TRIP), ("timeline", TRIP),
        ("abandoned", (None, 60)),
        ("abandoned", ("nyc", 3600)), ("zone_statistics", "nyc"),
        ("pending", ("nyc", "5~t", 2)), ("dead_letters", ("nyc", "5-1", 50)), ("driver_state", "d1"), ("rides", ("c1", None, 3)),
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
    for query, code in (
        ("older_than_s=-1", "invalid_body"),
        ("older_than_s=", "invalid_body"),
        ("older_than_s=1.0", "invalid_body"),
        ("older_than_s=%201", "invalid_body"),
        ("older_than_s=1_0", "invalid_body"),
        ("zone=A", "invalid_zone"),
        ("zone=", "invalid_zone"),
    ):
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
    client.notes.found_trip = Refusal("trip_not_found")
    status, headers, problem = await client.send("GET", path, CUSTOMER)
    check_problem(status, headers, problem)
    assert headers["RateLimit"].startswith('"general"')


async def test_questions_and_positions_have_a_deadline_as_changes_do() -> None:
    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    async for client in open_client(request_deadline_s=1.0, commit_timeout_s=0.5):
        client.notes.pending_near = client.notes.report = hang  # type: ignore[method-assign]
        asked = (
            client.send("GET", "/api/driver/ride/pending", DRIVER),
            client.send("POST", LOCATION, DRIVER, {"lat": 1, "lng": 2}),
        )
        for status, headers, problem in await asyncio.wait_for(asyncio.gather(*asked), 5):
            assert (status, problem["response_code"]) == (503, "service_unavailable")
            assert headers["Retry-After"]
