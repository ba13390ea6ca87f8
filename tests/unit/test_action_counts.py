"""What is answered is counted by action and response code, over HTTP and by frame."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dispatcher.core.errors import PROBLEMS, StoreUnavailable
from dispatcher.observe.series import ACTION_SECONDS, ACTIONS
from dispatcher.service.answers import Answer
from dispatcher.web.action_counts import WORDS, count_action, word_or
from tests.unit.http_harness import ACTION, CREATE, DRIVER, TRIP, Client

Series = tuple[str, ...]


@pytest.fixture
def counted() -> Any:
    """What was counted since the last time, by series."""
    before = ACTIONS.numbers.copy()

    def since() -> dict[Series, int]:
        nonlocal before
        now = ACTIONS.numbers.copy()
        new, before = now - before, now
        return dict(new)

    return since


async def test_calls(client: Client, counted: Any) -> None:
    observed = sum(ACTION_SECONDS.of("http", "accept").counts)
    client.notes.answer = Answer(200, b'{"response_code":"trip_accepted","trip":{}}')
    await client.good(ACTION)
    assert counted() == {("http", "accept", "trip_accepted"): 1}
    client.notes.answer = client.notes.answer._replace(replayed=True)
    await client.good(ACTION)
    assert counted() == {("http", "accept", "trip_accepted"): 1}
    client.notes.answer = StoreUnavailable()
    await client.good(ACTION)
    assert counted() == {("http", "accept", "service_unavailable"): 1}
    assert sum(ACTION_SECONDS.of("http", "accept").counts) == observed + 3
    await client.good(CREATE)
    assert counted() == {("http", "create", "service_unavailable"): 1}


async def test_calls_that_are_refused(client: Client, counted: Any) -> None:
    body = {"action": "arrive", "trip_request_id": TRIP}
    for path, token, sent, series in (
        (ACTION, None, body, ("trip_action", "missing_token")),
        (ACTION, DRIVER, {**body, "version": -1}, ("trip_action", "invalid_version")),
        (CREATE, DRIVER, {}, ("create", "wrong_role")),
        ("/nope", None, {}, ("unknown", "not_found")),
        ("/healthz", None, {}, ("unknown", "method_not_allowed")),
    ):
        await client.send("POST", path, token, sent)
        assert counted() == {("http", *series): 1}
    await client.send("GET", "/healthz")
    assert counted() == {("http", "healthz", "ok"): 1}
    await client.raw(b"NONSENSE\r\n\r\n")
    assert counted() == {("http", "unknown", "malformed_request"): 1}


def test_a_word_that_a_client_made_up_is_no_label() -> None:
    assert word_or("trip_action", "accept") == "accept"
    for word in ("acept", "", None, 5, ["accept"]):
        assert word_or("trip_action", word) == "trip_action"


def test_what_can_be_answered_is_there_from_the_start() -> None:
    assert {"accept", "decline", "arrive", "start", "complete", "cancel", "end"} == WORDS
    known = set(ACTIONS.numbers)
    for series in (
        ("http", "accept", "trip_accepted"), ("http", "accept", "trip_already_assigned"),
        ("ws", "accept", "rate_limit_exceeded"), ("ws", "heartbeat", "heartbeat"),
        ("http", "readyz", "service_unavailable"), ("http", "create", "trip_created"),
        ("http", "cancel", "trip_released"), ("http", "trips", "ok"),
    ):  # fmt: skip
        assert series in known
    successes = {code for _, _, code in known} - set(PROBLEMS)
    assert all(re.fullmatch("[a-z_]+", code) for code in successes)
    assert all(all(series) for series in known)


def test_counting_names_the_code_that_the_body_begins_with() -> None:
    assert Answer(200, b'{"response_code":"trip_created","trip":{}}').code == "trip_created"
    assert Answer(409, b'{"type":"urn:dispatcher:problem:trip_busy","title":""}').code == "trip_busy"
    assert Answer(200, b"[]").code == "ok"
    before = ACTIONS.numbers["http", "accept", "trip_busy"]
    count_action("http", "accept", "trip_busy", 0.001)
    assert ACTIONS.numbers["http", "accept", "trip_busy"] == before + 1
