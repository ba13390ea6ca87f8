"""Over HTTP: bodies that are wrong, too large or of another type."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from dispatcher.core.errors import PROBLEMS
from dispatcher.web import requests
from tests.unit.http_harness import (
    ACTION,
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
)

LONG = "default_" + "x" * 10_000


@pytest.fixture(autouse=True)
def _what_is_left_is_read_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a body that is too large: each test would stop its server for 5 s."""
    monkeypatch.setattr("dispatcher.web.fastpath._LINGER_S", 1.0)


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
            for bad in (-1, True, "1", 1.5, 2**31, 10**19, [])
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


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (ACTION, {"action": "accept", "trip_request_id": TRIP, "verison": 1}, "verison"),
        (CANCEL, {"trip_request_id": TRIP, "verison": 1}, "verison"),
        ("/api/admin/ride/cancel", {"trip_request_id": TRIP, "action": "cancel"}, "action"),
        (CREATE, {"pickup": PLACE, "customer_id": "c2"}, "customer_id"),
        (CREATE, {"pickup": {**PLACE, "lon": 1}}, "pickup.lon"),
        (LOCATION, {**PLACE, "at": 1}, "at"),
        (LOCATION, {"points": [PLACE], "lat": 1}, "lat"),
        (LOCATION, {"points": [PLACE, {**PLACE, "heading": 1}]}, "points.1.heading"),
        (LOCATION, {**PLACE, "location": PLACE}, "location"),
        (AVAILABILITY, {"is_online": True, "location": PLACE, "lat": 40.7, "lng": -73.9}, "lat"),
        (AVAILABILITY, {"is_online": True, "v" * 1_000: 1}, "v" * 64),
    ],
)
async def test_a_field_that_nobody_reads_is_refused_by_name(
    client: Client, path: str, body: Any, field: str
) -> None:
    problem = await client.refused("invalid_body", path, GOOD[path][0], body)
    assert problem["field"] == field
    assert problem["message"] == f"{field}: there is no field of this name here."


@pytest.mark.parametrize("bad", ["tank", "Car", "car ", "", "x" * 10_000])
async def test_the_vehicle_types_of_the_service_are_named(client: Client, bad: str) -> None:
    for path, body in ((CREATE, {"pickup": PLACE}), (AVAILABILITY, {"is_online": True})):
        sent = {**body, "vehicle_type": bad}
        problem = await client.refused("invalid_vehicle_type", path, GOOD[path][0], sent)
        assert problem["field"] == "vehicle_type"
        assert problem["message"] == (
            "vehicle_type: must be one of car, bike, van, taxi, suv, scooter, rickshaw, wav."
        )
        assert (await client.send("POST", path, GOOD[path][0], {**body, "vehicle_type": "wav"}))[
            0
        ] == 200


async def test_a_trip_id_without_its_zone_is_told_so(client: Client) -> None:
    problem = await client.refused(
        "invalid_trip_id", ACTION, DRIVER, {"action": "accept", "trip_request_id": "trip-1"}
    )
    assert problem["message"].startswith("trip_request_id: a trip id is its zone's name, '_', and")


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


def test_queries_and_bodies_share_their_codes() -> None:
    assert set(requests.FIELD_CODES.values()) <= set(PROBLEMS)
