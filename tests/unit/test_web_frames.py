"""Frames of the WebSocket: their rules are those of HTTP, and docs/api.md names all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from dispatcher.core.actors import Actor, Role
from dispatcher.service.answers import Answer, RateLimited, refusal_answer
from dispatcher.web import client_frames, requests, server_frames
from dispatcher.web.availability_change import read_availability
from dispatcher.web.idempotency_key import key_of
from dispatcher.web.protocol import (
    CLIENT_FRAMES,
    CLOSE_REASONS,
    SERVER_FRAMES,
    ClientFrameType,
    CloseCode,
    ServerFrameType,
    encode_ack,
    encode_error,
    encode_welcome,
    frame_id,
    read_first_token,
    read_frame,
    read_positions,
    read_trip_action,
    read_watched_zone,
)
from tests.unit.http_harness import (
    ACTION,
    AVAILABILITY,
    CANCEL,
    PLACE,
    TRIP,
    Notes,
    commands_as_notes,
    frame_handlers_of,
    state,
)


@pytest.fixture(autouse=True)
def _commands() -> Iterator[None]:
    with commands_as_notes():
        yield


async def test_frames_have_the_rules_of_http() -> None:
    notes = Notes()
    frames = frame_handlers_of(notes)
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
    change = {"is_online": True, "vehicle_type": "van", "location": PLACE}
    await frames.availability(
        driver, {"type": "availability", "id": 2, "idempotency_key": "k", **change}, "ip"
    )
    name, got = notes.calls[-1]
    assert (name, got["is_online"], got["vehicle_type"]) == ("set_availability", True, "van")
    assert got["location"] == (40.75, -73.98)
    assert got["key"] == key_of("k", driver, AVAILABILITY, change, required=False)
    heard = len(notes.calls)
    for actor, call, bad, code in (
        (driver, frames.trip_action, {**frame, "version": -1}, "invalid_version"),
        (driver, frames.trip_action, {**frame, "idempotency_key": 5}, "invalid_idempotency_key"),
        (rider, frames.trip_action, frame, "unknown_action"),
        (rider, frames.location, PLACE, "wrong_role"),
        (driver, frames.location, {"lat": 91, "lng": 0}, "invalid_location"),
        (rider, frames.availability, {"type": "availability", "is_online": True}, "wrong_role"),
        (driver, frames.availability, {"type": "availability", "id": 1}, "invalid_body"),
        (driver, frames.availability, {"is_online": True, "online": 1}, "invalid_body"),
        (driver, frames.availability, {"vehicle_type": "boat"}, "invalid_vehicle_type"),
        (
            driver,
            frames.availability,
            {"is_online": True, "idempotency_key": ""},
            "invalid_idempotency_key",
        ),
        (driver, frames.trip_action, {**frame, "verison": 1}, "invalid_body"),
        (driver, frames.location, {"type": "location", "points": [PLACE], **PLACE}, "invalid_body"),
        (driver, frames.location, {"type": "location", "id": 1, **PLACE, "heading": 1}, "invalid_body"),
    ):
        answer = await call(actor, bad, None)
        assert json.loads(answer.body)["response_code"] == code
        assert answer.limit is not None
    assert len(notes.calls) == heard
    required = frame_handlers_of(notes, idempotency_required=True)
    for call, asked in ((required.trip_action, body), (required.availability, change)):
        answer = await call(driver, asked, None)
        assert json.loads(answer.body)["response_code"] == "missing_idempotency_key"


# --- the catalogue of frames, and the tables of them in docs/api.md


PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


def _table(head: str) -> dict[str, str]:
    """The rows of the table with this head: what stands first in a row, and what follows."""
    rows = PAGE.split(f"| {head} |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [row.strip("|").split("|", 1) for row in rows]
    return {first.strip(): rest.strip() for first, rest in cells}


def _code(text: str) -> list[str]:
    """The names in backticks: of frames, or of fields with a mark where they are optional."""
    return re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", text)))


def test_every_frame_of_a_client_is_documented() -> None:
    documented = _table("from the client")
    assert [name.strip("`") for name in documented] == list(ClientFrameType)[1:]
    assert '{"type": "auth", "token": …}' in PAGE
    fields = set(_code(documented["`trip_action`"]))
    assert fields == {*requests.TripAction.model_fields, "idempotency_key"} - {"reason"}
    fields = set(_code(documented["`availability`"]))
    assert fields == {*requests.Availability.model_fields, "idempotency_key"}
    fields = set(_code(documented["`location`"]))
    assert fields == {*requests.Fix.model_fields, *requests.Fixes.model_fields}


def test_every_frame_of_the_server_is_documented() -> None:
    documented = _table("from the server")
    names = [name for first in documented for name in _code(first)]
    assert names == list(ServerFrameType) == list(SERVER_FRAMES)
    fields = {name: set(SERVER_FRAMES[ServerFrameType(name)][0].model_fields) for name in names}
    assert set(_code(documented["`welcome`"])) == fields["welcome"] - {"type"}
    assert set(_code(documented["`offer`, `offer_withdrawn`"])) == fields["offer"] - {"type"}
    assert {"event", "trip"} == fields["trip"] - {"type"}


def test_every_close_code_is_documented() -> None:
    documented = {int(code): reason for code, reason in _table("close code | why").items()}
    assert documented == CLOSE_REASONS
    assert set(CLOSE_REASONS) == set(CloseCode)


def test_every_frame_has_its_models() -> None:
    assert list(CLIENT_FRAMES) == list(ClientFrameType)
    for name, models in [*CLIENT_FRAMES.items(), *SERVER_FRAMES.items()]:
        for model in models:
            assert model.model_fields["type"].annotation == Literal[name.value]


@pytest.mark.parametrize("name", CLIENT_FRAMES)
def test_what_a_client_may_send_is_read(name: ClientFrameType) -> None:
    """The examples of frames are frames, with every field that is read and no other."""
    driver, customer, admin = (Actor("u1", role) for role in (Role.DRIVER, Role.CUSTOMER, Role.ADMIN))
    for model in CLIENT_FRAMES[name]:
        [sent] = model.model_json_schema()["examples"]
        frame = read_frame(json.dumps(sent))
        assert frame_id(frame) == sent.get("id")
        match name:
            case ClientFrameType.AUTH:
                assert read_first_token(frame) == sent["token"]
            case ClientFrameType.LOCATION:
                assert len(read_positions(driver, frame)) == 1
            case ClientFrameType.TRIP_ACTION:
                actor = driver if model is client_frames.TripActionFrame else customer
                asked = read_trip_action(actor, frame, key_required=False)
                assert (asked.action, asked.trip_id) == (sent["action"], sent["trip_request_id"])
                assert (asked.key is not None) is ("idempotency_key" in sent)
            case ClientFrameType.AVAILABILITY:
                change, key = read_availability(driver, frame, key_required=False)
                assert (change.is_online, key is not None) == (True, True)
            case ClientFrameType.WATCH:
                assert read_watched_zone(admin, frame) == sent["zone"]


def test_what_the_server_encodes_is_what_its_model_says() -> None:
    server_frames.WelcomeFrame.model_validate_json(encode_welcome("c", 120, {}))
    server_frames.Ack.model_validate_json(encode_ack(7, Answer(200, b'{"response_code":"heartbeat"}')))
    limited = RateLimited(state("general", 0))
    error = encode_error(None, refusal_answer(limited, limited.state))
    told = server_frames.ErrorFrame.model_validate_json(error)
    assert told.rate_limit.remaining == 0
    assert set(json.loads(error)) <= set(server_frames.ErrorFrame.model_fields)
