"""Frames of the WebSocket: their rules are those of HTTP, and the README names all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from dispatcher.core.actors import Actor, Role
from dispatcher.core.zones import Zones
from dispatcher.web.frame_handlers import FrameHandlers
from dispatcher.web.idempotency_key import key_of
from tests.unit.http_harness import (
    ACTION,
    CANCEL,
    PLACE,
    TRIP,
    Notes,
    commands_as_notes,
)


@pytest.fixture(autouse=True)
def _commands() -> Iterator[None]:
    with commands_as_notes():
        yield


async def test_frames_have_the_rules_of_http() -> None:
    notes = Notes()
    service: Any = notes
    frames = FrameHandlers(zones=Zones(), coordinator=service, positions=service, limits=service)
    driver, rider = Actor("d1", Role.DRIVER), Actor("c1", Role.CUSTOMER)
    body = {"action": "accept", "trip_request_id": TRIP, "version": 1}
    frame = {"type": "trip_action", "id": 7, "idempotency_key": "k", **body}
    await frames.trip_action(driver, frame, "ip")
    assert notes.calls[-1][1]["key"] == key_of("k", driver, ACTION, body, required=False)
    await frames.trip_action(
        rider,
        {"type": "trip_action", "action": "cancel", "trip_request_id": TRIP, "idempotency_key": "k"},
        None,
    )
    assert notes.calls[-1][1]["key"] == key_of(
        "k", rider, CANCEL, {"trip_request_id": TRIP}, required=False
    )
    await frames.location(driver, {"type": "location", "id": 1, **PLACE}, None)
    assert notes.calls[-1][1]["points"] == [(40.75, -73.98, None)]
    heard = len(notes.calls)
    for actor, call, bad, code in (
        (driver, frames.trip_action, {**frame, "version": -1}, "invalid_version"),
        (driver, frames.trip_action, {**frame, "idempotency_key": 5}, "invalid_idempotency_key"),
        (rider, frames.trip_action, frame, "unknown_action"),
        (rider, frames.location, PLACE, "wrong_role"),
        (driver, frames.location, {"lat": 91, "lng": 0}, "invalid_location"),
    ):
        answer = await call(actor, bad, None)
        assert json.loads(answer.body)["response_code"] == code
        assert answer.limit is not None
    assert len(notes.calls) == heard
    required = FrameHandlers(
        zones=Zones(), coordinator=service, positions=service, limits=service, idempotency_required=True
    )
    answer = await required.trip_action(driver, body, None)
    assert json.loads(answer.body)["response_code"] == "missing_idempotency_key"
