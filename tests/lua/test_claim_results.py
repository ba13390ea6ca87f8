"""What claims say is decoded strictly, and every refusal has its row in the table of problems."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dispatcher.core.errors import PROBLEMS
from dispatcher.core.limits import LimitState
from dispatcher.live.claim_results import (
    PROBLEM_CODES,
    UNRESOLVED,
    ClaimCode,
    CreationClaimed,
    Refused,
    Replayed,
    Unresolved,
    accept_claimed,
    availability_claimed,
    decline_claimed,
    decode_claim,
    transition_claimed,
)
from dispatcher.live.idempotency import KeptAnswer, KeptRefusal, decode_record
from tests.harness.lua_zone import START_MS, limit, make_trip
from tests.lua.sources import header_and_code, includes_of, library_text, without_comments
from tests.lua.test_headers import CLAIMS

NO_LIMIT = (0, 0, 0)


def _code_of(claim: str) -> str:
    """A claim's code with that of its libraries."""
    libraries = [without_comments(library_text(library)) for library in includes_of(claim)]
    return "\n".join([*libraries, header_and_code(claim)[1]])


def _codes_of(claim: str) -> set[str]:
    """The codes that a claim's script can answer with."""
    code = _code_of(claim)
    said = re.findall(r"(?:\b(?:reply|refuse)\(|return \{ )'(\w+)'", code)
    return set(said) | set(re.findall(r"return '(\w+)'", code))


# --- codes


def test_the_scripts_say_the_codes_that_there_are() -> None:
    said = set().union(*map(_codes_of, CLAIMS))
    assert said == set(ClaimCode)


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_header_names_the_codes_that_are_no_refusals(claim: str) -> None:
    header, _ = header_and_code(claim)
    about = header[header.index("-- RETURNS") :]
    unresolved = {code for code in _codes_of(claim) if code in UNRESOLVED}
    assert {code for code in UNRESOLVED if re.search(rf"\b{code}\b", about)} == unresolved
    assert "claimed:" in about
    assert "replay:" in about


def test_every_refusal_that_a_client_may_see_is_a_problem() -> None:
    # The others are no answers: something is provided, and the claim is asked for again. A trip that
    # stays busy is an answer in the end.
    seen = set(ClaimCode) - {ClaimCode.CLAIMED, ClaimCode.REPLAY} - (UNRESOLVED - {ClaimCode.TRIP_BUSY})
    assert set(PROBLEM_CODES) == seen
    assert {PROBLEM_CODES[code] for code in seen} <= set(PROBLEMS)


def test_what_the_scripts_keep_is_what_the_table_says_is_kept() -> None:
    kept: dict[str, set[str]] = {}
    for claim in CLAIMS:
        for code, is_kept in re.findall(r"refuse\('(\w+)', .*?, (true|false)\)", _code_of(claim)):
            kept.setdefault(code, set()).add(is_kept)
    in_table = {c: {"true" if PROBLEMS[PROBLEM_CODES[ClaimCode(c)]].kept else "false"} for c in kept}
    assert kept == in_table
    others = set(PROBLEM_CODES) - set(kept)
    assert [code for code in others if PROBLEMS[PROBLEM_CODES[code]].kept] == []


# --- replies


@pytest.mark.parametrize("code", sorted(UNRESOLVED - {ClaimCode.DRIVER_MOVED}))
def test_what_is_not_resolved(code: ClaimCode) -> None:
    result = decode_claim([str(code), START_MS, *NO_LIMIT], (), CreationClaimed)
    assert result == Unresolved(code, None)


def test_a_driver_who_moved() -> None:
    reply = ["driver_moved", START_MS, *NO_LIMIT, "z_2"]
    assert decode_claim(reply, (), CreationClaimed) == Unresolved(ClaimCode.DRIVER_MOVED, None, "z_2")


def test_a_limit_is_the_one_of_its_index() -> None:
    limits = [limit(5, name="trip_accept"), limit(9, name="general")]
    result = decode_claim(["rate_limited", START_MS, 2, 0, START_MS + 7], limits, CreationClaimed)
    state = LimitState("general", limits[1].rate, 0, START_MS + 7, START_MS)
    assert result == Refused(ClaimCode.RATE_LIMITED, state)


def test_records_that_are_replayed() -> None:
    reply = ["replay", START_MS, *NO_LIMIT]
    body = 'D 201 {"a": "b  c"}'
    found = decode_claim([*reply, body], (), CreationClaimed)
    assert found == Replayed(None, KeptAnswer(201, '{"a": "b  c"}'))
    found = decode_claim([*reply, "N version_conflict 4 pending"], (), CreationClaimed)
    assert found == Replayed(None, KeptRefusal("version_conflict", 4, make_trip().current_status))


_TRIP = make_trip(version=2).to_hash()
_DRIVER = ["is_online", "1", "availability_status", "available"]
_OF_A_DRIVER = availability_claimed("d1", "z")


@pytest.mark.parametrize(
    ("rest", "claimed"),
    [
        (["made_up"], CreationClaimed),
        (["CLAIMED"], CreationClaimed),
        ([None], CreationClaimed),
        (["claimed", "more"], CreationClaimed),
        (["claimed"], decline_claimed),
        (["claimed", []], decline_claimed),
        (["claimed", _TRIP[:-1]], decline_claimed),
        (["claimed", ["id", "z_1"]], decline_claimed),
        (["claimed", [*_TRIP, "current_status", "lost"]], decline_claimed),
        (["claimed", [*_TRIP, "version", "two"]], decline_claimed),
        (["claimed", _TRIP], transition_claimed),
        (["claimed", _TRIP, [], "more"], transition_claimed),
        (["claimed", _TRIP, []], accept_claimed),
        (["claimed", _TRIP, "car", [], "more"], accept_claimed),
        (["claimed", _DRIVER], _OF_A_DRIVER),
        (["claimed", _DRIVER, _TRIP[:-1]], _OF_A_DRIVER),
        (["claimed", [*_DRIVER, "availability_status", "maybe"], []], _OF_A_DRIVER),
        (["claimed", [*_DRIVER, "version", ""], []], _OF_A_DRIVER),
        (["cold", ""], CreationClaimed),
        (["trip_busy", "2", "pending"], CreationClaimed),
        (["driver_moved"], CreationClaimed),
        (["driver_moved", "z_1", "z_2"], CreationClaimed),
        (["key_reused", ""], CreationClaimed),
        (["rate_limited", "2", "pending"], CreationClaimed),
        (["version_conflict"], CreationClaimed),
        (["version_conflict", "2"], CreationClaimed),
        (["version_conflict", "2", "pending", "more"], CreationClaimed),
        (["version_conflict", "two", "pending"], CreationClaimed),
        (["version_conflict", "2", "lost"], CreationClaimed),
        (["replay"], CreationClaimed),
        (["replay", ""], CreationClaimed),
        (["replay", "D"], CreationClaimed),
        (["replay", "D many {}"], CreationClaimed),
        (["replay", "L 1 token"], CreationClaimed),
        (["replay", "X 200 {}"], CreationClaimed),
        (["replay", "N version_conflict 2"], CreationClaimed),
        (["replay", "N version_conflict 2 lost"], CreationClaimed),
    ],
)
def test_a_reply_that_is_none_raises(rest: list[Any], claimed: Any) -> None:
    code, *more = rest
    with pytest.raises((ValueError, TypeError, LookupError)):
        decode_claim([code, START_MS, *NO_LIMIT, *more], (), claimed)


@pytest.mark.parametrize("reply", [[], ["claimed"], ["claimed", START_MS, 0, 0]])
def test_a_reply_that_is_cut_off_raises(reply: list[Any]) -> None:
    with pytest.raises(ValueError, match="not enough values"):
        decode_claim(reply, (), CreationClaimed)


def test_a_limit_that_nobody_asked_for_raises() -> None:
    with pytest.raises(IndexError):
        decode_claim(["claimed", START_MS, 2, 1, START_MS], [limit(5)], CreationClaimed)


@pytest.mark.parametrize("record", ["", "D", "N", "L x", "N a b", "N a - - -"])
def test_a_record_that_is_none_raises(record: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_record(record)
